"""Relative rates: a prefix in units of the backbone's own keys and values."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, DynamicCache

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relative")
    return make_backbone(folder / "backbone", "llama"), make_texts(folder / "data"), folder


def build(places, **sections):
    backbone, data, folder = places
    sections = {"optimizer": {"relative": True}, **sections}
    return build_fleet(resolve(run_json(backbone, data, **sections), folder / "run.json"), Grid())


def table(member):
    return member.prompt.prefix.table().detach()


def test_the_scale_is_the_root_mean_square_of_each_layers_own_keys_and_values(places):
    """Against the cache that transformers fills, one row at a time; the tiny data have fewer tokens than are measured."""
    member = build(places).members[0]
    model = AutoModel.from_pretrained(places[0], dtype=torch.float64, attn_implementation="eager")
    features = member.splits["train"]
    squares, count = torch.zeros(model.config.num_hidden_layers, 2, dtype=torch.float64), 0
    for start, end in zip(features.offsets, features.offsets[1:], strict=False):
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.from_numpy(features.tokens[start:end].astype("int64"))[None], past_key_values=cache)
        squares += torch.stack([torch.stack([one.keys, one.values]).square().sum((1, 2, 3, 4)) for one in cache.layers])
        count += cache.layers[0].keys.numel()
    assert len(features.tokens) < 512
    torch.testing.assert_close(
        member.prompt.prefix.scale[:, :, 0, 0], (squares / count).sqrt(), rtol=1e-7, atol=0
    )  # norms are float32


def test_a_step_changes_keys_and_values_by_the_rates_share_of_the_backbones_own(places):
    """AdamW's first step is its rate in every number."""
    fleet = build(
        places, optimizer={"relative": True, "lr": 0.01, "schedule": "constant", "eps": 1e-30, "clip_norm": 0}
    )
    member = fleet.members[0]
    before = table(member)
    fleet.train_step([0])
    share = (table(member) - before).abs() / member.prompt.prefix.scale
    torch.testing.assert_close(share, torch.full_like(share, 0.01), rtol=1e-6, atol=0)


def test_a_start_from_text_is_the_same_table_in_either_unit(places):
    plain, relative = (
        table(build(places, prompt={"init": "text"}, optimizer={"relative": unit}).members[0]) for unit in (False, True)
    )
    torch.testing.assert_close(relative, plain, rtol=1e-14, atol=0)


def test_seeds_have_one_scale_and_a_prefix_of_some_layers_has_theirs(places):
    fleet = build(places, fleet={"members": [{"train": {"seed": 3}}, {"prompt": {"layers": [1, 2]}}]})
    whole, part = (member.prompt.prefix.scale for member in fleet.members)
    assert torch.equal(part, whole[[1, 2]])
    assert not whole.requires_grad and len(whole.unique()) == whole.numel()


def test_an_exported_prompt_has_plain_keys_and_values(places, tmp_path):
    fleet = build(places)
    fleet.train_step([0])
    export_member(tmp_path / "prompt", fleet.members[0])
    read = load_prompt(tmp_path / "prompt").prompt.prefix
    assert read.scale is None
    assert torch.equal(read.table(), table(fleet.members[0]))
    started = build(places, prompt={"init_from": str(tmp_path / "prompt")}).members[0]
    torch.testing.assert_close(table(started), table(fleet.members[0]), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"method": "full"}, "method 'full'"),
        ({"method": "shallow_prompt"}, "method 'shallow_prompt'"),
        ({"prompt": {"reparameterisation": "mlp"}}, "prompt.reparameterisation 'mlp'"),
    ],
)
def test_what_trains_no_keys_and_values_has_no_relative_rate(places, sections, what):
    with pytest.raises(UserError, match=f"optimizer.relative is a share of keys and values, which {what} does not"):
        build(places, **sections)


def test_a_head_alone_may_stand_in_a_fleet_with_relative_prompts(places):
    fleet = build(places, fleet={"grid": {"method": ["deep_prompt", "head"]}})
    assert [member.prompt.prefix is None for member in fleet.members] == [False, True]
    assert json.dumps([member.spec.config.optimizer.relative for member in fleet.members]) == "[true, true]"
