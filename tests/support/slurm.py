"""A SLURM cluster of two emulated nodes on this machine, from Debian's programs, for root; started and stopped by a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
START_SECONDS = 60


def why_not() -> str | None:
    """Why no cluster can be started here; None: it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "emulated nodes need root"


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(nodes: int = 2, cpus: int = 2) -> Iterator[dict[str, str]]:
    """A running cluster; yields the environment in which its commands work."""
    # A socket's path may have 107 characters, of which a test's own folder takes most.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder,
        _in(Path(folder), nodes, cpus) as found,
    ):
        yield found


@contextmanager
def _in(folder: Path, nodes: int, cpus: int) -> Iterator[dict[str, str]]:
    host = socket.gethostname().partition(".")[0]
    key, munge_socket, log = folder / "munge.key", folder / "munge.socket", folder / "daemons.log"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for name in ("state", *(f"spool-node{i + 1}" for i in range(nodes))):
        (folder / name).mkdir(exist_ok=True)
    lines = [
        "ClusterName=emulated",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={_port()}",
        f"FirstJobId={_port()}",  # ranks meet on a port that follows from it: not that of another test's cluster
        "AuthType=auth/munge",
        f"AuthInfo=socket={munge_socket}",
        "CredType=cred/munge",
        "SlurmUser=root",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "MpiDefault=none",
        "MinJobAge=3600",
        *(
            f"NodeName=node{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={_port()} CPUs={cpus} State=UNKNOWN"
            for i in range(nodes)
        ),
        f"PartitionName=all Nodes=node[1-{nodes}] Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}",
    }
    daemons = [
        ["munged", "--foreground", "--force", "--key-file", str(key), "--socket", str(munge_socket),
         "--pid-file", str(folder / "munged.pid"), "--log-file", str(folder / "munged.log"), "--seed-file", str(folder / "munged.seed")],
        ["slurmctld", "-D", "-i"],
        *(["slurmd", "-D", "-N", f"node{i + 1}"] for i in range(nodes)),
    ]  # fmt: skip
    running = []
    try:
        with log.open("w") as output:
            for command in daemons:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
                )
                if command[0] == "munged":
                    _wait(munge_socket.exists, log)
        _wait(lambda: _idle(environment) == nodes, log)
        yield environment
    finally:
        subprocess.run(["scancel", "--user", "root", "--full", "--signal", "KILL"], env=environment, check=False)
        subprocess.run(["scancel", "--user", "root"], env=environment, check=False)
        deadline = time.monotonic() + 10
        while _idle(environment) < nodes and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                # Its title covers the first variables, so that psutil does not see them.
                variables = Path(f"/proc/{process.pid}/environ").read_bytes()
                if (
                    process.name() in ("slurmstepd", "slurm_script", "srun")
                    and environment["SLURM_CONF"].encode() in variables
                ):
                    process.kill()


def _idle(environment: dict[str, str]) -> int:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=environment, capture_output=True, text=True
    )
    return len(found.stdout.split())


def _wait(condition, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"the cluster did not start:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def wait_for_job(job: str, environment: dict[str, str], seconds: float = 240) -> dict[str, str]:
    """The fields of ``scontrol show job`` once the job has ended."""
    deadline = time.monotonic() + seconds
    while True:
        shown = subprocess.run(
            ["scontrol", "-o", "show", "job", job], env=environment, capture_output=True, text=True
        ).stdout
        fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        if fields.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return fields
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
