"""Training out of Python, as in a notebook: the same run files, folders and results that the launchers have, in this process."""

from __future__ import annotations

import copy
import html
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_parallel.grid import Grid, local_device
from prompt_tuning.data.frames import as_lines, files_of, keep_rows
from prompt_tuning.errors import UserError
from prompt_tuning.predict import AttachedPrompts, attach
from prompt_tuning.prompt.export import ExportedPrompt, load_prompt
from prompt_tuning.report.provenance import record
from prompt_tuning.run_folder import prepare_folder, say_what_changed
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.merge import Json, put, read_json
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.atomic import make_folder, write_json
from prompt_tuning.storage.lock import locked
from prompt_tuning.storage.records import MemberResult, Metrics, RunResult
from prompt_tuning.trainer import train as train_run


@dataclass(frozen=True)
class Trained:
    """A run that has ended: its folder, what is in its result.json, and its prompts."""

    folder: Path
    result: RunResult

    def __getitem__(self, member: str) -> MemberResult:
        """The result of a member, such as ``trained["tickets-deep_prompt-seed11"]["test"]``."""
        return next(own for own in self.result["members"] if own["member"] == member)

    @property
    def members(self) -> list[str]:
        """Names of the members, in the order of the run file."""
        return [own["member"] for own in self.result["members"]]

    def prompts(self, *members: str) -> list[ExportedPrompt]:
        """The exported prompts of some members; without names, of all that have one. Raises :class:`UserError`."""
        folders = {name: self.folder / "members" / name / "prompt" for name in members or self.members}
        unknown = [name for name in folders if name not in self.members]
        if unknown:
            raise UserError(f"{self.folder} has no member {unknown[0]!r}; it has {', '.join(self.members)}")
        return [load_prompt(folder) for folder in folders.values() if members or folder.exists()]

    def attach(self, *members: str) -> AttachedPrompts:
        """Prompts of some members, or of all, on one backbone, ready to predict."""
        return attach(self.prompts(*members))

    def _repr_html_(self) -> str:
        rows = [
            (own["member"], own["status"], _numbers(own["best"] and own["best"]["metrics"]), _numbers(own["test"]))
            for own in self.result["members"]
        ]
        lines = [("member", "status", "dev, best", "test"), *rows]
        cells = ["".join(f"<td>{html.escape(text)}</td>" for text in line) for line in lines]
        return (
            f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table><div>{html.escape(str(self.folder))}</div>"
        )


def _numbers(metrics: Metrics | None) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items())


def train(
    settings: str | os.PathLike[str] | Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    fresh: bool = False,
) -> Trained:
    """Train the members of a run file in this process, and return their results.

    A run that was interrupted goes on where it was left, and one that has finished is only read: the same call again does
    what is missing, as the same command does. Several ranks need a launcher: ``launcher/run.py``.

    Args:
        settings: a run file, or what one would hold, whose ``extends`` is then relative to the working directory.
        data: rows of ``train``, ``dev`` and ``test`` that the program holds, each a pandas frame, a ``datasets.Dataset``, an Arrow
            table or objects; or a ``DatasetDict``. They are kept in the run folder. None: those that the settings name.
        output: the run folder; None: that of the settings.
        fresh: move a run that is in the folder aside, and start anew.

    Examples:
        >>> settings = {"task": {"kind": "classification"}, "backbone": {"path": "bert-base-cased"}}
        >>> trained = train(settings, {"train": frame, "dev": other}, "runs/mine")   # doctest: +SKIP
        >>> trained.attach().predict([{"text": "It crashes."}])   # doctest: +SKIP

    Raises :class:`UserError`.
    """
    raw, path = _read(settings)
    output = None if output is None else str(output)
    run, rows = resolve(raw, path, output=output), {} if data is None else as_lines(data)
    kept = run.output / "data"
    if rows:
        _check_no_other(run)
        put(raw, "data.files", files_of(kept, rows), str(path))
        run = resolve(raw, path, output=output)
    if run.shared.parallel.tensor > 1 or run.shared.parallel.zero:
        raise UserError("parallel: ranks that share a backbone are started by a launcher; see launcher/run.py --help")
    make_folder(run.output)
    with ExitStack() as held:
        held.enter_context(locked(run.output))
        if rows and not fresh:
            keep_rows(kept, rows)
        is_unfinished = prepare_folder(run, held, resume=False, fresh=fresh)
        if rows and fresh:
            keep_rows(kept, rows)
        if is_unfinished:
            grid = Grid(device=local_device(0))
            environment = {**record(torch.get_num_threads(), [socket.gethostname()]), "tensor": 1, "zero": False}
            say_what_changed(run.output, environment)
            write_json(run.output / "run.json", run.to_json())
            write_json(run.output / "environment.json", environment)
            train_run(run, grid)
    result: Any = read_json(run.output / "result.json")
    return Trained(run.output, result)


def _check_no_other(run: Run) -> None:
    """Raise :class:`UserError` where settings name data that a call brings too."""
    for member in run.members:
        if member.config.data.path or member.config.data.files:
            raise UserError("data: the settings name data too (data.path, data.files); give one of the two")


def _read(settings: Any) -> tuple[Json, Path]:
    """Settings, and the file that they are, or are named as."""
    if isinstance(settings, Mapping):
        return copy.deepcopy(dict(settings)), Path("settings")
    return read_json(Path(settings)), Path(settings)
