"""Exported prompts give the logits they had in training, whatever was trained, also in batches that mix them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from launcher import cli
from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_copa, make_texts, run_json

METHODS = {
    "plain": {},
    "mlp": {"prompt": {"reparameterisation": "mlp", "projection_width": 7}},
    "layers": {"prompt": {"layers": [0, 2]}},
    "from_zero": {"prompt": {"positions": "from_zero"}},
    "shallow": {"method": "shallow_prompt"},
    "head": {"method": "head", "head": {"pooling": "mean"}},
}


def write(folder, value):
    file = folder / "run.json"
    file.write_text(json.dumps(value))
    return file


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_an_exported_prompt_gives_the_same_logits(tmp_path, family, name):
    backbone = make_backbone(tmp_path / "backbone", family, with_pooler=False)
    raw = run_json(backbone, make_texts(tmp_path / "data"), **METHODS[name])
    fleet = build_fleet(resolve(raw, tmp_path / "run.json"), Grid())
    for _ in range(2):
        fleet.train_step([0])
        fleet.members[0].step += 1
    expected = split_outputs(fleet, [0], "dev")[0]
    export_member(tmp_path / "prompt", fleet.members[0])
    model = attach(load_prompt(tmp_path / "prompt"))
    (found,) = model.outputs([0], [fleet.members[0].splits["dev"]])
    assert np.abs(found - expected).max() < 1e-10
    assert {file.suffix for file in (tmp_path / "prompt").iterdir()} == {".json", ".safetensors"}


def test_equal_prompts_give_equal_bytes(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    fleet = build_fleet(resolve(run_json(backbone, make_texts(tmp_path / "data")), tmp_path / "run.json"), Grid())
    for name in ("a", "b"):
        export_member(tmp_path / name, fleet.members[0])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_full_fine_tuning_exports_a_model_that_predicts_the_same(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    raw = run_json(
        backbone, make_texts(tmp_path / "data"), method="full", optimizer={"lr": 1e-3}, train={"max_steps": 4}
    )
    assert worker.main(["--config", str(write(tmp_path, raw)), "--output", str(tmp_path / "out")]) == 0
    (member,) = (tmp_path / "out" / "members").iterdir()
    result = json.loads((member / "result.json").read_text())
    config = json.loads((member / "model" / "config.json").read_text())
    assert "promptfleet" not in json.dumps(config)
    model = attach(load_prompt(member / "prompt"))
    from prompt_tuning.data.load import load_task_data
    from prompt_tuning.data.read import Source
    from prompt_tuning.tokens.recipe import Encoding

    data = load_task_data(model.prompts[0].task, model.backbone.tokenizer, Source(str(tmp_path / "data")), Encoding(24))
    (logits,) = model.outputs([0], [data.splits["test"]])
    assert np.mean(logits.argmax(1) == data.splits["test"].labels) == result["test"]["accuracy"]
    original = load_prompt(member / "prompt")
    with pytest.raises(UserError, match="was trained on"):
        attach(original, str(backbone))


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    """A finished run of a classification and a choice member with prompts of different lengths."""
    folder = tmp_path_factory.mktemp("two")
    make_copa(folder / "copa")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts"),
        train={"max_steps": 3},
        fleet={
            "members": [
                {"name": "texts"},
                {"name": "copa", "task": "copa", "data": {"path": str(folder / "copa")}, "prompt": {"length": 2}},
            ]
        },
    )
    assert worker.main(["--config", str(write(folder, raw)), "--output", str(folder / "out")]) == 0
    return folder


def test_rows_of_a_mixed_batch_equal_single_prompts(two_tasks):
    prompts = [load_prompt(two_tasks / "out" / "members" / name / "prompt") for name in ("texts", "copa")]
    texts = [{"text": "w1 w2"}, {"text": "w3", "label": "not looked at"}]
    choices = [{"premise": "w1", "question": "cause", "choice1": "w2", "choice2": "w3 w4 w5"}]
    both = attach(prompts).predict([texts[0], choices[0], texts[1]], prompts=[0, 1, 0])
    alone = [attach(prompts[0]).predict(texts), attach(prompts[1]).predict(choices)]
    for found, expected in zip(both, [alone[0][0], alone[1][0], alone[0][1]], strict=True):
        assert found["label"] == expected["label"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-10)
        assert sum(found["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(UserError, match="no prompt 2"):
        attach(prompts).predict(texts, prompts=2)


def test_the_driver_predicts_evaluates_and_exports(two_tasks, tmp_path, capsys):
    member = two_tasks / "out" / "members" / "texts"
    output = tmp_path / "predictions.jsonl"
    source = two_tasks / "texts" / "test.jsonl"
    assert (
        cli.main(["predict", "--prompt", str(member / "prompt"), "--input", str(source), "--output", str(output)]) == 0
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 7 and all(row["label"].startswith("class") and "text" in row for row in rows)
    capsys.readouterr()
    assert (
        cli.main(
            ["evaluate", "--prompt", str(member / "prompt"), "--data", str(two_tasks / "texts"), "--split", "test"]
        )
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == json.loads((member / "result.json").read_text())["test"]
    assert cli.main(["export", str(two_tasks / "out"), "--output", str(tmp_path / "exported")]) == 0
    for name in ("texts", "copa"):
        for file in (tmp_path / "exported" / name).iterdir():
            assert file.read_bytes() == (two_tasks / "out" / "members" / name / "prompt" / file.name).read_bytes()


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_text_prompts_are_the_models_own_keys_and_values(tmp_path, family):
    """Against transformers' cache (LLaMA) or its key and value projections, layer by layer."""
    from transformers import AutoModel

    backbone = make_backbone(tmp_path / "backbone", family)
    raw = run_json(backbone, make_texts(tmp_path / "data"), prompt={"init": "text", "length": 9})
    member = build_fleet(resolve(raw, tmp_path / "run.json"), Grid()).members[0]
    table = member.prompt.prefix.table().detach()

    from model_parallel import rng
    from prompt_tuning.prompt.initialise import _some_tokens

    tokens = _some_tokens(member.splits["train"], 9, rng.key(member.seed, "init", "text"))
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    model = AutoModel.from_pretrained(backbone, dtype=torch.float64).eval()
    found = []
    if family == "llama":
        cache = model(ids, use_cache=True).past_key_values
        found = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    else:
        for layer in model.encoder.layer:
            pair = []
            for projection in (layer.attention.self.key, layer.attention.self.value):
                projection.register_forward_hook(
                    lambda m, i, out, pair=pair: pair.append(out[0].view(9, 4, 8).transpose(0, 1))
                )
            found.append(pair)
        model(ids)
    for number, (key, value) in enumerate(found):
        assert torch.allclose(table[:, number, 0].transpose(0, 1), key, atol=1e-10)
        assert torch.allclose(table[:, number, 1].transpose(0, 1), value, atol=1e-10)


def test_a_prompt_starts_from_an_exported_one(two_tasks, tmp_path):
    source = two_tasks / "out" / "members" / "texts" / "prompt"
    raw = run_json(two_tasks / "backbone", two_tasks / "texts", prompt={"init_from": str(source)})
    member = build_fleet(resolve(raw, tmp_path / "run.json"), Grid()).members[0]
    exported = load_prompt(source).prompt
    assert torch.equal(member.prompt.prefix.embedding, exported.prefix.embedding)
    assert torch.equal(member.prompt.head.weight, exported.head.weight)


def test_a_random_pooler_is_a_function_of_the_seed_and_travels(tmp_path):
    """RoBERTa's masked-LM checkpoints carry no pooler; the one drawn for them is part of the prompt and is not trained."""
    backbone = make_backbone(tmp_path / "backbone", "roberta", with_pooler=False)
    raw = run_json(backbone, make_texts(tmp_path / "data"))
    first, second = (build_fleet(resolve(raw, tmp_path / "run.json"), Grid()).members[0] for _ in range(2))
    pooler = first.prompt.head.pooler
    assert torch.equal(pooler.weight, second.prompt.head.pooler.weight)
    assert 0.015 < pooler.weight.std() < 0.025
    assert not any("pooler" in name for name, _ in first.parameters)
    export_member(tmp_path / "prompt", first)
    assert torch.equal(load_prompt(tmp_path / "prompt").prompt.head.pooler.weight, pooler.weight)


@pytest.mark.parametrize("layers", [None, [1]])
def test_a_choice_task_is_exported(tmp_path, layers):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    data = make_copa(tmp_path / "data")
    raw = run_json(backbone, data, task="copa", prompt={"layers": layers})
    fleet = build_fleet(resolve(raw, tmp_path / "run.json"), Grid())
    fleet.train_step([0])
    expected = split_outputs(fleet, [0], "dev")[0]
    export_member(tmp_path / "prompt", fleet.members[0])
    exported = load_prompt(tmp_path / "prompt")
    (found,) = attach(exported).outputs([0], [fleet.members[0].splits["dev"]])
    assert found.shape == (6, 2)
    assert np.abs(found - expected).max() < 1e-10
    assert exported.labels == ("choice1", "choice2")


def test_full_fine_tuning_gives_the_same_logits(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    raw = run_json(backbone, make_texts(tmp_path / "data"), method="full", optimizer={"lr": 1e-2})
    fleet = build_fleet(resolve(raw, tmp_path / "run.json"), Grid())
    before = split_outputs(fleet, [0], "dev")[0]
    fleet.train_step([0])
    expected = split_outputs(fleet, [0], "dev")[0]
    assert np.abs(expected - before).max() > 1e-2
    export_member(tmp_path / "members" / "m" / "prompt", fleet.members[0])
    (found,) = attach(load_prompt(tmp_path / "members" / "m" / "prompt")).outputs([0], [fleet.members[0].splits["dev"]])
    assert np.abs(found - expected).max() < 1e-10
    assert np.abs(split_outputs(fleet, [0], "dev")[0] - expected).max() == 0, "writing changes nothing in memory"
