"""Jobs that are asked to stop, that meet in one folder, or whose ranks fall silent."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from launcher.ranks.exit_codes import STOPPED
from tests.support.processes import (
    TIMEOUT_SECONDS,
    bare_ranks,
    deepspeed,
    finish,
    free_port,
    member_files,
    python,
    start,
    torchrun,
    wait_for,
    workers,
    write_run,
)
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file of many short steps, and the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp("watch")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 400, "log_steps": 4, "eval_steps": 100, "checkpoint_steps": 100},
        fleet={"members": [{"name": "deep", "prompt": {"dropout": 0.2}}, {"name": "head", "method": "head"}]},
        launch={"timeout_seconds": 15.0},
    )
    config = write_run(folder / "run.json", raw)
    code, output = finish(*python("--config", config, "--output", folder / "one"))
    assert code == 0, output
    return config, folder / "one"


def started(process, folder):
    """Wait until the run has logged a step."""
    metrics = folder / "members" / "deep" / "metrics.jsonl"
    assert wait_for(process, lambda: metrics.exists() and metrics.stat().st_size > 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_asked_to_stop_saves_its_step_and_continues_to_the_same_bits(job, tmp_path, number):
    config, one = job
    command = python("--config", config, "--output", tmp_path / "run")
    process = start(*command)
    started(process, tmp_path / "run")
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == STOPPED, output
    (step,) = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert step % 100 and f"asked to stop: step {step} is saved" in output
    code, output = finish(*command)
    assert code == 0 and f"step-{step:06d}" in output, output
    assert member_files(tmp_path / "run") == member_files(one)


@pytest.mark.parametrize("moment", ["while libraries load", "while the backbone loads"])
def test_a_job_that_is_asked_to_stop_before_it_trains_ends_at_once(job, tmp_path, moment):
    config, one = job
    command = python("--config", config, "--output", tmp_path / "run")
    process = start(*command)
    maps, lock = Path(f"/proc/{process.pid}/maps"), tmp_path / "run" / ".lock"
    assert wait_for(process, lock.exists if "backbone" in moment else lambda: "libtorch" in maps.read_text())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM and "asked to stop before training began" in output, output
    assert "Traceback" not in output and not (tmp_path / "run" / "checkpoints").exists()
    code, output = finish(*command)
    assert code == 0, output
    assert member_files(tmp_path / "run") == member_files(one)


def test_ranks_agree_on_where_to_stop(job, tmp_path):
    """The signal reaches one of two ranks only."""
    config, _ = job
    process = start(*torchrun("--config", config, "--output", tmp_path / "run"))
    started(process, tmp_path / "run")
    workers(process)[1].send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert "asked to stop: step" in output, output
    code, output = finish(*torchrun("--config", config, "--output", tmp_path / "run"))
    assert code == 0 and "continuing from" in output, output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.kill, signal.SIGKILL), (os.killpg, signal.SIGTERM)]
)
def test_ranks_that_deepspeed_leaves_behind_save_their_step(job, tmp_path, send, number):
    """Its command passes no signal on: its ranks would train on with nobody to end them. And its launcher of local ranks
    passes one on that they have had already, where all processes of the job are signalled."""
    config, _ = job
    process = start(*deepspeed("--config", config, "--output", tmp_path / "run"))
    started(process, tmp_path / "run")
    send(process.pid, number)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == -number and "asked to stop: step" in output, output
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_rank_that_hangs_is_named_with_its_host_and_ends_the_job(job, tmp_path):
    config, _ = job
    process = start(*torchrun("--config", config, "--output", tmp_path / "run"))
    started(process, tmp_path / "run")
    hung = workers(process)[1]
    hung.send_signal(signal.SIGSTOP)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode != 0
    assert f"rank 1 on {socket.gethostname()} has not answered for" in output, output
    assert not psutil.pid_exists(hung.pid) or hung.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_ranks_without_a_launcher_name_the_one_that_hangs_or_dies(job, tmp_path, victim, number):
    """Whether or not it keeps the store that they watch each other by."""
    config, _ = job
    limit = ("--set", "launch.timeout_seconds=8")
    ranks = bare_ranks("--config", config, "--output", tmp_path / "run", *limit)
    try:
        started(ranks[1], tmp_path / "run")
        ranks[victim].send_signal(number)
        output, _ = ranks[1 - victim].communicate(timeout=TIMEOUT_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[1 - victim].returncode == 1
    fate = "has not answered for" if number == signal.SIGSTOP else ("is gone" if victim == 0 else "died without a word")
    (line,) = [line for line in output.splitlines() if "error:" in line]
    assert f"error: rank {victim} on {socket.gethostname()}" in line and fate in line, output
    assert "Traceback" not in output and "frame #" not in output, output


ELSEWHERE = """
import sys, time
from launcher import run
if sys.argv[1] == "elsewhere":
    run.train_in_folder = lambda *_: time.sleep(600)
sys.exit(run.main(sys.argv[2:]))
"""


def test_a_rank_that_is_alive_but_does_not_come_where_the_others_wait_is_named(job, tmp_path):
    """As one that waits for a disk: its other threads go on telling that it runs."""
    config, _ = job
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    options = ["--config", config, "--output", tmp_path / "run", "--set", "launch.timeout_seconds=8"]
    ranks = [
        start(sys.executable, "-c", ELSEWHERE, where, *options, RANK=rank, LOCAL_RANK=rank, **meeting)
        for rank, where in (("0", "here"), ("1", "elsewhere"))
    ]
    outputs = [rank.communicate(timeout=TIMEOUT_SECONDS)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], outputs
    assert f"error: rank 1 on {socket.gethostname()} did not come where the others wait, though alive" in outputs[0], (
        outputs
    )


def test_a_rank_that_does_not_come_is_named(job, tmp_path):
    config, _ = job
    first, second = bare_ranks("--config", config, "--output", tmp_path / "run", "--set", "launch.timeout_seconds=20")
    second.kill()
    second.wait()
    output, _ = first.communicate(timeout=TIMEOUT_SECONDS)
    assert first.returncode == 1
    assert f"error: rank 1 of 2 did not come within 20 s; the others are on {socket.gethostname()}" in output, output


def test_a_second_job_in_one_folder_is_refused_with_the_owners_name(job, tmp_path):
    config, _ = job
    command = python("--config", config, "--output", tmp_path / "run")
    process = start(*command)
    started(process, tmp_path / "run")
    process.send_signal(signal.SIGSTOP)
    code, output = finish(*command)
    assert code == 1
    assert f"is in use by process {process.pid} on {socket.gethostname()} since" in output, output
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, output = finish(*command)
    assert code == 0, "a killed job leaves no lock behind\n" + output


def test_an_error_that_one_rank_alone_meets_is_said_with_its_name(job, tmp_path):
    """The second of two ranks of a host has no backbone; the first waits for it in vain. Both without: said once."""
    raw = json.loads(job[0].read_text())
    raw["backbone"]["path"] = "./backbone"
    config = write_run(tmp_path / "run.json", raw)
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    (tmp_path / "with" / "backbone").symlink_to(job[0].parent / "backbone")
    command = ("--config", config, "--output", tmp_path / "run")
    for places in (("with", "without"), ("without", "without")):
        ranks = bare_ranks(*command, places=[tmp_path / place for place in places])
        said = "".join(rank.communicate(timeout=TIMEOUT_SECONDS)[0] for rank in ranks)
        assert all(rank.returncode == 1 for rank in ranks), said
        lines = [line for line in said.splitlines() if "no such folder" in line]
        assert len(lines) == 1 and (
            places[0] == "without" or f"[rank 1 on {socket.gethostname()}] error:" in lines[0]
        ), said
        assert "Traceback" not in said
        if places[0] == "with":
            assert f"rank 1 on {socket.gethostname()} ended; the message above or below says why" in said
