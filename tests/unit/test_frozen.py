"""Runs, checkpoints and prompts that version 0.1.0 wrote still resume, report and predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher import cli
from launcher import run as worker

FROZEN = Path(__file__).parents[1] / "frozen" / "v0.1.0"
EXPECTED = json.loads((FROZEN / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy, in which its relative paths hold."""
    shutil.copytree(FROZEN, tmp_path / "frozen")
    monkeypatch.chdir(tmp_path / "frozen")
    return tmp_path / "frozen"


def test_an_unfinished_run_goes_on_to_the_numbers_it_would_have_had(folder):
    assert worker.main(["--config", "config.json", "--output", "unfinished", "--resume"]) == 0
    for name, expected in EXPECTED["members"].items():
        result = json.loads((folder / "unfinished" / "members" / name / "result.json").read_text())
        assert result["best"]["step"] == expected["best"]["step"]
        assert result["test"] == pytest.approx(expected["test"], abs=1e-9)
        found, whole = (
            load_file(f"{run}/members/{name}/prompt/prompt.safetensors") for run in ("unfinished", "finished")
        )
        for key, tensor in whole.items():
            assert (found[key] - tensor).abs().max() < 1e-6


def test_a_finished_run_is_left_alone(folder, capsys):
    assert worker.main(["--config", "config.json", "--output", "finished"]) == 0
    assert "has finished already" in capsys.readouterr().err


def predictions(capsys, prompt, rows):
    capsys.readouterr()
    assert cli.main(["predict", "--prompt", prompt, "--input", rows, "--output", "out.jsonl"]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", [*EXPECTED["predict"], EXPECTED["tagging"]], ids=lambda case: case["prompt"])
def test_its_prompts_predict_the_same(folder, capsys, case):
    found = predictions(capsys, case["prompt"], case["input"])
    assert len(found) == len(case["predictions"])
    for row, expected in zip(found, case["predictions"], strict=True):
        for key in {"label", "tags"} & set(expected):
            assert row[key] == expected[key]
        assert row.get("probabilities", {}) == pytest.approx(expected.get("probabilities", {}), abs=1e-6)


def test_an_unfinished_run_is_exported(folder):
    assert cli.main(["export", "unfinished", "--output", "exported"]) == 0
    for name, expected in EXPECTED["export_of_unfinished"].items():
        best = json.loads((folder / "exported" / name / "prompt.json").read_text())["best"]
        assert best["step"] == expected["best"]["step"] if "best" in expected else best["step"] == expected["step"]


def test_a_finished_run_is_reported(folder):
    assert cli.main(["report", "finished", "--output", "page"]) == 0
    assert (folder / "page" / "report.csv").read_text() == (FROZEN / "report.csv").read_text()
