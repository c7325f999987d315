"""Disks that are full or read-only, and files with times of another age: one message, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.support.processes import TIMEOUT_SECONDS, finish, member_files, python, start, wait_for, write_run
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file, and what is made of it on a sound disk."""
    folder = tmp_path_factory.mktemp("disks")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 300, "log_steps": 4, "eval_steps": 50, "checkpoint_steps": 10},
        fleet={"members": [{"name": "deep", "prompt": {"dropout": 0.2}}, {"name": "head", "method": "head"}]},
    )
    config = write_run(folder / "run.json", raw)
    code, output = finish(*python("--config", config, "--output", folder / "whole"))
    assert code == 0, output
    return config, member_files(folder / "whole")


def mount(*options):
    done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else None


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    refusal = "only root may" if os.geteuid() else mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    if refusal:
        pytest.skip(f"no disk can be mounted here: {refusal}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def started(command, run):
    process = start(*command)
    assert wait_for(process, lambda: any((run / "checkpoints").glob("step-*")))
    return process


def fill(folder):
    """Take all that is left, down to the last byte."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while filler.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_ends_the_job_with_one_message_and_loses_nothing(job, disk):
    config, expected = job
    run = disk / "run"
    command = python("--config", config, "--output", run)
    process = started(command, run)
    fill(disk)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert output.count("No space left on device") == 1 and "Traceback" not in output, output
    code, output = finish(*command)
    assert code == 1 and output.count("No space left on device") == 1 and "Traceback" not in output, output
    (disk / "filler").unlink()
    code, output = finish(*command)
    assert code == 0 and "continuing from" in output, output
    assert member_files(run) == expected


def test_a_read_only_disk_is_said_and_times_of_files_mean_nothing(job, disk):
    """The newest checkpoint is the one of the highest step, whatever a clock that jumped has written beside it."""
    config, expected = job
    run = disk / "run"
    command = python("--config", config, "--output", run)
    process = started(command, run)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=TIMEOUT_SECONDS)
    steps = sorted((run / "checkpoints").glob("step-*"))
    for age, path in enumerate([*reversed(steps), run / "run.json", run / ".lock"]):
        os.utime(path, (4e9 - age * 1e9, 4e9 - age * 1e9))
    assert mount("-o", "remount,ro", disk) is None
    code, output = finish(*command)
    assert code == 1 and output.count("Read-only file system") == 1 and "Traceback" not in output, output
    assert mount("-o", "remount,rw", disk) is None
    code, output = finish(*command)
    assert code == 0 and f"continuing from {steps[-1]}" in output, output
    assert member_files(run) == expected
