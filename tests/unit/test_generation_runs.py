"""Generation in runs: scores, exported prompts, continuation, and what is refused before a run starts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs, write_split
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.trainer import train
from tests.support.fleets import make_run, open_fleet
from tests.support.generation import make_passages, make_writer, three_members, writing_run
from tests.support.tiny import make_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_passages(tmp_path_factory.mktemp("passages"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    raw = three_members(folder / "backbone", data, train={"max_steps": 4, "batch_size": 8, "backbone_dropout": False})
    raw["decode"] = {"max_examples": 3}
    (folder / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", str(folder / "run.json"), "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_a_run_scores_texts_and_all_likelihoods(finished):
    for member in (finished / "members").iterdir():
        result = json.loads((member / "result.json").read_text())
        assert set(result["test"]) == {"f1", "exact_match", "perplexity"}
        assert result["test"]["perplexity"] == pytest.approx(np.exp(result["test_loss"]))
        lines = [json.loads(line) for line in (member / "answers" / "test.jsonl").read_text().splitlines()]
        assert len(lines) == 5 and all(isinstance(line["predicted"]["text"], str) for line in lines)
        exported = load_prompt(member / "prompt")
        assert set(exported.manifest["tensors"]) == {"prefix"}
        assert result["trainable_parameters"] == exported.prompt.prefix.embedding.numel()


def test_of_dev_no_more_rows_are_written_than_asked_for_and_of_test_all(tmp_path, data):
    fleet = open_fleet({**three_members(tmp_path, data), "decode": {"max_examples": 2}})
    for split, count in (("dev", 2), ("test", 5)):
        found = write_split(fleet, split_outputs(fleet, [0, 1], split), split)
        assert [sum(own.text is not None for own in texts) for texts in found.values()] == [count, count]
        assert all(own.num_tokens for texts in found.values() for own in texts), "all have a likelihood"


def test_attached_prompts_write_as_their_runs_did(finished, data):
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    folders = [finished / "members" / name for name in ("five", "two", "seven")]
    model = attach([load_prompt(folder / "prompt") for folder in folders])
    for p, folder in enumerate(folders):
        lines = [json.loads(line) for line in (folder / "answers" / "test.jsonl").read_text().splitlines()]
        wanted = [line["predicted"]["text"] for line in lines]
        assert [answer["text"] for answer in model.predict(rows, p)] == wanted
        assert model.generate([row["source"] for row in rows], p) == wanted
    mixed = model.generate([rows[i]["source"] for i in (0, 1, 2)], [2, 0, 1])
    assert mixed == [model.generate([rows[i]["source"]], p)[0] for i, p in enumerate((2, 0, 1))]
    pieces = []
    streamer = type("Streamer", (), {"put": lambda self, ids: pieces.append(ids), "end": lambda self: None})()
    assert model.generate([rows[0]["source"]], streamer=streamer, max_new_tokens=3) and len(pieces) == 4
    with pytest.raises(UserError, match="which 2 beams settle last"):
        model.generate(["w1"], streamer=streamer, num_beams=2)
    with pytest.raises(UserError, match="a streamer takes one text"):
        model.generate(["w1", "w2"], streamer=streamer)
    with pytest.raises(UserError, match="num_beams"):
        model.generate(["w1"], num_beams=0)
    with pytest.raises(UserError, match="unknown key"):
        model.generate(["w1"], beams=2)


def test_a_continued_run_ends_with_the_same_bits(tmp_path, data):
    raw = three_members(tmp_path / "backbone", data, train={"max_steps": 4, "checkpoint_steps": 2, "log_steps": 1})
    whole = train(make_run(raw, tmp_path / "whole"), Grid())
    asked = iter([False, False, True] + [False] * 9)
    assert train(make_run(raw, tmp_path / "cut"), Grid(), lambda: next(asked)) is None
    again = train(make_run(raw, tmp_path / "cut"), Grid())
    assert [m["best"] for m in again["members"]] == [m["best"] for m in whole["members"]]
    for name in ("five", "two", "seven"):
        one, other = (tmp_path / part / "members" / name / "prompt" / "prompt.safetensors" for part in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "head"}, "method 'head' does not fit a generation task"),
        ({"prompt": {"layers": [1]}}, "prompt.layers does not fit a generation task"),
        ({"train": {"also": ["biases"]}}, "train.also does not fit a generation task"),
        ({"decode": {"top_p": 0.5}}, "set sample to true"),
        ({"decode": {"sample": True, "num_beams": 2}}, "does not go with sample"),
        ({"task": "boolq", "decode": {"num_beams": 2}}, "for tasks of kind 'generation'"),
        ({"task": {"kind": "generation", "target": "source"}}, "source and target are both column 'source'"),
    ],
)
def test_what_does_not_fit_is_said_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        RunFile.model_validate({"task": {"kind": "generation"}, "backbone": {"path": "."}, **changes})


def test_encoders_and_narrow_windows_are_refused(tmp_path, data):
    backbone = make_backbone(tmp_path / "bert", "bert")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(backbone)
    with pytest.raises(UserError, match="bert is an encoder, which writes no texts; choose a decoder such as"):
        open_fleet(writing_run(backbone, data))
    narrow = make_writer(tmp_path / "gemma", "gemma3_text", sliding_window=20)
    with pytest.raises(UserError, match="layers that see 20 tokens, fewer than the 23"):
        open_fleet(writing_run(narrow, data))
