"""Training out of Python: rows that a program holds, run folders that go on, and the curve of a notebook."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pyarrow
import pytest

import prompt_tuning
from prompt_tuning import trainer
from prompt_tuning.data.frames import as_lines
from prompt_tuning.errors import UserError
from prompt_tuning.report.curve import Curve, open_progress
from prompt_tuning.settings.members import resolve
from prompt_tuning.storage.lock import locked
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    make_backbone(folder / "backbone", "bert")
    make_texts(folder / "data")
    return folder


def settings(place, **sections):
    raw = run_json(place / "backbone", place / "data", **sections)
    del raw["data"]["path"]
    return raw


def rows_of(place):
    return {
        split: [json.loads(line) for line in (place / "data" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "dev", "test")
    }


def test_rows_of_a_program_train_as_those_of_files(place, tmp_path):
    held = prompt_tuning.train(settings(place), rows_of(place), tmp_path / "held")
    read = prompt_tuning.train(run_json(place / "backbone", place / "data"), output=tmp_path / "read")
    (name,) = held.members
    assert held[name]["test"] == read[name]["test"] is not None and held[name]["best"] == read[name]["best"]
    first, second = (own.prompts(name)[0].prompt.state_dict() for own in (held, read))
    assert all(np.array_equal(first[key], second[key]) for key in first) and first
    assert held.attach().predict(rows_of(place)["test"]) == read.attach(name).predict(rows_of(place)["test"])
    assert name in held._repr_html_() and "accuracy" in held._repr_html_()
    with pytest.raises(UserError, match=f"no member 'other'; it has {name}"):
        held.prompts("other")


def test_frames_tables_and_datasets_hold_the_rows_that_lists_do():
    lists = [{"text": "a", "label": "no", "n": None}, {"text": "b", "label": "yes", "n": 2}]
    expected = as_lines({"train": lists})
    frame = pandas.DataFrame(
        {"text": ["a", "b"], "label": ["no", "yes"], "n": pandas.array([None, 2], "Int64")}, index=[7, 3]
    )
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["yes", "no"]),
            "n": datasets.Value("int64"),
        }
    )
    classes = datasets.Dataset.from_list(
        [{**row, "label": ["yes", "no"].index(row["label"])} for row in lists], features
    )
    assert as_lines({"train": frame}) == expected
    assert as_lines({"train": classes}) == expected
    assert as_lines({"train": pyarrow.Table.from_pylist(lists)}) == expected
    assert as_lines({"train": iter(lists)}) == expected
    assert as_lines(datasets.DatasetDict({"validation": classes})) == {"dev": expected["train"]}
    numbers = [{"words": np.array(["x", "y"]), "label": np.int64(1), "nan": float("nan")}]
    assert as_lines({"train": numbers})["train"] == b'{"words": ["x", "y"], "label": 1, "nan": null}\n'


@pytest.mark.parametrize(
    "data, words",
    [
        ({}, "data holds no splits"),
        ({"unsupervised": [{"a": 1}]}, "'unsupervised' is no split"),
        ({"val": [{"a": 1}], "dev": [{"a": 1}]}, "name a split twice"),
        ({"train": []}, "train has no rows"),
        ({"train": "rows.jsonl"}, "train is str"),
        ({"train": {"text": ["a"]}}, "train is dict"),
        ({"train": [["a", "b"]]}, "row 1 is no object"),
        ({"train": pandas.DataFrame({"a": [1, "x", [2]]})}, "values of several kinds"),
    ],
)
def test_what_is_no_row_is_said(data, words):
    with pytest.raises(UserError, match=words):
        as_lines(data)


def test_a_run_that_has_finished_is_read_and_other_rows_are_refused(place, tmp_path, monkeypatch):
    raw, rows = settings(place, train={"max_steps": 3}), rows_of(place)
    first = prompt_tuning.train(raw, rows, tmp_path / "run")
    others = {**rows, "dev": rows["dev"][:-1]}
    with pytest.raises(UserError, match="holds other rows"):
        prompt_tuning.train(raw, others, tmp_path / "run")
    with pytest.raises(UserError, match="other settings"):
        prompt_tuning.train(settings(place, train={"max_steps": 4}), rows, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("prompt_tuning.python.train_run", None)
        assert prompt_tuning.train(raw, rows, tmp_path / "run").result == first.result
    again = prompt_tuning.train(raw, others, tmp_path / "run", fresh=True)
    assert again[again.members[0]]["best"] and (tmp_path / "run.old-1" / "result.json").exists()
    assert (tmp_path / "run.old-1" / "data" / "dev.jsonl").read_text().count("\n") == len(rows["dev"])


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(place, tmp_path, monkeypatch):
    raw, rows = settings(place, train={"max_steps": 6, "checkpoint_steps": 2}), rows_of(place)
    whole = prompt_tuning.train(raw, rows, tmp_path / "whole")
    step, calls = trainer._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prompt_tuning.train(raw, rows, tmp_path / "cut")
    cut = prompt_tuning.train(raw, rows, tmp_path / "cut")
    first, second = (own.prompts()[0].prompt.state_dict() for own in (whole, cut))
    assert all(np.array_equal(first[key], second[key]) for key in first) and first


def test_what_one_process_cannot_do_is_said_before_anything_is_written(place, tmp_path):
    rows = rows_of(place)
    for sections, data, words in (
        ({"parallel": {"tensor": 2}}, rows, "started by a launcher"),
        ({"parallel": {"zero": True}}, rows, "started by a launcher"),
        ({"data": {"path": "elsewhere"}}, rows, "settings name data too"),
    ):
        with pytest.raises(UserError, match=words):
            prompt_tuning.train({**settings(place), **sections}, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(UserError, match="in use by"):
        prompt_tuning.train(settings(place), rows, tmp_path / "run")


def test_a_file_is_settings_too(place, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(run_json(place / "backbone", place / "data", train={"max_steps": 1})))
    trained = prompt_tuning.train(file, output=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record == json.loads(json.dumps(resolve(json.loads(file.read_text()), file, output="x").to_json()))
    assert trained.folder == tmp_path / "run" and json.loads((tmp_path / "run" / "environment.json").read_text())


# ---- the curve


def test_people_in_a_notebook_see_a_curve(monkeypatch):
    assert not isinstance(open_progress(9, 0, visible=True), Curve)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert isinstance(open_progress(9, 0, visible=True), Curve)
    assert not isinstance(open_progress(9, 0, visible=False), Curve)
    del shell.kernel
    assert not isinstance(open_progress(9, 0, visible=True), Curve), "a terminal"


def test_the_curve_has_a_line_for_each_member_and_its_newest_evaluation(monkeypatch):
    drawn = []
    monkeypatch.setattr(Curve, "_draw", lambda self: drawn.append(self.page()))
    member = SimpleNamespace(name="<a>", step=5, total_steps=10, best=None)
    with Curve(10, 0) as curve:
        for step in range(1, 6):
            curve.show(step, {"<a>": 4.0 / step, "b": 1.0})
        curve.evaluated(member, {"accuracy": 0.5})
    page = drawn[-1]
    assert page.count("<polyline") == 2 and "&lt;a&gt; accuracy 0.5000" in page and "<a>" not in page
    first = page.split('points="')[1].split('"')[0].split()
    assert first[0].endswith(",12.0") and len(first) == 5, "the largest loss is at the top"
    assert "5 of 10" in page and "left" in page
