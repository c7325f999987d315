"""From a task's files to tokenised splits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from model_parallel import rng
from prompt_tuning.data.read import SPLITS, extra_splits, read_split
from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS, LocatedRow
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.kinds import Encoding, find_kind
from prompt_tuning.settings.schema import DataSection, RunFile
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.rows import expanded, first_examples, located_rows
from prompt_tuning.tokens.tokenise import class_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """All splits of a task for one tokenizer, and the label names in the order of the logits."""

    labels: tuple[str, ...]
    splits: dict[str, Features]


def task_data(config: RunFile, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The data of a member, read and tokenised as its settings say. Raises :class:`UserError`."""
    return load_task_data(
        find_task(config.task),
        tokenizer,
        config.data.path,
        Encoding(config.data.max_length, config.data.template, config.data.stride),
        limits_of(config.data),
        hub_config(config.task),
        held_out=config.data.held_out,
    )


def limits_of(data: DataSection) -> dict[str, int | None]:
    """Most rows of each split."""
    return {"train": data.max_train_examples, "dev": data.max_eval_examples, "test": data.max_eval_examples}


def hub_config(task: str | dict[str, Any]) -> str | None:
    """Configuration of the hub data set that a run file's ``task`` names; None: the only one, or the task's own."""
    return task.get("hub_config") if isinstance(task, dict) else None


def load_task_data(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    path: str | None,
    encoding: Encoding,
    limits: dict[str, int | None] | None = None,
    hub_config: str | None = None,
    splits: tuple[str, ...] | None = None,
    labels: tuple[str, ...] | None = None,
    held_out: float = 0.0,
) -> TaskData:
    """Read, check and tokenise the splits of a task. Raises :class:`UserError` naming file and line.

    Args:
        limits: most examples of a split, as the task counts them; that of ``test`` holds for extra test splits too.
        splits: None: all there are. ``test`` and extra ones may be missing or unlabelled; they are then left out.
        labels: names in the order of the logits, where they are known already.
        held_out: share of the training rows that becomes the dev split; the task's own dev split is then ``test/dev``.
    """
    rows = read_splits(task, path, limits, hub_config, splits, held_out)
    known = labels or task.labels or find_kind(task.kind).collect_labels(task, rows.get("train", []))
    features = {split: encode(task, tokenizer, found, encoding, known) for split, found in rows.items()}
    for split, encoded in features.items():
        if not encoded.is_labelled:
            raise UserError(
                f"{_first_unlabelled(task, rows[split])}: no label in column `{task.label_column}`;"
                f" every row of the {split} split needs one"
            )
    return TaskData(known, features)


def read_splits(
    task: Task,
    path: str | None,
    limits: dict[str, int | None] | None = None,
    hub_config: str | None = None,
    splits: tuple[str, ...] | None = None,
    held_out: float = 0.0,
) -> dict[str, list[LocatedRow]]:
    """Rows by split, as :func:`load_task_data` takes them; test splits without any label are left out.

    Raises :class:`UserError` where a split that is needed is missing or empty.
    """
    rows: dict[str, list[LocatedRow]] = {}
    for split in splits or (*SPLITS, *extra_splits(task, path)):
        found = read_split(task, path, split, hub_config)
        if found is None and split.startswith("test"):
            continue
        if not found:
            raise _missing(task, path, split, found is None)
        limit = split.partition("/")[0]
        found = first_examples(task, found, (limits or {}).get(limit))
        if split.startswith("test") and not _has_label(task, found):
            logger.info("task %r: the %s split has no labels and is not used", task.name, split)
            continue
        rows[split] = found
    if held_out and "train" in rows and "dev" in rows:
        rows["test/dev"] = rows["dev"]
        rows["train"], rows["dev"] = _hold_out(task, rows["train"], held_out)
    return rows


def check_data(config: RunFile, tokenizer: PreTrainedTokenizerBase) -> str:
    """Read all rows that a member would train and be judged on, and tokenise the first and the last of each split.

    Returns what is there, for people. Raises :class:`UserError` as training would.
    """
    task, data = find_task(config.task), config.data
    kind = find_kind(task.kind)
    rows = read_splits(task, data.path, limits_of(data), hub_config(config.task), held_out=data.held_out)
    labels = task.labels or kind.collect_labels(task, rows["train"])
    encoding = Encoding(data.max_length, data.template, data.stride)
    for split, found in rows.items():
        ends = found if len(found) < 3 else [found[0], found[-1]]
        encode(task, tokenizer, ends, encoding, labels)
        own = located_rows(task, found)
        if kind.asks_classes:
            class_labels(task, own, labels)
        for where, row in own:
            if row.get(task.label_column) in (None, ""):
                raise UserError(
                    f"{where}: no label in column `{task.label_column}`; every row of the {split} split needs one"
                )
    counts = ", ".join(f"{split} {len(found)} rows" for split, found in rows.items())
    return f"{counts}; labels {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"


def _has_label(task: Task, rows: list[LocatedRow]) -> bool:
    """Whether any row is labelled."""
    none = (None, "", -1, "-1")
    return any(
        isinstance(value, (list, dict)) or value not in none
        for where, raw in rows
        for row in expanded(task, where, raw)
        for value in (row.get(task.label_column),)
    )


def _missing(task: Task, path: str | None, split: str, is_absent: bool) -> UserError:
    where = path or (task.hub or ("the hub",))[0]
    patterns = task.files.patterns.get(split, (split,))
    wanted = patterns if task.files.read else tuple(f"{patterns[0]}{suffix}" for suffix in TABLES)
    hint = (
        f"give {', '.join(wanted[:-1])}{' or ' if len(wanted) > 1 else ''}{wanted[-1]}" if is_absent else "give it rows"
    )
    near = _near_misses(path, split) if is_absent and path is not None else []
    if near:
        hint += f"; {' and '.join(near)} {'lies' if len(near) == 1 else 'lie'} there and would have to be renamed"
    if is_absent and task.origin is not None:
        hint += f" ({task.origin})"
    return UserError(
        f"task {task.name!r}: the {split} split of {where} is {'missing' if is_absent else 'empty'}; {hint}"
    )


def _near_misses(path: str, split: str) -> list[str]:
    """Names of files in a folder that somebody may have meant as a split, at most three."""
    folder = Path(path).expanduser()
    stems = STEMS.get(split, (split,))
    names = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return [name for name in names if any(stem in name.lower() for stem in stems)][:3]


def _hold_out(task: Task, rows: list[LocatedRow], share: float) -> tuple[list[LocatedRow], list[LocatedRow]]:
    """Training rows in two parts, the second a random ``share`` of them, the same in every run."""
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise UserError(
            f"data.held_out={share} of {len(rows)} training rows leaves nothing on one side; choose another share"
        )
    order = rng.permutation(rng.key(0, "held out"), len(rows)).numpy()
    chosen = set(order[:count].tolist())
    parts = [[row for i, row in enumerate(rows) if (i in chosen) == held] for held in (False, True)]
    logger.info(
        "task %r: %d of %d training rows are held out to select on; dev is only reported", task.name, count, len(rows)
    )
    return parts[0], parts[1]


def _first_unlabelled(task: Task, rows: list[LocatedRow]) -> str:
    for where, raw in rows:
        for row in expanded(task, where, raw):
            if row.get(task.label_column) in (None, "", -1):
                return where
    return rows[0][0]


def encode(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[LocatedRow],
    encoding: Encoding,
    labels: tuple[str, ...],
) -> Features:
    """Tokenise rows as the task's kind does."""
    return find_kind(task.kind).encode(task=task, tokenizer=tokenizer, rows=rows, encoding=encoding, labels=labels)
