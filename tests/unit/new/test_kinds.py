"""`promptfleet new` writes a run file that is right and trains, for every kind of data and on any backbone."""

from __future__ import annotations

import json

import pytest

from launcher import cli
from launcher import run as worker
from prompt_tuning.settings.members import load_run
from tests.support.generation import make_passages
from tests.support.tiny import make_copa, make_questions, make_tags, make_texts, make_values, write_jsonl
from tests.unit.new.conftest import CONLL, TEXTS


def conll(folder):
    folder.mkdir()
    (folder / "train.txt").write_text(CONLL)


def squad(folder):
    folder.mkdir()
    asked = [{"question": f"w{i} w1", "answers": [{"text": "w2", "answer_start": 3}]} for i in range(9)]
    (folder / "train.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "w1 w2 w3", "qas": asked}]}]}))


def listed_choices(folder):
    rows = [
        {
            "question": text,
            "choices": {"text": TEXTS[: 2 + i % 2], "label": list("ABC"[: 2 + i % 2])},
            "answerKey": "AB"[i % 2],
        }
        for i, text in enumerate(TEXTS)
    ]
    write_jsonl(folder / "train.jsonl", rows)


def chats(folder):
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"w{i} w2"}]
        for i, text in enumerate(TEXTS)
    ]
    write_jsonl(folder / "train.jsonl", [{"id": i, "messages": own * (1 + i % 2)} for i, own in enumerate(turns)])


KINDS = {
    "classification": (make_texts, {"text": "text", "label": "label", "metric": "accuracy"}),
    "regression": (lambda folder: make_values(folder, {"train": 40, "dev": 6}), {"text": "text", "label": "label", "metric": "pearson"}),
    "choice": (make_copa, {"text": "premise", "choices": ["choice1", "choice2"], "label": "label"}),
    "choice (a list)": (listed_choices, {"text": "question", "choices": ["choices"], "label": "answerKey", "most_choices": 3}),
    "tagging": (make_tags, {"words": "words", "tags": "tags", "metric": "f1"}),
    "tagging (columns)": (conll, {"metric": "f1"}),
    "span": (make_questions, {"question": "question", "context": "context", "answers": "answers", "has_null": True}),
    "span (SQuAD)": (squad, {"has_null": False}),
    "generation": (make_passages, {"source": "source", "target": "target", "metrics": ["f1", "exact_match"]}),
    "generation (chats)": (chats, {"messages": "messages", "metrics": ["exact_match", "f1"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recognised_validated_and_trained(name, new, tmp_path, encoder, decoder, monkeypatch):
    make, settings = KINDS[name]
    make(tmp_path / "data")
    kind = name.partition(" ")[0]
    raw, _ = new(backbone=decoder if kind == "generation" else encoder)
    assert raw["task"] == {"kind": kind, "name": "mine", **settings}
    assert cli.main(["validate", str(tmp_path / "mine.json")]) == 0
    monkeypatch.chdir(tmp_path)
    assert worker.main(["--config", "mine.json", "--set", "train.max_steps=2"]) == 0
    members = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())["members"]
    assert [member["method"] for member in members] == ["deep_prompt", "head"][: 1 if kind == "generation" else 2]
    assert all(member["best"] is not None for member in members)


def test_a_backbone_without_biases_trains_norms_alone(new, tmp_path, decoder, monkeypatch):
    make_tags(tmp_path / "data")
    raw, said = new(backbone=decoder)
    assert raw["train"]["also"] == ["norms"] and "has no biases" in said
    monkeypatch.chdir(tmp_path)
    assert worker.main(["--config", "mine.json", "--set", "train.max_steps=1"]) == 0


def test_an_encoder_for_texts_to_write_and_a_false_path_are_refused(new, tmp_path, encoder):
    make_passages(tmp_path / "data")
    assert "is an encoder, which writes no texts" in new(backbone=encoder)[1]
    assert "no such folder; give a folder, a hub id" in new(backbone="./nowhere")[1]


def test_a_hub_id_that_is_not_here_leaves_lengths_to_the_default_and_says_so(new, tmp_path):
    make_texts(tmp_path / "data")
    raw, said = new(backbone="nobody/has-this")
    assert "max_length" not in raw["data"] and "lengths were not measured" in said


def test_an_older_file_is_kept_unless_forced(new, tmp_path, capsys):
    make_texts(tmp_path / "data")
    old = tmp_path / "mine.json"
    old.write_text("{}")
    options = ["new", "mine", "--data", str(tmp_path / "data"), "--output", str(old)]
    assert cli.main(options) == 1
    assert "--force overwrites it" in capsys.readouterr().err and old.read_text() == "{}"
    assert new(tmp_path / "data", "--force")[0]["task"]["name"] == "mine"


def test_a_setting_that_is_none_is_refused_before_anything_is_written(new, tmp_path):
    make_texts(tmp_path / "data")
    for item, message in (
        ("data.max_lenth=3", "did you mean `max_length`?"),
        ("train.epochs=many", '"many" is not a whole number'),
        ("task.lable=x", "did you mean `label`?"),
        ("task.label=lable", 'no column "lable"'),
        ("data.path=x", "--data says it already"),
        ("data.files=x", '--set data.files: "x" is no object'),
        ("task=boolq", "for data of your own"),
        ("task.choices=text", "no list"),
        ('task.choices=["text"]', 'column "text" holds no lists of texts'),
    ):
        raw, said = new(tmp_path / "data", "--set", item)
        assert raw is None and message in said, said


def test_the_recipe_is_found_from_any_folder(new, tmp_path, monkeypatch):
    make_texts(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    raw, _ = new("data")
    assert raw["data"]["path"] == "data" and not raw["extends"].startswith("/")
    assert load_run("mine.json").shared.prompt.length == 16
