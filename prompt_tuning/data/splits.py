"""Which rows a run trains and is judged on: the splits of a source, cut to limits, parted, test splits without labels left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_parallel import rng
from prompt_tuning.data.read import SPLITS, Source, extra_splits, is_local, read_split
from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS, LocatedRow
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.tasks.labels import label_name
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.rows import expanded

logger = logging.getLogger(__name__)

Limits = Mapping[str, int | None]
"""Most examples of a split, as the task counts them; that of ``test`` holds for extra test splits too."""


def open_splits(
    task: Task, source: Source, splits: tuple[str, ...] | None = None, held_out: float = 0.0
) -> dict[str, Rows]:
    """The rows of each split of a task's source; ``splits`` None: all there are. None is read yet.

    Raises :class:`UserError` where a split that is needed is missing; test splits may be, and dev where training rows are
    ``held_out`` to select on.
    """
    found = {}
    for split in splits or (*SPLITS, *extra_splits(task, source)):
        rows = read_split(task, source, split)
        if rows is not None:
            found[split] = rows
        elif not split.startswith("test") and not (split == "dev" and held_out):
            raise _missing(task, source, split)
    return found


def first_of(task: Task, rows: Rows, split: str, limits: Limits) -> Rows:
    """The rows of a split within its limit."""
    return rows.first(task, limits.get(split.partition("/")[0]))


def choose_rows(
    task: Task, source: Source, splits: Mapping[str, Rows], limits: Limits, held_out: float = 0.0
) -> dict[str, Rows]:
    """The rows of :func:`open_splits` that are used. Raises :class:`UserError` where a split is empty.

    Args:
        held_out: share of the training rows that becomes the dev split; the task's own dev split, if there is one, is then ``test/dev``.
    """
    found = {}
    for split, own in splits.items():
        rows = first_of(task, own, split, limits)
        if not rows.count(1):
            if split.startswith("test/") and task.files.parted_by is not None:
                continue  # a language that the common file does not have
            raise UserError(f"task {task.name!r}: the {split} split of {_place(task, source)} is empty; give it rows")
        if split.startswith("test") and not _has_label(task, rows):
            logger.info("task %r: the %s split has no labels and is not used", task.name, split)
            continue
        found[split] = rows
    if held_out and "train" in found:
        if "dev" in found:
            found["test/dev"] = found["dev"]
        found["train"], found["dev"] = _hold_out(task, found["train"], held_out)
    return found


def _has_label(task: Task, rows: Iterable[LocatedRow]) -> bool:
    """Whether any row is labelled."""
    return any(is_label(task, row.get(task.label_column)) for where, raw in rows for row in expanded(task, where, raw))


def is_label(task: Task, value: Any) -> bool:
    """Whether a value of the label column labels its row: -1 does only where it is a number to learn, or a listed label.

    Any text does where it is one to write, also an empty one.
    """
    if task.is_written:
        return value is not None
    if isinstance(value, (list, dict)):
        return True
    name = label_name(value)
    return name is not None and (name != "-1" or task.kind == "regression" or "-1" in (task.labels or ()))


def _place(task: Task, source: Source) -> str:
    """Where a task's splits were looked for, for messages."""
    return source.name if source.path or source.files else (task.hub or ("the hub",))[0]


def _missing(task: Task, source: Source, split: str) -> UserError:
    """What to do about a split that is not there."""
    origin = f" ({task.origin})" if task.origin is not None else ""
    hold_out = "; or set data.held_out, to 0.2, say, to select on training rows" if split == "dev" else ""
    return UserError(
        f"task {task.name!r}: the {split} split of {_place(task, source)} is missing; {_wanted(task, source, split)}{origin}{hold_out}"
    )


def _wanted(task: Task, source: Source, split: str) -> str:
    """How a missing split would be found."""
    if source.files:
        return f"name its file in data.files, as {split}"
    if source.path is None or not is_local(source):
        return f"it needs one that is called {' or '.join(STEMS.get(split, (split,)))}"
    patterns = task.files.patterns.get(split, (split,))
    wanted = patterns if task.files.read else tuple(f"{patterns[0]}{suffix}" for suffix in TABLES)
    hint = f"give {', '.join(wanted[:-1])}{' or ' if len(wanted) > 1 else ''}{wanted[-1]}"
    near = _near_misses(source.path, split)
    if near:
        lie = "lies" if len(near) == 1 else "lie"
        hint += f"; {' and '.join(near)} {lie} there and would have to be renamed, or named in data.files"
    return hint


def _near_misses(path: str, split: str) -> list[str]:
    """Names of files in a folder that somebody may have meant as a split, at most three."""
    folder = Path(path).expanduser()
    stems = STEMS.get(split, (split,))
    names = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return [name for name in names if any(stem in name.lower() for stem in stems)][:3]


def _hold_out(task: Task, rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Training rows in two parts, the second a random ``share`` of them, the same in every run."""
    total = rows.count()
    count = round(share * total)
    if not 0 < count < total:
        raise UserError(
            f"data.held_out={share} of {total} training rows leaves nothing on one side; choose another share"
        )
    is_held = np.zeros(total, bool)
    is_held[rng.permutation(rng.key(0, "held out"), total)[:count].numpy()] = True
    logger.info(
        "task %r: %d of %d training rows are held out to select on; a dev split is only reported",
        task.name,
        count,
        total,
    )
    return rows.where(~is_held), rows.where(is_held)


def check_labelled(task: Task, split: str, rows: Iterable[LocatedRow]) -> None:
    """Raise :class:`UserError` that names the first row without a label, if there is one."""
    for where, raw in rows:
        if all(is_label(task, row.get(task.label_column)) for row in expanded(task, where, raw)):
            continue
        raise UserError(f"{where}: no label in column `{task.label_column}`; every row of the {split} split needs one")
