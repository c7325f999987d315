"""The benchmarks run, and both of their sides compute the same."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import WORDS, make_backbone, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


def run_step_time(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/step_time.py", "--threads", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def make_boolq(folder: Path) -> Path:
    """Passages of 3 to 47 words, so that batches have padding."""
    passages = [" ".join(WORDS[(7 * i + j) % 60] for j in range(3 + 11 * (i % 5))) for i in range(16)]
    rows = [
        {"question": WORDS[i], "passage": passage, "idx": i, "label": i % 2 == 0} for i, passage in enumerate(passages)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows[:2])
    return folder


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft (extra `bench`) is not installed")
def test_step_time_compares_equal_computations_and_reports_them(tmp_path):
    backbone = make_backbone(tmp_path / "bert", "bert", max_position_embeddings=160)
    data = make_boolq(tmp_path / "BoolQ")
    shape = ["--backbone", str(backbone), "--data", str(data), "--prompt-length", "3", "--batch-size", "8"]
    done = run_step_time(*shape, "--repeats", "1", "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    assert "defaults" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"settings", "versions", "equal_settings", "defaults", "fleet"}
    for section, names in {
        "equal_settings": {"promptfleet", "peft"},
        "defaults": {"promptfleet", "peft"},
        "fleet": {"one_fleet", "separate_runs"},
    }.items():
        found = report[section]
        assert set(found["seconds"]) == set(found["memory_bytes"]) == set(found["all_seconds"]) == names
        assert set(found["time_ratio"]) == {"median", "lower_quartile", "upper_quartile"}
        assert min(found["seconds"].values()) > 0
    # Float32 rounding of a loss near 1 (2e-7 observed); rows, masks, positions or layouts that differ show at 1e-3.
    assert max(report["equal_settings"]["differences"].values()) < 1e-5
    assert report["fleet"]["differences"]["largest_loss"] < 1e-5


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft (extra `bench`) is not installed")
def test_step_time_says_in_one_sentence_what_data_it_lacks(tmp_path):
    done = run_step_time("--data", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "no train.jsonl; set PROMPTFLEET_DATA" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_data_are_measured_first_and_second_and_shared(tmp_path):
    """9,000 rows are kept; the second start reads what the first one has made."""
    backbone = make_backbone(tmp_path / "bert", "bert", max_position_embeddings=160)
    data = make_boolq(tmp_path / "BoolQ")
    command = [sys.executable, "benchmarks/data.py", "--rows", "9000", "--rate-rows", "9000", "--repeats", "1"]
    command += ["--backbone", str(backbone), "--data", str(data), "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "rate, 9000 rows" in done.stdout and report["rate"]["ratio"] > 0
    scale = report["scale"]
    assert scale["kept_bytes"] > 9000 * 4 and scale["members_over_one"] > 0
    for start in ("first_start", "second_start", "8_members"):
        assert 0 < scale[start]["seconds_of_imports"] < scale[start]["seconds_to_first_step"]
