"""Workers as users start them: real processes, their output, and what their run folders hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
WORKER = "launcher/run.py"
TIMEOUT_SECONDS = 150


def environment() -> dict[str, str]:
    """This process's, with one thread, no network and the virtual environment's programs first."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {**os.environ, **own}


def start(*command: str | Path, folder: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
    """Start a command in a folder, the project's root, in a session of its own, output and errors together."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**environment(), **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """Shells start what they put in the background deaf to interrupts, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(*command: str | Path, **variables: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = start(*command, **variables)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"{command} did not end in {TIMEOUT_SECONDS} s:\n{output}") from None
    return process.returncode, output


def python(*options: str | Path) -> list[str | Path]:
    """The worker in one process."""
    return [sys.executable, WORKER, *options]


def torchrun(*options: str | Path, ranks: int = 2) -> list[str | Path]:
    """The worker on some ranks, started by torchrun."""
    return [BIN / "torchrun", "--nproc-per-node", str(ranks), "--master-port", free_port(), WORKER, *options]


def deepspeed(*options: str | Path, ranks: int = 2) -> list[str | Path]:
    """The worker on some ranks, started by DeepSpeed."""
    return [BIN / "deepspeed", "--num_gpus", str(ranks), "--master_port", free_port(), WORKER, *options]


def bare_ranks(
    *options: str | Path, ranks: int = 2, places: Sequence[Path] | None = None
) -> list[subprocess.Popen[str]]:
    """The worker on some ranks that no launcher looks after, each in its folder of ``places``; the first keeps the store."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, ROOT / WORKER, *options]
    return [
        start(
            *command,
            folder=places[r] if places else ROOT,
            RANK=str(r),
            LOCAL_RANK=str(r),
            LOCAL_WORLD_SIZE=str(ranks),
            **meeting,
        )
        for r in range(ranks)
    ]


def workers(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The Python processes of a launcher's ranks, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if WORKER in " ".join(child.cmdline()) and "RANK" in child.environ():
                found[int(child.environ()["RANK"])] = child
    return found


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until ``condition`` holds; False where the process has ended before."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the process neither ends nor gets there"
        time.sleep(0.001)
    return True


def write_run(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(json.dumps(raw))
    return path


def member_files(output: Path) -> dict[str, bytes]:
    """Everything of the members that no clock has a say in: metrics and exported prompts, by path."""
    files = [*output.glob("members/*/metrics.jsonl"), *output.glob("members/*/prompt/*")]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}
