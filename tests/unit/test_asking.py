"""Method none: the frozen language model asked, with an instruction and examples, beside prompts in one fleet."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from launcher import run as worker
from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet, train
from tests.support.fleets import make_run, open_fleet
from tests.support.generation import make_passages, make_writer, stock_logits, stock_model, writing_run

ASKED = {"name": "asked", "method": "none", "prompt": {"text": "w9 w8", "shots": 2}, "data": {"max_length": 50}}
PLAIN = {"name": "plain", "method": "none"}
TRAINED = {"name": "trained", "prompt": {"length": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_passages(tmp_path_factory.mktemp("passages"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_writer(tmp_path_factory.mktemp("llama"), "llama")


def rows(data, split):
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def asked_run(backbone, data, *members, **sections):
    train = {"max_steps": 4, "batch_size": 8, "backbone_dropout": False, "checkpoint_steps": 1}
    return writing_run(backbone, data, fleet={"members": list(members)}, train=train, **sections)


def texts_before(data, seed):
    """What stands before each source, made by hand."""
    train = rows(data, "train")
    drawn = rng.permutation(rng.key(seed, "shots"), len(train)).tolist()[:2]
    examples = "".join(f"{train[i]['source']}\n{train[i]['target']}\n\n" for i in drawn)
    return f"w9 w8\n\n{examples}"


def test_sources_stand_behind_the_instruction_and_the_examples(backbone, data):
    fleet = open_fleet(asked_run(backbone, data, ASKED, PLAIN))
    asked, plain = (member.splits["test"] for member in fleet.members)
    tokenizer = fleet.backbone.tokenizer
    for number, row in enumerate(rows(data, "test")):
        for features, text in ((asked, texts_before(data, fleet.members[0].seed)), (plain, "")):
            own = features.tokens[features.offsets[number] :][: features.notes.num_source[number]].tolist()
            assert own == tokenizer(f"{text}{row['source']}\n")["input_ids"][: len(own)]
            assert len(own) == len(tokenizer(f"{text}{row['source']}\n", add_special_tokens=False)["input_ids"]) + 1


def test_likelihoods_and_texts_are_the_stock_models(backbone, data, tmp_path):
    result = train(make_run(asked_run(backbone, data, ASKED), tmp_path), Grid())
    (member,) = result["members"]
    fleet = open_fleet(asked_run(backbone, data, ASKED))
    features, total, count = fleet.members[0].splits["test"], 0.0, 0
    for number in range(len(features)):
        ids = features.tokens[features.offsets[number] : features.offsets[number + 1]].tolist()
        start, target = int(features.notes.num_source[number]), features.asked(number).tolist()
        logits = stock_logits(backbone, None, ids, 0)[start - 1 :]
        total -= float(logits.log_softmax(-1)[torch.arange(len(target)), target].sum())
        count += len(target)
    assert member["test"]["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-10)
    assert member["status"] == "finished" and member["steps"] == 0 and member["trainable_parameters"] == 0
    assert member["exported_bytes"] is None and not (tmp_path / "members" / "asked" / "prompt").exists()
    lines = [
        json.loads(line)
        for line in (tmp_path / "members" / "asked" / "answers" / "test.jsonl").read_text().splitlines()
    ]
    for number, line in enumerate(lines):
        ids = features.tokens[features.offsets[number] :][: features.notes.num_source[number]].tolist()
        with torch.no_grad():
            own = stock_model(backbone).generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        text = fleet.backbone.tokenizer.decode(own, skip_special_tokens=True)
        assert line["predicted"]["text"] == text.partition("\n")[0].strip()


def test_asked_members_leave_those_that_train_as_they_are(backbone, data, tmp_path):
    alone = train(make_run(asked_run(backbone, data, TRAINED), tmp_path / "alone"), Grid())
    beside = train(make_run(asked_run(backbone, data, PLAIN, TRAINED, ASKED), tmp_path / "beside"), Grid())
    assert [own["member"] for own in beside["members"]] == ["plain", "trained", "asked"]
    assert beside["members"][1]["test"]["perplexity"] == pytest.approx(
        alone["members"][0]["test"]["perplexity"], rel=1e-9
    )
    assert {own["steps"] for own in beside["members"]} == {0, 4}


def test_a_killed_run_with_asked_members_goes_on_to_the_same_results(backbone, data, tmp_path):
    raw = asked_run(backbone, data, PLAIN, TRAINED, ASKED)
    whole = train(make_run(raw, tmp_path / "whole"), Grid())
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 3

    assert train(make_run(raw, tmp_path / "cut"), Grid(), stop) is None
    cut = train(make_run(raw, tmp_path / "cut"), Grid())
    for first, second in zip(whole["members"], cut["members"], strict=True):
        assert first["test"] == second["test"] and first["best"] == second["best"]


def test_examples_follow_from_the_seed(backbone, data):
    two = asked_run(
        backbone, data, ASKED, {**ASKED, "name": "other", "train": {"seed": 5}}, {**PLAIN, "train": {"seed": 5}}
    )
    first, second, plain = (member.splits["dev"].tokens for member in open_fleet(two).members)
    assert not np.array_equal(first, second) and len(plain) < len(second)


def test_a_command_asks_and_reports(backbone, data, tmp_path, capsys):
    file = tmp_path / "ask.json"
    file.write_text(json.dumps(asked_run(backbone, data, TRAINED, {"method": "none"}, ASKED)))
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in ("trained", "none", "asked"))
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "sections, words",
    [
        ({"prompt": {"text": "w1"}}, "prompt.text are for method 'none'|prompt.text .*method 'none'"),
        ({"method": "none", "train": {"also": ["norms"]}}, "train.also does not fit method 'none'"),
        ({"method": "none", "prompt": {"shots": 20}}, "has 19 rows with a target"),
        ({"method": "none", "prompt": {"shots": 2}}, "would cut .* sources .*set it to"),
        ({"method": "none", "task": {"kind": "classification"}}, "a head answers"),
        ({"method": "none", "task": "boolq"}, r"set data.template to one with a gap \(cloze\)"),
        (
            {"method": "none", "task": "boolq", "data": {"template": "cloze"}, "prompt": {"text": "w"}},
            "with texts; leave",
        ),
        ({"method": "none", "task": {"kind": "document", "document": "x"}}, "promptfleet contexts"),
    ],
)
def test_what_cannot_be_asked_is_said(backbone, data, sections, words):
    raw = {**writing_run(backbone, data), **sections}
    with pytest.raises(UserError, match=words):
        build_fleet(resolve(raw, data / "run.json"), Grid())


def test_answers_are_lines_unless_told_otherwise(backbone, data):
    def stop(**sections):
        return resolve({**writing_run(backbone, data), **sections}, data / "run.json").shared.decode.stop

    assert stop() == [] and stop(method="none") == ["\n"]
    assert stop(method="none", decode={"stop": ["w1"]}) == ["w1"] and stop(method="none", decode={"num_beams": 2}) == [
        "\n"
    ]
