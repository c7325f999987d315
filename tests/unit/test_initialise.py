"""Where prompts start. That text prompts are the model's own keys and values is shown in test_export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.prompt.initialise import _some_tokens, start_from_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    return make_backbone(folder / "backbone", "bert"), make_texts(folder / "data"), folder


def start(places, **sections):
    backbone, data, folder = places
    return build_fleet(resolve(run_json(backbone, data, **sections), folder / "run.json"), Grid()).members[0]


def table(member):
    return member.prompt.prefix.table().detach()


@pytest.mark.parametrize("method", ["deep_prompt", "shallow_prompt"])
def test_normal_start_has_the_published_spread(places, method):
    member = start(places, method=method, prompt={"length": 30})
    values = table(member) if method == "deep_prompt" else member.prompt.inputs
    assert 0.018 < values.std().item() < 0.022


@pytest.mark.parametrize("method", ["deep_prompt", "shallow_prompt"])
def test_zero_start_is_zero_and_trains(places, method):
    backbone, data, folder = places
    raw = run_json(backbone, data, method=method, prompt={"init": "zero"})
    fleet = build_fleet(resolve(raw, folder / "run.json"), Grid())
    member = fleet.members[0]
    values = member.prompt.prefix.embedding if method == "deep_prompt" else member.prompt.inputs
    assert not values.any()
    assert member.prompt.head.weight.any()
    fleet.train_step([0])
    assert values.any()


@pytest.mark.parametrize("reparameterisation", ["none", "mlp"])
def test_the_start_is_a_function_of_the_seed(places, reparameterisation):
    first, again, other = (
        start(places, prompt={"reparameterisation": reparameterisation}, train={"seed": seed}) for seed in (1, 1, 2)
    )
    assert torch.equal(table(first), table(again))
    assert not torch.equal(table(first), table(other))


def test_text_start_of_some_layers_is_that_of_all_layers_cut(places):
    whole = start(places, prompt={"init": "text"})
    part = start(places, prompt={"init": "text", "layers": [0, 2]})
    assert part.prompt.prefix.embedding.shape[1] == whole.prompt.prefix.embedding.shape[1] * 2 // 3
    assert torch.equal(table(part)[:, [0, 2]], table(whole)[:, [0, 2]])
    assert not table(part)[:, 1].any()


def test_text_start_at_the_input_is_word_embeddings_of_training_text(places):
    member = start(places, method="shallow_prompt", prompt={"init": "text", "length": 7})
    tokens = _some_tokens(member.splits["train"], 7, rng.key(member.seed, "init", "text"))
    words = member.backbone.model.get_input_embeddings().weight[torch.from_numpy(tokens.astype(np.int64))]
    assert torch.equal(member.prompt.inputs, words)


def test_text_is_training_rows_in_an_order_of_the_seed(places):
    member = start(places)
    features = member.splits["train"]
    texts = [features.tokens[a:b].tolist() for a, b in zip(features.offsets, features.offsets[1:], strict=False)]
    first, second = (_some_tokens(features, 40, rng.key(seed)).tolist() for seed in (1, 2))
    assert len(first) == len(second) == 40 and first != second
    for tokens in (first, second):
        at = 0
        while at < 40:
            row = next(text for text in texts if tokens[at : at + len(text)] == text[: 40 - at])
            at += len(row)


def test_text_longer_than_the_data_is_repeated(places):
    features = start(places).splits["train"]
    whole = len(features.tokens)
    tokens = _some_tokens(features, whole + 5, 3)
    assert len(tokens) == whole + 5
    assert np.array_equal(tokens[whole:], tokens[:5])


def test_text_start_leaves_the_model_in_training_and_without_gradients(places):
    member = start(places, prompt={"init": "text"})
    assert member.backbone.model.training
    assert not any(weight.requires_grad for weight in member.backbone.model.parameters())
    assert member.prompt.prefix.embedding.requires_grad and member.prompt.prefix.embedding.grad is None


def test_a_start_from_a_prompt_takes_the_head_only_where_it_fits(places, tmp_path):
    source = start(places, train={"seed": 5})
    export_member(tmp_path / "prompt", source)
    exported = load_prompt(tmp_path / "prompt").prompt
    same, pooled = start(places), start(places, head={"pooling": "mean"})
    heads = [member.prompt.head.weight.clone() for member in (same, pooled)]
    for member in (same, pooled):
        start_from_prompt(member.prompt, exported, "there")
        assert torch.equal(table(member), table(source))
    assert torch.equal(same.prompt.head.weight, source.prompt.head.weight)
    assert not torch.equal(heads[0], same.prompt.head.weight)
    assert torch.equal(heads[1], pooled.prompt.head.weight)
    assert all(p.requires_grad for p in (same.prompt.prefix.embedding, same.prompt.head.weight))


def test_a_start_from_a_folded_prompt_equals_the_unfolded_one(places, tmp_path):
    source = start(places, prompt={"reparameterisation": "mlp", "projection_width": 9})
    export_member(tmp_path / "prompt", source)
    member = start(places, prompt={"init_from": str(tmp_path / "prompt")})
    torch.testing.assert_close(table(member), table(source), rtol=0, atol=1e-14)
