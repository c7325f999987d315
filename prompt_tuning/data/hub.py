"""Rows of hub data sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError, reason
from prompt_tuning.formats import STEMS, LocatedRow
from prompt_tuning.tasks.types import Task


def read_hub_split(task: Task, path: str | None, split: str, hub_config: str | None) -> Rows | None:
    """Rows of a split of a hub data set, as :func:`prompt_tuning.data.read.read_split` gives them."""
    from datasets import disable_progress_bars, load_dataset, load_dataset_builder

    repository, configuration = (path, hub_config) if path is not None else (task.hub or (None, None))
    wanted = STEMS.get(split, ())
    if path is None and split in task.hub_splits:
        repository, configuration, only = task.hub_splits[split]
        wanted = (only,)
    if repository is None:
        if path is None and task.origin is not None:
            raise UserError(
                f"task {task.name!r} has no data set on the hub: {task.origin}; then set data.path to its folder"
            )
        raise UserError(f"task {task.name!r} has no data set of its own: set data.path to a folder or a hub id")
    place: dict[str, Any] = {"name": configuration}
    if path is None:
        # Script-based repositories no longer load. The hub keeps Parquet copies of them under this revision, a folder for
        # each configuration, which it does not list as configurations there.
        place = {"revision": "refs/convert/parquet", "data_dir": configuration or "default"}
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        builder = load_dataset_builder(repository, **place)
        names = builder.config.data_files or builder.info.splits or {}  # the latter in a copy of an earlier start
        name = next((str(n) for n in names if n in wanted), None)
        if name is None:
            return None
        rows = load_dataset(repository, split=name, **place)
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        what = f"data set {repository!r} is" if path is None else f"data.path={path}: no such folder, and"
        raise UserError(
            f"{what} not to be had from the hub ({reason(error)});"
            " check the id and the network, or set data.path to a local folder"
        ) from None

    def read() -> Iterator[LocatedRow]:
        for number, row in enumerate(rows, 1):
            yield f"{repository}:{name} row {number}", named_row(row, rows.features)

    return Rows(read, lambda: str(rows._fingerprint))


def named_row(row: dict[str, Any], features: Any) -> dict[str, Any]:
    """A hub row with the names of its classes instead of their numbers, in lists too."""
    from datasets import ClassLabel

    named = dict(row)
    for column, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, ClassLabel) and row[column] is not None and row[column] >= 0:
            named[column] = feature.names[row[column]]
        elif isinstance(inner, ClassLabel) and row[column] is not None:
            named[column] = [inner.names[value] for value in row[column]]
    return named
