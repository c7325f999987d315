"""Two ranks and what started them, killed at chance instants, end with the bytes of a run that nobody disturbed."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections import Counter

import psutil
import pytest

from tests.support.processes import (
    TIMEOUT_SECONDS,
    deepspeed,
    finish,
    member_files,
    start,
    torchrun,
    wait_for,
    workers,
    write_run,
)
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes

KILLS = int(os.environ.get("PROMPTFLEET_KILLS", "12"))
"""Each costs a start."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file, and what two undisturbed ranks make of it."""
    folder = tmp_path_factory.mktemp("kills")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 240, "log_steps": 2, "eval_steps": 40, "checkpoint_steps": 3},
        fleet={"members": [{"name": "deep", "prompt": {"dropout": 0.2}}, {"name": "head", "method": "head"}]},
        launch={"timeout_seconds": 10.0},
    )
    config = write_run(folder / "run.json", raw)
    code, output = finish(*torchrun("--config", config, "--output", folder / "whole"))
    assert code == 0, output
    return config, member_files(folder / "whole")


def moment(kind, chance, run):
    """A condition that holds at some instant: of the start, between steps, or inside a save."""
    if kind == "start":
        deadline = time.monotonic() + chance.uniform(0, 8)
        return lambda: time.monotonic() >= deadline
    if kind == "save":
        for left in (run / "checkpoints").glob(".step-*.tmp"):
            shutil.rmtree(left)
        return lambda: any((run / "checkpoints").glob(".step-*.tmp/*"))
    metrics = run / "members" / "deep" / "metrics.jsonl"
    goal = (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) + chance.randint(1, 15)
    return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= goal


def kill(process, victim, chance):
    """SIGKILL for one process of the job, or for all at once."""
    ranks = workers(process)
    if victim == "all" or not ranks:
        targets = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    elif victim == "launcher":
        targets = [next(iter(ranks.values())).parent()]
    else:
        targets = [chance.choice(sorted(ranks.items()))[1]]
    for target in targets:
        target.kill()
    return list(ranks.values())


def test_kills_at_chance_instants_change_no_byte(job, tmp_path):
    """Of the launcher alone, of one rank, of all; a run that ends before its kill is compared, and the next begins anew."""
    config, expected = job
    chance, run, kills = random.Random(5), tmp_path / "run", Counter()
    ways = list(itertools.product(["launcher", "one rank", "all"], ["start", "steps", "save"]))
    chance.shuffle(ways)
    while kills.total() < KILLS:
        launch = chance.choice([torchrun, torchrun, torchrun, deepspeed])
        victim, kind = ways[kills.total() % len(ways)]
        condition = moment(kind, chance, run)
        process, ranks = start(*launch("--config", config, "--output", run)), []
        try:
            if wait_for(process, condition):
                ranks = kill(process, victim, chance)
                kills[victim, kind] += 1
            # The ranks share the pipe: it ends with the last of them, which is soon, or once they have finished.
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
            psutil.wait_procs(ranks, timeout=10)
        finally:
            for rank in ranks:
                if rank.is_running():
                    rank.kill()
        if (run / "result.json").exists():
            assert member_files(run) == expected
            shutil.rmtree(run)
        else:
            # The deepspeed command calls it a success when its launcher of local ranks is killed; the ranks stop and save.
            is_unsaid = launch is deepspeed and victim == "launcher" and "asked to stop: step" in output
            assert process.returncode != 0 or is_unsaid, output
    code, output = finish(*torchrun("--config", config, "--output", run))
    assert code == 0, output
    assert member_files(run) == expected
    assert len(kills) == min(KILLS, len(ways))
