"""The worker under real schedulers: Open MPI, pdsh over ssh, and SLURM, on two emulated nodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from launcher.clusters.hostfile import expand_nodes
from tests.support import slurm, ssh
from tests.support.processes import (
    BIN,
    ROOT,
    TIMEOUT_SECONDS,
    finish,
    member_files,
    python,
    start,
    torchrun,
    wait_for,
    write_run,
)
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes
needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (Debian: openmpi-bin)")
needs_ssh = pytest.mark.skipif(ssh.why_not() is not None, reason=str(ssh.why_not()))
needs_slurm = pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file, and the folder of its run in one process."""
    folder = tmp_path_factory.mktemp("clusters")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 40, "log_steps": 2, "eval_steps": 20, "checkpoint_steps": 20},
        fleet={"members": [{"name": "deep", "prompt": {"dropout": 0.2}}, {"name": "head", "method": "head"}]},
    )
    config = write_run(folder / "run.json", raw)
    code, output = finish(*python("--config", config, "--output", folder / "one"))
    assert code == 0, output
    return config, folder / "one"


def submit(*arguments, environment):
    return subprocess.run(
        [str(BIN / "promptfleet"), "submit", *map(str, arguments)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip


def assert_equal_runs(found, expected, ranks):
    assert json.loads((found / "environment.json").read_text())["world_size"] == ranks
    for member in ("deep", "head"):
        results = [json.loads((run / "members" / member / "result.json").read_text()) for run in (found, expected)]
        assert results[0]["best"] == results[1]["best"] and results[0]["test"] == results[1]["test"]
        ours, theirs = (
            load_file(run / "members" / member / "prompt" / "prompt.safetensors") for run in (found, expected)
        )
        assert all((ours[name] - tensor).abs().max() < 1e-8 for name, tensor in theirs.items())


@needs_mpi
def test_mpi_ranks_equal_one_process(job, tmp_path):
    config, one = job
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = submit(config, "--backend", "mpi", "--ranks", 2, "--output", tmp_path / "run", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_runs(tmp_path / "run", one, 2)


@needs_ssh
def test_two_hosts_over_ssh_equal_one_process(job, tmp_path):
    """In a folder whose name would be a command on both hosts, if a shell could take it for one."""
    config, one = job
    folder = tmp_path / "it's $(touch pwned) `touch pwned`; %h %n \"&\n"
    folder.mkdir()
    shutil.copy(config, folder / "run.json")
    (tmp_path / "hosts").write_text("".join(f"{host} slots=1 # fast\n" for host in ssh.HOSTS))
    with ssh.hosts(tmp_path / "ssh") as environment:
        placed = ["--backend", "deepspeed", "--hostfile", tmp_path / "hosts", "--export", "PROMPTFLEET_TEST"]
        environment |= {"PROMPTFLEET_TEST": "$(touch pwned)", "MLFLOW_TRACKING_TOKEN": "of mine"}
        process = subprocess.Popen(
            [str(BIN / "promptfleet"), "submit", *map(str, [folder / "run.json", *placed, "--output", folder / "run"])],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        variables = ranks_environment(process)
        printed, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0, printed
    assert all(f"{host}: " in printed for host in ssh.HOSTS)
    assert_equal_runs(folder / "run", one, 2)
    assert variables["PROMPTFLEET_TEST"] == "$(touch pwned)" and "MLFLOW_TRACKING_TOKEN" not in variables
    assert not [place for place in (ROOT, Path.home(), tmp_path) if (place / "pwned").exists()]


@pytest.mark.parametrize(
    ("backend", "number"),
    [
        ("local", signal.SIGINT),
        pytest.param("mpi", signal.SIGTERM, marks=needs_mpi),
        pytest.param("deepspeed", signal.SIGUSR1, marks=needs_ssh),
    ],
)
def test_a_driver_that_is_asked_to_stop_has_its_ranks_save_their_step(job, tmp_path, backend, number):
    """Whatever the launcher between them does with signals."""
    config, _ = job
    raw = json.loads(config.read_text())
    raw["train"].update(max_steps=4000, eval_steps=4000, checkpoint_steps=4000, log_steps=4)
    longer = write_run(tmp_path / "longer.json", raw)
    (tmp_path / "hosts").write_text("".join(f"{host} slots=1\n" for host in ssh.HOSTS))
    placed = ["--hostfile", str(tmp_path / "hosts")] if backend == "deepspeed" else ["--ranks", "2"]
    with ssh.hosts(tmp_path / "ssh") if backend == "deepspeed" else contextlib.nullcontext({}) as variables:
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        submit = [BIN / "promptfleet", "submit", longer, "--backend", backend, *placed, "--output", tmp_path / "run"]
        process = start(*submit, **{**variables, **allowed})
        metrics = tmp_path / "run" / "members" / "deep" / "metrics.jsonl"
        assert wait_for(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    (step,) = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert 0 < step < 4000 and f"asked to stop: step {step} is saved" in output, output
    assert "asked to stop; waiting for the ranks to save their step" in output
    assert process.returncode not in (0, -number)


def ranks_environment(process):
    """The variables of a rank that some host runs for a test."""
    found = {}

    def look():
        for rank in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    rank.name().startswith("python")
                    and "PROMPTFLEET_TEST" in rank.environ()
                    and "RANK" in rank.environ()
                ):
                    found.update(rank.environ())
        return bool(found)

    assert wait_for(process, look)
    return found


@pytest.fixture(scope="module")
def cluster():
    """Emulated nodes have no addresses of their own, so ranks are told to meet on this machine."""
    with slurm.cluster() as environment:
        yield {**environment, "OMP_NUM_THREADS": "1"}


def printed(folder, job):
    file = folder / f"run.slurm-{job}.txt"
    return file.read_text() if file.exists() else "nothing"


@needs_slurm
@pytest.mark.parametrize("nodes", ["node[1-2]", "gpu[01-03,7],login", "r[1-2]n[0,3]", "n[9-11]", "a,b-2.c"])
def test_node_lists_mean_what_slurm_means_by_them(cluster, nodes):
    shown = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], env=cluster, capture_output=True, text=True, check=True
    )
    assert expand_nodes(nodes) == shown.stdout.split()


@needs_slurm
def test_a_slurm_job_on_two_nodes_equals_one_process(job, cluster, tmp_path):
    config, one = job
    done = submit(config, "--backend", "slurm", "--nodes", 2, "--ranks", 2, "--master-addr", "127.0.0.1",
                  "--output", tmp_path / "run", environment=cluster)  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip().splitlines()[-1]
    fields = slurm.wait_for_job(number, cluster)
    assert fields["JobState"] == "COMPLETED", printed(tmp_path, number)
    assert_equal_runs(tmp_path / "run", one, 2)


@needs_slurm
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_slurm_job_that_is_told_to_make_room_is_requeued_and_ends_in_the_same_bits(job, cluster, tmp_path, ranks):
    """SIGUSR1, as SLURM sends it before the time limit: saved, requeued, continued, completed.

    The first of several ranks to end has srun end the others, which must not change what the job has to say.
    """
    config, _ = job
    raw = json.loads(config.read_text())
    raw["train"].update(max_steps=600, eval_steps=300, checkpoint_steps=300, log_steps=4)
    longer = write_run(tmp_path / "longer.json", raw)
    launch = python if ranks == 1 else torchrun
    code, output = finish(*launch("--config", longer, "--output", tmp_path / "whole"))
    assert code == 0, output
    # The bits are those of one thread a rank.
    placed = [
        "--nodes",
        ranks,
        "--sbatch",
        "cpus-per-task=1",
        "--export",
        "OMP_NUM_THREADS",
        "--master-addr",
        "127.0.0.1",
    ]
    done = submit(longer, "--backend", "slurm", *placed, "--output", tmp_path / "run", environment=cluster)
    number = done.stdout.strip().splitlines()[-1]
    metrics = tmp_path / "run" / "members" / "deep" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline, printed(tmp_path, number)
        time.sleep(0.05)
    subprocess.run(["scancel", "--signal", signal.Signals.SIGUSR1.name, number], env=cluster, check=True)
    while "asked to stop" not in printed(tmp_path, number):
        assert time.monotonic() < deadline, printed(tmp_path, number)
        time.sleep(0.1)
    # A requeued job waits two minutes before it may start; its begin time is moved here. Not to this second:
    # a node refuses a start whose credential is no newer than the end of the one before.
    for _ in range(100):
        if (
            subprocess.run(
                ["scontrol", "update", f"jobid={number}", "starttime=now+3"], env=cluster, capture_output=True
            ).returncode
            == 0
        ):
            break
        time.sleep(0.2)
    fields = slurm.wait_for_job(number, cluster)
    assert fields["JobState"] == "COMPLETED" and fields["Restarts"] == "1", f"{fields}\n{printed(tmp_path, number)}"
    assert member_files(tmp_path / "run") == member_files(tmp_path / "whole")
