"""Every command of docs/clusters.md, run as it stands there, on two hosts of this machine: all end in equal results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import pytest

from tests.support import slurm, ssh
from tests.support.processes import BIN, ROOT, TIMEOUT_SECONDS, environment

pytestmark = pytest.mark.processes
WHY_NOT = ssh.why_not() or slurm.why_not() or ("mpirun is not installed" if shutil.which("mpirun") is None else None)


def commands():
    """Lines of the page's shell blocks."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def adapt(command):
    """The names of the page's hosts, and a place where ranks of emulated nodes, which have no addresses, can meet."""
    command = re.sub(r"worker-([12])", lambda found: ssh.HOSTS[int(found[1]) - 1], command)
    command = re.sub("^srun", "MASTER_ADDR=127.0.0.1 srun", command)
    return command + " --master-addr 127.0.0.1" if "slurm --nodes" in command else command


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_every_command_of_the_page_runs_and_all_agree(tmp_path):
    """The quick start, shortened."""
    here = tmp_path / "project"
    (here / "configs").mkdir(parents=True)
    short = {
        "extends": str(ROOT / "configs" / "quickstart.json"),
        "train": {"max_steps": 4, "eval_steps": 2},
        "fleet": {"seeds": [11, 12]},
    }
    short["data"] = {"max_train_examples": 60, "max_eval_examples": 20}
    (here / "configs" / "quickstart.json").write_text(json.dumps(short))
    for name, target in (("launcher", ROOT / "launcher"), ("examples", ROOT / "examples"), (".venv", BIN.parent)):
        (here / name).symlink_to(target)
    (here / "hostfile").write_text("".join(f"{host} slots=1\n" for host in ssh.HOSTS))
    with ssh.hosts(tmp_path / "ssh") as over_ssh, slurm.cluster() as cluster:
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        both = {**environment(), **cluster, **allowed, "PATH": f"{BIN}:{over_ssh['PATH']}:{cluster['PATH']}"}
        for command in commands():
            done = subprocess.run(
                ["bash", "-c", adapt(command)],
                cwd=here,
                env=both,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        wait_for_results(here / "runs", both)
    results = {run.parent.name: read(run) for run in (here / "runs").glob("*/result.json")}
    assert {"here", "ssh", "mpi", "mpi-hosts", "slurm", "by-deepspeed", "by-torchrun", "by-mpirun", "by-srun"} == set(
        results
    )
    for name in ("suite", "array"):
        fleets = [read(result) for result in (here / "runs" / name).glob("*/result.json")]
        assert len(fleets) == 2
        results[name] = sorted(member for fleet in fleets for member in fleet)
    assert all(found == results["here"] for found in results.values()), results


def wait_for_results(runs, variables):
    """Until SLURM's queue is empty."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while subprocess.run(["squeue", "--noheader"], env=variables, capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, "".join(file.read_text() for file in runs.rglob("*slurm-*.txt"))
        time.sleep(0.5)


def read(result):
    """Method, seed, test accuracy and best loss of the members, to the digits that the number of ranks leaves alone."""
    members = json.loads(result.read_text())["members"]
    return sorted((m["method"], m["seed"], m["test"]["accuracy"], round(m["best_loss"], 4)) for m in members)
