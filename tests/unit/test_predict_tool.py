"""`promptfleet predict` as a tool among others: columns, pipes, links, interruptions, bad rows."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from launcher import cli
from launcher.verbs import predict as verb
from model_parallel.grid import Grid
from prompt_tuning.data.stream import open_source
from prompt_tuning.errors import UserError
from prompt_tuning.predict import AttachedPrompts, attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.storage.lines import find_target, json_line
from prompt_tuning.tasks.find import find_task
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_questions, make_tags, make_texts, run_json, write_jsonl

ROWS = [{"id": i, "text": f"w{i} w{2 * i + 1}"} for i in range(7)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Untrained prompts on one backbone: of texts, of other texts (another seed), of tags and of questions."""
    folder = tmp_path_factory.mktemp("prompts")
    backbone = make_backbone(folder / "backbone", "bert")
    texts = make_texts(folder / "texts")
    runs = {
        "texts": run_json(backbone, texts),
        "others": run_json(backbone, texts, train={"seed": 5}),
        "tags": run_json(backbone, make_tags(folder / "tags"), task={"kind": "tagging", "name": "tags"}),
        "questions": run_json(
            backbone,
            make_questions(folder / "questions"),
            task={"kind": "span", "name": "questions", "has_null": True},
            data={"stride": 4, "max_length": 20},
        ),
    }
    for name, raw in runs.items():
        export_member(folder / "prompts" / name, build_fleet(resolve(raw, folder / "run.json"), Grid()).members[0])
    return folder / "prompts"


def predict(prompts, *arguments, name="texts"):
    return cli.main(["predict", "--prompt", str(prompts / name), *map(str, arguments)])


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_predictions_of_unlabelled_rows_have_their_own_names(prompts, tmp_path):
    source, output = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    assert predict(prompts, "--input", source, "--output", output) == 0
    assert [list(row) for row in read(output)] == [["id", "text", "label", "probabilities"]] * 7
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_a_column_of_any_row_is_kept_and_the_prediction_has_another_name_in_all(prompts, tmp_path):
    rows = [*ROWS[:3], {**ROWS[3], "label": "by hand", "predicted_probabilities": 1, "probabilities": None}]
    source, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert predict(prompts, "--input", source, "--output", output) == 0
    found = read(output)
    assert found[3].items() >= rows[3].items()
    new = {"predicted_label", "predicted_predicted_probabilities"}
    assert [set(row) - set(own) for row, own in zip(found, rows, strict=True)] == [new] * 4


def test_a_file_can_be_its_own_output_again_and_again(prompts, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": "class1"} for row in ROWS])
    for _ in range(2):
        assert predict(prompts, "--input", file, "--output", file) == 0
    first = read(file)[0]
    assert list(first) == [
        "id", "text", "label", "predicted_label", "probabilities", "predicted_predicted_label", "predicted_probabilities",
    ]  # fmt: skip
    assert first["label"] == "class1" and len(read(file)) == 7


def test_the_target_of_a_link_is_written_and_the_link_stays(prompts, tmp_path):
    source, link = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "link"
    (tmp_path / "there").mkdir()
    link.symlink_to(tmp_path / "there" / "real.jsonl")
    assert predict(prompts, "--input", source, "--output", link) == 0
    assert link.is_symlink() and len(read(tmp_path / "there" / "real.jsonl")) == 7
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["real.jsonl"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("none/out.jsonl", "there is no folder"),
        ("folder", "a folder; give a file in it, such as"),
        ("rows.jsonl/out.jsonl", "is not a folder"),
        ("x" * 300, "too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_backbone_is_loaded(
    prompts, tmp_path, capsys, monkeypatch, output, message
):
    monkeypatch.setattr("prompt_tuning.predict.attach", lambda *_: pytest.fail("the backbone was loaded"))
    (tmp_path / "folder").mkdir()
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert predict(prompts, "--input", source, "--output", tmp_path / output) == 1
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / output) in error and error.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "rows.jsonl"]


@pytest.mark.parametrize("bad", [{"txt": "w1"}, {"text": 3}, {"text": "\ud83d"}])
def test_a_bad_row_is_named_by_file_and_line_before_the_backbone_is_loaded(prompts, tmp_path, capsys, monkeypatch, bad):
    monkeypatch.setattr("prompt_tuning.predict.attach", lambda *_: pytest.fail("the backbone was loaded"))
    source = tmp_path / "rows.jsonl"
    source.write_text(f"\n{json.dumps(ROWS[0])}\n\n{json.dumps(bad)}\n")
    assert predict(prompts, "--input", source) == 1
    assert f"{source}:4: " in capsys.readouterr().err


def test_rows_in_front_of_a_bad_one_are_answered_first():
    class Model:
        def predict_located(self, rows):
            if any(row["id"] == 5 for _, row in rows):
                raise UserError("row 5")
            return [{"label": row["id"]} for _, row in rows]

    found = []
    with pytest.raises(UserError, match="row 5"):
        for _, answers in verb.answered(Model(), [("", row) for row in ROWS]):
            found += answers
    assert found == [{"label": i} for i in range(5)]


def interrupted_at(monkeypatch, place):
    """Chunks of two rows, and an interruption in front of one of them."""
    monkeypatch.setattr(verb, "CHUNK", 2)
    stock, seen = AttachedPrompts.predict_located, []

    def answer(self, rows, *rest):
        if len(seen) == place:
            raise KeyboardInterrupt
        seen.append(len(rows))
        return stock(self, rows, *rest)

    monkeypatch.setattr(AttachedPrompts, "predict_located", answer)
    return seen


def test_an_interrupted_output_is_kept_and_continued(prompts, tmp_path, capsys, monkeypatch):
    source, output = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    output.write_text("an older one\n")
    assert predict(prompts, "--input", source, "--output", tmp_path / "whole.jsonl") == 0
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert predict(prompts, "--input", source, "--output", output) == 130
    assert "4 of 7 rows are done and kept in" in capsys.readouterr().err and output.read_text() == "an older one\n"
    with (tmp_path / "out.jsonl.partial").open("a") as partial:
        partial.write('{"id": 4, "te')  # what a killed process leaves
    seen = interrupted_at(monkeypatch, 9)
    assert predict(prompts, "--input", source, "--output", output) == 0
    assert "has 4 of 7 rows" in capsys.readouterr().err and seen == [2, 1]
    for found, expected in zip(read(output), read(tmp_path / "whole.jsonl"), strict=True):
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-10)
        assert found["text"] == expected["text"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(("change", "left"), [("row", [2, 2, 1]), ("prompt", [2, 2, 2, 1]), ("columns", [2, 2, 2, 1])])
def test_lines_of_other_rows_or_of_another_prompt_are_not_continued(prompts, tmp_path, monkeypatch, change, left):
    source, output = write_jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert predict(prompts, "--input", source, "--output", output) == 130
    rows = [dict(row) for row in ROWS]
    if change == "row":
        rows[2]["text"] = "w9"
    if change == "columns":
        rows[6]["label"] = "by hand"
    write_jsonl(source, rows)
    seen = interrupted_at(monkeypatch, 9)
    name = "others" if change == "prompt" else "texts"
    assert predict(prompts, "--input", source, "--output", output, name=name) == 0
    assert seen == left and [row["text"] for row in read(output)] == [row["text"] for row in rows]
    assert len({"label", "predicted_label"} & set(read(output)[0])) == 1


def test_a_file_that_only_looks_partial_is_left_alone(prompts, tmp_path, capsys):
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "out.jsonl.partial").write_text("mine")
    assert predict(prompts, "--input", source, "--output", tmp_path / "out.jsonl") == 1
    assert "move it away" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl.partial").read_text() == "mine"


def test_standard_input_and_output_are_dashes(prompts, capsys, monkeypatch):
    text = "id,text\n1,w1 é\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert predict(prompts, "--input", "-", "--format", "csv", "--output", "-") == 0
    assert '"text": "w1 é"' in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "w1"}\n{"text": null}\n')))
    assert predict(prompts, "--input", "-") == 1
    assert "standard input:2: column `text`" in capsys.readouterr().err


def test_named_pipes_are_read_and_written(prompts, tmp_path):
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    found = []
    feed = threading.Thread(target=lambda: write_jsonl(tmp_path / "in", ROWS))
    drain = threading.Thread(target=lambda: found.extend(read(tmp_path / "out")))
    feed.start()
    drain.start()
    assert predict(prompts, "--input", tmp_path / "in", "--output", tmp_path / "out") == 0
    feed.join()
    drain.join()
    assert [row["id"] for row in found] == list(range(7))


def test_a_reader_that_leaves_ends_it_quietly(prompts, tmp_path, capsys):
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    reader, writer = os.pipe()
    os.close(reader)
    assert predict(prompts, "--input", source, "--output", f"/dev/fd/{writer}") == 141
    os.close(writer)
    assert capsys.readouterr().err == ""


def test_words_in_columns_are_tagged_and_their_gold_tags_stay(prompts, tmp_path):
    for name in ("ner.txt", "ner.tsv"):
        (tmp_path / name).write_text("w1\tO\nw5\tB-never-seen\n\nw2\tO\n")
        assert predict(prompts, "--input", tmp_path / name, "--output", tmp_path / "out.jsonl", name="tags") == 0
        found = read(tmp_path / "out.jsonl")
        assert [row["words"] for row in found] == [["w1", "w5"], ["w2"]]
        assert found[0]["tags"] == ["O", "B-never-seen"] and len(found[0]["predicted_tags"]) == 2


def test_questions_in_squads_layout_are_answered(prompts, tmp_path):
    qas = [{"id": str(i), "question": "w1", "answers": []} for i in range(2)]
    value = {"data": [{"paragraphs": [{"context": "w1 w2 w3", "qas": qas}]}]}
    (tmp_path / "test.json").write_text(json.dumps(value))
    assert predict(prompts, "--input", tmp_path / "test.json", "--output", tmp_path / "o", name="questions") == 0
    assert [(row["id"], isinstance(row["answer"], str)) for row in read(tmp_path / "o")] == [("0", True), ("1", True)]


def test_a_file_without_header_keeps_its_first_row(tmp_path):
    (tmp_path / "in_domain_dev.tsv").write_text("a\t1\t\tIt rains.\nb\t0\t*\tRains it.\n")
    with open_source(str(tmp_path / "in_domain_dev.tsv"), find_task("cola")) as source:
        assert [row["sentence"] for _, row in source.rows()] == ["It rains.", "Rains it."]


def test_lines_are_json_in_utf8_whatever_a_row_holds():
    line = json_line({"half": "é\ud83d", "odd": [float("nan"), {"a": float("-inf")}], "fine": 0.5})
    assert line.decode() == '{"half": "\\u00e9\\ud83d", "odd": [null, {"a": null}], "fine": 0.5}\n'


def test_a_row_without_examples_is_answered_by_none(prompts, monkeypatch):
    from prompt_tuning import attach, load_prompt

    model = attach(load_prompt(prompts / "texts"))
    monkeypatch.setattr("prompt_tuning.predict.prediction_rows", lambda *_: [])
    assert model.predict([{"text": "w1"}]) == [{"predictions": []}]


def test_every_row_has_a_list_of_predictions_where_one_needs_it():
    survey = verb.Survey(2, {"predictions", "id"}, is_nested=True)
    answer = {"label": "True"}
    assert verb.merge(("", {"id": 1}), answer, survey) == {"id": 1, "predicted_predictions": [answer]}
    assert verb.merge(("", {}), {"predictions": [answer] * 2}, survey) == {"predicted_predictions": [answer] * 2}


def test_a_descriptor_that_is_not_open_is_refused():
    with pytest.raises(UserError, match="no open file of this number"):
        find_target("/dev/fd/987")


def test_a_backbone_that_is_elsewhere_now_is_asked_for(prompts, tmp_path, monkeypatch):
    exported = load_prompt(prompts / "texts")
    monkeypatch.setitem(exported.manifest["backbone"], "path", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone: no such folder; .* say so by --backbone, or attach\(..., backbone=\)"):
        attach(exported)
