"""A suite over places: two of Open MPI's, a driver that is killed, and a SLURM array."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.support import slurm
from tests.support.processes import (
    BIN,
    ROOT,
    TIMEOUT_SECONDS,
    environment,
    finish,
    member_files,
    start,
    wait_for,
    write_run,
)
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes
PROMPTFLEET = BIN / "promptfleet"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two run files, and the folder of a suite of four fleets run on this machine, one after another."""
    folder = tmp_path_factory.mktemp("suites")
    backbone, texts = (
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
    )
    train = {"max_steps": 60, "log_steps": 2, "eval_steps": 20, "checkpoint_steps": 10}
    for name, length in (("short", 2), ("long", 5)):
        write_run(
            folder / f"{name}.json", run_json(backbone, texts, train=train, prompt={"length": length, "dropout": 0.2})
        )
    code, output = finish(PROMPTFLEET, "suite", *arguments(folder, folder / "alone"))
    assert code == 0, output
    return folder


def arguments(files, output):
    common = ["--seeds", "2", "--no-baselines", "--fleet-size", "1", "--output", str(output)]
    return [str(files / "short.json"), str(files / "long.json"), *common]


def contents(output):
    return {path: data for fleet in sorted(output.glob("*/run.json")) for path, data in
            ((f"{fleet.parent.name}/{name}", data) for name, data in member_files(fleet.parent).items())}  # fmt: skip


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (Debian: openmpi-bin)")
def test_fleets_run_side_by_side_on_the_hosts_of_a_hostfile(files, tmp_path, monkeypatch):
    """Two names of this machine, which mpirun knows as local."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    (tmp_path / "hosts").write_text(f"localhost slots=1\n{os.uname().nodename} slots=1\n")
    output = tmp_path / "suite"
    options = ["--backend", "mpi", "--hostfile", str(tmp_path / "hosts"), "--export", "OMP_NUM_THREADS"]
    code, text = finish(PROMPTFLEET, "suite", *arguments(files, output), *options)
    assert code == 0, text + "".join(file.read_text() for file in output.glob("*.txt"))
    hosts = {record["hosts"][0] for record in map(json.loads, (output / "starts.jsonl").read_text().splitlines())}
    assert hosts == {"localhost", os.uname().nodename}
    assert contents(output) == contents(files / "alone") and len(contents(output)) == 4 * 3


def test_a_suite_whose_driver_is_killed_continues_to_the_same_bits(files, tmp_path):
    """Its running fleet goes on, is not started twice, and is waited for."""
    output = tmp_path / "suite"
    command = [PROMPTFLEET, "suite", *arguments(files, output)]
    driver = start(*command)
    assert wait_for(driver, lambda: any(output.glob("*/members/*/metrics.jsonl")))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    code, text = finish(*command)
    assert code == 0, text
    assert contents(output) == contents(files / "alone")
    code, text = finish(*command)
    assert code == 0 and "4 of 4 members are done already" in text
    code, text = finish(PROMPTFLEET, "status", output)
    assert code == 0 and "4 runs: 4 finished" in text


def test_a_suite_that_is_asked_to_stop_saves_and_continues(files, tmp_path):
    output = tmp_path / "suite"
    command = [PROMPTFLEET, "suite", *arguments(files, output)]
    driver = start(*command)
    assert wait_for(driver, lambda: any(output.glob("*/members/*/metrics.jsonl")))
    driver.send_signal(signal.SIGTERM)
    text, _ = driver.communicate(timeout=TIMEOUT_SECONDS)
    assert driver.returncode == 75 and "asked to stop; the same command continues" in text, text
    code, text = finish(*command)
    assert code == 0, text
    assert contents(output) == contents(files / "alone")


@pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))
def test_four_fleets_are_a_slurm_array(files, tmp_path):
    output = tmp_path / "suite"
    with slurm.cluster() as cluster:
        both = {**environment(), **cluster, "OMP_NUM_THREADS": "1"}

        def promptfleet(*words):
            done = subprocess.run(
                [PROMPTFLEET, *words], env=both, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        options = ["--backend", "slurm", "--export", "OMP_NUM_THREADS"]
        assert "#SBATCH --array=0-3" in promptfleet("suite", *arguments(files, output), *options, "--dry-run")
        assert "4 fleets are the tasks of SLURM's job" in promptfleet("suite", *arguments(files, output), *options)
        again = promptfleet("suite", *arguments(files, output), *options)
        assert again.count("is in SLURM's queue already") == 4, "nothing is submitted twice"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while "4 runs: 4 finished" not in (shown := promptfleet("status", output)):
            assert time.monotonic() < deadline, shown + "".join(file.read_text() for file in output.glob("slurm-*.txt"))
            time.sleep(1)
    assert contents(output) == contents(files / "alone")
