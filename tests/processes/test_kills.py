"""A job killed at any instant ends with the bytes it would have reached (same grid, threads, versions and processor)."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from tests.support.processes import finish, member_files, python, start, wait_for, write_run
from tests.support.tiny import make_backbone, make_copa, make_texts, run_json

pytestmark = pytest.mark.processes

STEPS = 60


def make_job(folder, **train):
    members = [
        {"name": "deep", "prompt": {"length": 5, "dropout": 0.2}},
        {
            "name": "choice",
            "task": "copa",
            "data": {"path": str(make_copa(folder / "copa"))},
            "prompt": {"length": 2, "reparameterisation": "mlp", "projection_width": 8},
            "train": {"seed": 12},
        },
        {"name": "head", "method": "head", "prompt": {"dropout": 0.2}, "train": {"patience": 5}},
    ]
    train = {"max_steps": STEPS, "eval_steps": 5, "log_steps": 2, "checkpoint_steps": 4, **train}
    raw = run_json(make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts"), train=train)
    raw["backbone"]["dtype"] = "float32"
    return write_run(folder / "run.json", {**raw, "fleet": {"members": members}})


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(
            {"backbone_dropout": True, "activation_checkpointing": True}, id="backbone dropout, checkpointing"
        ),
        pytest.param({"backbone_dropout": False}, id="no backbone dropout"),
    ],
)
def test_a_killed_job_ends_with_the_bytes_of_one_left_alone(tmp_path, train):
    """Killed before the first checkpoint, at chance steps, inside saves, and while results are written."""
    config = make_job(tmp_path, **train)
    code, output = finish(*python("--config", config, "--output", tmp_path / "whole"))
    assert code == 0, output
    expected = member_files(tmp_path / "whole")
    assert len(expected) == 3 * 3

    killed = tmp_path / "killed"
    metrics = killed / "members" / "deep" / "metrics.jsonl"
    chance = random.Random(str(train))

    def has_lines(more):
        goal = (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) + more
        return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= goal

    def saves():
        for left in (killed / "checkpoints").glob(".step-*.tmp"):
            shutil.rmtree(left)
        return lambda: any((killed / "checkpoints").glob(".step-*.tmp/*"))

    def is_writing_results():
        return any(killed.glob("members/*/prompt"))

    # Each is told when its process starts.
    instants = [
        lambda: has_lines(1),
        lambda: has_lines(chance.randint(2, 12)),
        saves,
        lambda: is_writing_results,
    ]
    for instant in instants:
        process = start(*python("--config", config, "--output", killed))
        assert wait_for(process, instant()), "the job was too quick to be killed"
        os.killpg(process.pid, 9)
        process.communicate()
    assert not (killed / "result.json").exists()

    code, output = finish(*python("--config", config, "--output", killed, "--resume"))
    assert code == 0, output
    assert "continuing from" in output
    found = member_files(killed)
    assert set(found) == set(expected)
    for name, content in expected.items():
        assert found[name] == content, name
