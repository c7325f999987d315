"""From a task's files to tokenised splits."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from model_parallel import rng
from prompt_tuning.data.read import SPLITS, LocatedRow, extra_splits, read_split
from prompt_tuning.errors import UserError
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.kinds import Encoding, find_kind
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.rows import expanded, first_examples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """All splits of a task for one tokenizer, and the label names in the order of the logits."""

    labels: tuple[str, ...]
    splits: dict[str, Features]


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
    rows: dict[str, list[LocatedRow]] = {}
    for split in splits or (*SPLITS, *extra_splits(task, path)):
        found = read_split(task, path, split, hub_config)
        if found is None and split.startswith("test"):
            continue
        if not found:
            raise _missing(task, path, split, found is None)
        limit = split.partition("/")[0]
        rows[split] = first_examples(task, found, (limits or {}).get(limit))
    if held_out and "train" in rows and "dev" in rows:
        rows["test/dev"] = rows["dev"]
        rows["train"], rows["dev"] = _hold_out(task, rows["train"], held_out)
    kind = find_kind(task.kind)
    known = labels or task.labels or kind.collect_labels(task, rows.get("train", []))
    for split in [split for split in rows if split.startswith("test") and not _has_labels(task, rows[split], known)]:
        logger.info("task %r: the %s split has no labels and is not used", task.name, split)
        del rows[split]
    features = {
        split: kind.encode(task=task, tokenizer=tokenizer, rows=found, encoding=encoding, labels=known)
        for split, found in rows.items()
    }
    for split, encoded in features.items():
        if encoded.is_labelled:
            continue
        raise UserError(
            f"{_first_unlabelled(task, rows[split])}: no label in column `{task.label_column}`;"
            f" every row of the {split} split needs one"
        )
    return TaskData(known, {split: encoded for split, encoded in features.items() if encoded.is_labelled})


def _missing(task: Task, path: str | None, split: str, is_absent: bool) -> UserError:
    where = path or (task.hub or ("the hub",))[0]
    patterns = task.files.patterns.get(split, (split,))
    wanted = patterns if task.files.read else tuple(f"{patterns[0]}{suffix}" for suffix in TABLES)
    hint = (
        f"give {', '.join(wanted[:-1])}{' or ' if len(wanted) > 1 else ''}{wanted[-1]}" if is_absent else "give it rows"
    )
    if is_absent and task.origin is not None:
        hint += f" ({task.origin})"
    return UserError(
        f"task {task.name!r}: the {split} split of {where} is {'missing' if is_absent else 'empty'}; {hint}"
    )


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


def _has_labels(task: Task, rows: list[LocatedRow], labels: tuple[str, ...]) -> bool:
    """Whether any row has a label. Asked before a split is tokenised, which may take long."""
    nothing = {"", "-1"} - set(labels) if task.kind != "regression" else {""}
    return any(
        row.get(task.label_column) is not None and str(row[task.label_column]) not in nothing
        for where, raw in rows
        for row in expanded(task, where, raw)
    )


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
