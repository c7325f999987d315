"""What drivers have started, and where: ``starts.jsonl`` in the folder of a suite or a submitted run, one line a start."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.clusters.backends import Rendered, Submission, slurm
from prompt_tuning.storage.atomic import make_folder

_FILE = "starts.jsonl"


def read_starts(output: Path) -> list[dict[str, Any]]:
    """What drivers have started, oldest first; a line that a killed driver left half written is passed over."""
    try:
        lines = (output / _FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("fleet"), str):
            records.append(record)
    return records


def record_starts(output: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append to what drivers have started."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines = "".join(json.dumps({"time": now, **record}, sort_keys=True) + "\n" for record in records)
    with (output / _FILE).open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        is_half_written = file.read(1) not in (b"", b"\n")
        file.write(("\n" * is_half_written + lines).encode())


def queued(output: Path) -> dict[str, str]:
    """Fleets that SLURM's queue holds, by name: their state there and their task. Raises :class:`UserError`."""
    tasks = {record["slurm"]: record["fleet"] for record in read_starts(output) if "slurm" in record}
    states = slurm.queue() if tasks else {}
    return {fleet: states[task] for task, fleet in tasks.items() if task in states}


def submit_job(rendered: Rendered, output: Path) -> str:
    """Hand a run to SLURM; the job's number. Raises :class:`UserError`."""
    make_folder(output)
    job = slurm.submit(rendered)
    record_starts(output, [{"fleet": output.resolve().name, "slurm": job}])
    return job


def submit_array(submissions: list[Submission], output: Path, retries: int) -> None:
    """Hand all runs to SLURM as one array. Raises :class:`UserError`.

    The array has a name of its own, written down before SLURM has it: a driver that dies right after leaves no array that
    the next one does not know.
    """
    name = f"{output.resolve().name}-{secrets.token_hex(4)}"
    rendered = slurm.render_array(submissions, output, retries, name)
    fleets = [submission.output.name for submission in submissions]
    record_starts(output, [{"fleet": fleet, "slurm": f"{name}_{task}"} for task, fleet in enumerate(fleets)])
    job = slurm.submit(rendered)
    print(f"{len(fleets)} fleets are the tasks of SLURM's job {job}, {name}")
