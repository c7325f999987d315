"""Tools for documents as prompts: `synthesise`, which goes on where it was cut off, and `contexts`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.cli import main
from prompt_tuning.documents import files, synthesise
from prompt_tuning.documents.context import context_ids, context_prompt
from prompt_tuning.documents.files import MANIFEST
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.report.results import export_member
from tests.support.documents import document_run, make_document, make_questions, make_reader, open_backbone
from tests.support.fleets import open_fleet
from tests.support.generation import enlarge, make_passages, make_writer, stock_logits, writing_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    make_reader(folder / "backbone", max_position_embeddings=300)
    make_document(folder / "document.txt")
    return folder


def run_file(place, folder, **sections):
    raw = document_run(place / "backbone", folder / "data", place / "document.txt", **sections)
    (folder / "run.json").write_text(json.dumps(raw))
    return folder / "run.json"


def ask(file, *more):
    return main(["synthesise", str(file), "--passage-tokens", "20", "--questions", "3", *more])


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def test_rows_are_written_once_and_one_in_ten_selects(place, tmp_path, capsys):
    file = run_file(place, tmp_path)
    assert ask(file) == 0
    found = contents(tmp_path / "data")
    assert sorted(found) == ["dev.jsonl", MANIFEST, "train.jsonl"]
    train, dev = (found[name].decode().splitlines() for name in ("train.jsonl", "dev.jsonl"))
    assert len(train) >= 7 * len(dev) > 0 and not set(train) & set(dev)
    assert {json.loads(line)["passage"] for line in train} == set(range(6))
    assert ask(file) == 0 and "are there already" in capsys.readouterr().out
    assert contents(tmp_path / "data") == found
    assert main(["validate", str(file)]) == 0


def test_what_people_have_written_for_dev_stays(place, tmp_path):
    make_questions(tmp_path / "data")
    before = contents(tmp_path / "data")
    assert ask(run_file(place, tmp_path)) == 0
    after = contents(tmp_path / "data")
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"train.jsonl", MANIFEST}


def test_cut_off_it_goes_on_behind_the_last_whole_passage_to_the_same_bytes(place, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert ask(run_file(place, whole)) == 0
    real, asked = synthesise.synthesise, []

    def until_two(backbone, task, encoding, passage, number, asking):
        asked.append(number)
        if len(asked) in (3, 5):  # the third and the fourth passage, the first time
            raise KeyboardInterrupt
        return real(backbone, task, encoding, passage, number, asking)

    monkeypatch.setattr(synthesise, "synthesise", until_two)
    file = run_file(place, broken)
    assert ask(file) != 0
    partial = broken / "data/passages.jsonl.partial"
    kept = partial.read_bytes()
    partial.write_bytes(kept + b'{"passage": 2, "rows": [{"ques')  # as a kill leaves it
    capsys.readouterr()
    assert ask(file) != 0 and asked == [0, 1, 2, 2, 3]
    assert "2 of 6 passages are there from an earlier start" in capsys.readouterr().err
    assert partial.read_bytes().startswith(kept)
    assert len([json.loads(line) for line in partial.read_bytes().splitlines()]) == 3, "the half line is gone"
    partial.write_bytes(partial.read_bytes()[:-1])  # all of a line but its end
    assert ask(file) == 0 and asked == [0, 1, 2, 2, 3, 2, 3, 4, 5]
    assert contents(broken / "data") == contents(whole / "data")


@pytest.mark.parametrize("after", ["dev.jsonl", "train.jsonl"])
def test_cut_off_between_its_files_it_writes_them_as_if_it_had_not_been(place, tmp_path, monkeypatch, after):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert ask(run_file(place, whole)) == 0
    real = files.write_text

    def dies(file, text):
        real(file, text)
        if file.name == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_text", dies)
    assert ask(run_file(place, broken)) != 0 and (broken / "data" / after).exists()
    monkeypatch.undo()
    assert ask(run_file(place, broken)) == 0
    assert contents(broken / "data") == contents(whole / "data")


def test_passages_begun_otherwise_are_not_gone_on_with(place, tmp_path, monkeypatch, capsys):
    file, real = run_file(place, tmp_path), synthesise.synthesise

    def once(backbone, task, encoding, passage, number, asking):
        if number:
            raise KeyboardInterrupt
        return real(backbone, task, encoding, passage, number, asking)

    monkeypatch.setattr(synthesise, "synthesise", once)
    assert ask(file) != 0
    before = contents(tmp_path / "data")
    capsys.readouterr()
    assert ask(file, "--seed", "1") == 1
    assert "was begun from another document, by another model or otherwise; remove it" in capsys.readouterr().err
    assert contents(tmp_path / "data") == before


def test_rows_made_otherwise_are_not_taken_for_these(place, tmp_path, capsys):
    file = run_file(place, tmp_path)
    assert ask(file) == 0
    assert ask(file, "--seed", "1") == 1
    assert "train.jsonl is there, made from another document, by another model or otherwise" in capsys.readouterr().err
    (tmp_path / "data" / MANIFEST).unlink()
    assert ask(file) == 1 and "made not by promptfleet synthesise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "options", "words"),
    [
        ({}, ["--questions", "0"], "--questions 0: give 1 or more"),
        ({}, ["--passage-tokens", "90000"], "--passage-tokens 90000: .* leaves .* beside data.max_length"),
        ({}, ["--set", 'task={"kind": "generation"}'], "the task is of kind 'generation'; synthesise is for kind 'document'"),
        ({}, ["--set", "data.path=null"], "set data.path to the folder"),
        ({"fleet": {"members": [{"name": "a"}, {"name": "b", "task": {"kind": "document", "document": "x"}}]}}, [], "share one"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(place, tmp_path, capsys, sections, options, words):
    assert ask(run_file(place, tmp_path, **sections), *options) == 1
    said = capsys.readouterr().err
    assert re.search(words, said) and not (tmp_path / "data/train.jsonl").exists()


# ---- contexts


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A prompt that starts from the document's first tokens and is hardly trained."""
    from launcher.run import main as train

    folder = tmp_path_factory.mktemp("trained")
    make_questions(folder / "data", count=4)
    init = {"length": 6, "init": {"file": str(place / "document.txt")}}
    file = run_file(place, folder, prompt=init, optimizer={"lr": 1e-12}, train={"epochs": 1})
    assert ask(file) == 0
    assert train(["--config", str(file), "--output", str(folder / "run")]) == 0
    (prompt,) = (folder / "run").glob("members/*/prompt")
    return folder, prompt


def test_contexts_are_what_the_stock_model_says_behind_each(place, trained, tmp_path, capsys):
    folder, prompt = trained
    options = ["--data", str(folder / "data"), "--batch", "2", "--written", "3", "--json", str(tmp_path / "c.json")]
    assert main(["contexts", "--prompt", str(prompt), *options]) == 0
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert list(found) and all(name in table for name in ("no context", "first 6 tokens", "whole document", "prompt"))
    # Nothing was learned, so the prompt is the first six tokens.
    first, own = found["first 6 tokens"], found["prompt"]
    assert own["metrics"] == pytest.approx(first["metrics"], rel=1e-6) and own["num_bytes"] == first["num_bytes"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "backbone")
    text, rows = (place / "document.txt").read_text(), (folder / "data/test.jsonl").read_text().splitlines()
    for name, before in (("no context", ""), ("whole document", text)):
        total, count = 0.0, 0
        for line in rows:
            row = json.loads(line)
            front = tokenizer(f"{before}\n\nQuestion: {row['question']}\nAnswer:")["input_ids"]
            answer = tokenizer(f"{row['answer']}\n", add_special_tokens=False)["input_ids"]
            logs = torch.log_softmax(stock_logits(place / "backbone", None, front + answer, 0), -1)
            places = np.arange(len(front) - 1, len(front) + len(answer) - 1)
            total += logs[places, answer].sum().item()
            count += len(answer)
        assert found[name]["metrics"]["perplexity"] == pytest.approx(np.exp(-total / count), rel=1e-6)
    assert found["whole document"]["num_bytes"] > found["prompt"]["num_bytes"] > found["no context"]["num_bytes"] > 0


def test_a_prompt_is_compared_at_the_positions_it_was_trained_at(place, trained, tmp_path, capsys):
    folder, _ = trained
    sections = {"prompt": {"length": 4, "positions": "from_zero"}}
    fleet = open_fleet(document_run(place / "backbone", folder / "data", place / "document.txt", **sections))
    enlarge(fleet)
    export_member(tmp_path / "prompt", fleet.members[0])
    options = ["--prompt", str(tmp_path / "prompt"), "--data", str(folder / "data")]
    assert main(["evaluate", *options, "--split", "test"]) == 0
    expected = json.loads(capsys.readouterr().out)["metrics"]
    assert main(["contexts", *options, "--batch", "1", "--written", "1", "--json", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())["prompt"]["metrics"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_contexts_are_for_documents_alone(place, tmp_path, capsys):
    raw = writing_run(make_writer(tmp_path / "writer", "llama"), make_passages(tmp_path / "passages"))
    export_member(tmp_path / "prompt", open_fleet(raw).members[0])
    assert main(["contexts", "--prompt", str(tmp_path / "prompt"), "--data", str(tmp_path)]) == 1
    assert "of kind generation, and no document" in capsys.readouterr().err


def test_a_context_is_a_prompt_of_its_own_keys_and_values(place):
    backbone = open_backbone(place / "backbone")
    ids = context_ids(backbone, "w1 w2 w3")
    assert ids.tolist() == backbone.tokenizer("w1 w2 w3")["input_ids"]
    assert context_prompt(backbone, ids).length == 4 and context_prompt(backbone, ids[:0]).length == 0


# ---- join


def test_joined_prompts_are_their_tables_behind_each_other(place, tmp_path, trained, capsys):
    _, one = trained
    raw = document_run(place / "backbone", trained[0] / "data", place / "document.txt", prompt={"length": 4})
    raw["task"]["name"] = "other"
    two = tmp_path / "other"
    export_member(two, open_fleet(raw).members[0])
    assert main(["join", str(one), str(two), "--output", str(tmp_path / "both")]) == 0
    both = load_prompt(tmp_path / "both")
    tables = [load_prompt(folder).prompt.prefix.table() for folder in (one, two)]
    assert (
        torch.equal(both.prompt.prefix.table(), torch.cat(tables))
        and both.prompt.length == both.manifest["length"] == 10
    )
    assert both.task.name == "document-other" and both.decode.stop == ["\n"]
    model = attach(both)
    with torch.no_grad():
        both.prompt.prefix.embedding.mul_(20)
    row = {"question": "Who w3 ?", "answer": "w4"}
    features = model.question(0, [("row", row)]).features
    tokens = features.tokens.tolist()
    written = []
    for _ in range(8):
        table = both.prompt.prefix.table()
        written.append(int(stock_logits(place / "backbone", table, tokens + written, 10)[-1].argmax()))
    expected = model.backbone.tokenizer.decode(written, skip_special_tokens=True).partition("\n")[0].strip()
    assert model.generate(["Who w3 ?"]) == [expected]
    capsys.readouterr()
    for folders, words in (
        ([one], "there is nothing to join it with"),
        ([one, two], "both is there already"),
    ):
        assert main(["join", *map(str, folders), "--output", str(tmp_path / "both")]) == 1
        assert words in capsys.readouterr().err


def test_prompts_of_other_kinds_and_backbones_are_not_joined(place, trained, tmp_path, capsys):
    _, one = trained
    raw = writing_run(make_writer(tmp_path / "writer", "llama"), make_passages(tmp_path / "passages"))
    export_member(tmp_path / "writes", open_fleet(raw).members[0])
    raw = document_run(
        make_reader(tmp_path / "reader", seed=5, max_position_embeddings=300),
        trained[0] / "data",
        place / "document.txt",
    )
    export_member(tmp_path / "foreign", open_fleet(raw).members[0])
    zero = document_run(
        place / "backbone", trained[0] / "data", place / "document.txt", prompt={"positions": "from_zero"}
    )
    export_member(tmp_path / "zero", open_fleet(zero).members[0])
    codes = document_run(place / "backbone", trained[0] / "data", place / "document.txt")
    codes["backbone"] |= {"quantize": "int8", "dtype": "float32"}
    export_member(tmp_path / "codes", open_fleet(codes).members[0])
    for name, words in (
        ("codes", r"or on other weights of it \(quantize\)"),
        ("writes", "of kind generation; prompts of kind 'document' can be joined"),
        ("foreign", "trained on another backbone"),
        ("zero", "its positions is from_zero, and that of .* is after_prefix"),
    ):
        assert main(["join", str(one), str(tmp_path / name), "--output", str(tmp_path / "out")]) == 1
        assert re.search(words, capsys.readouterr().err) and not (tmp_path / "out").exists()
