"""From rows of text to tokenised features, in flat arrays that packing can cut anywhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.problems import show
from prompt_tuning.sources import SPLITS, LocatedRow, check_columns, read_split
from prompt_tuning.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Features:
    """Tokenised examples of one split: ``rows_per_example`` sequences an example, stored end to end.

    Row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``. ``labels`` [examples] is -1 where there is none.
    """

    tokens: np.ndarray
    token_types: np.ndarray | None
    offsets: np.ndarray
    rows_per_example: int
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        return bool((self.labels >= 0).all())


@dataclass(frozen=True)
class TaskData:
    """All splits of a task for one tokenizer, and the label names in the order of the logits."""

    labels: tuple[str, ...]
    splits: dict[str, Features]


def load_task_data(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    path: str | None,
    max_length: int,
    template: str | None = None,
    limits: dict[str, int | None] | None = None,
    hub_config: str | None = None,
    splits: tuple[str, ...] = SPLITS,
    labels: tuple[str, ...] | None = None,
) -> TaskData:
    """Read, check and tokenise the splits of a task. Raises :class:`UserError` naming file and line.

    ``test`` may be missing or unlabelled; it is then left out.
    """
    rows: dict[str, list[LocatedRow]] = {}
    for split in splits:
        found = read_split(task, path, split, hub_config)
        if found is None and split == "test":
            continue
        if not found:
            where = path or (task.hub or ("the hub",))[0]
            names = f"give {split}.jsonl, {split}.csv or {split}.parquet" if found is None else "give it rows"
            what = "missing" if found is None else "empty"
            raise UserError(f"task {task.name!r}: the {split} split of {where} is {what}; {names}")
        rows[split] = found[: (limits or {}).get(split)]
    known = labels or task.labels or _collect_labels(task, rows.get("train", []))
    features = {split: encode(task, tokenizer, found, max_length, known, template) for split, found in rows.items()}
    for split, encoded in features.items():
        if encoded.is_labelled:
            continue
        if split == "test" and (encoded.labels < 0).all():
            logger.info("task %r: the test split has no labels and is not used", task.name)
            continue
        where = rows[split][int(np.argmin(encoded.labels))][0]
        raise UserError(f"{where}: no label in column `{task.label_column}`; every row of the {split} split needs one")
    return TaskData(known, {split: encoded for split, encoded in features.items() if encoded.is_labelled})


def _collect_labels(task: Task, rows: list[LocatedRow]) -> tuple[str, ...]:
    values: dict[str, str | int] = {}
    for where, row in rows:
        check_columns(task, where, row, labelled=True)
        value = row[task.label_column]
        if not isinstance(value, (str, int)):
            raise UserError(f"{where}: label {show(value)} is neither a text nor a whole number")
        if value in ("", -1):
            hint = "" if value == "" else "; to use -1 as a label, list all labels in the task's `labels`"
            raise UserError(f"{where}: no label in column `{task.label_column}`{hint}")
        values.setdefault(str(value), value)
    is_numbers = all(isinstance(value, int) for value in values.values())
    labels = tuple(sorted(values, key=(lambda name: values[name]) if is_numbers else str))
    if len(labels) < 2:
        raise UserError(
            f"task {task.name!r}: column `{task.label_column}` of the training split has {len(labels)} label(s)"
            f" ({', '.join(labels)}); at least two are needed"
        )
    return labels


def encode(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[LocatedRow],
    max_length: int,
    labels: tuple[str, ...],
    template: str | None = None,
) -> Features:
    """Tokenise rows with a template of the task, pairs truncated longest first to ``max_length`` tokens."""
    build = task.templates[template or next(iter(task.templates))]
    firsts: list[str] = []
    seconds: list[str] = []
    indices: list[int] = []
    for where, raw in rows:
        row = dict(task.normalise(raw))
        check_columns(task, where, row)
        try:
            pairs = build(row)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"{where}: the row does not fit task {task.name!r}: {error}") from None
        for first, second in pairs:
            firsts.append(_text(where, first))
            if second is not None:
                seconds.append(_text(where, second))
        try:
            index = task.label_index(row.get(task.label_column), labels)
        except KeyError as error:
            raise UserError(f"{where}: label {error.args[0]!r} is none of {', '.join(labels)}") from None
        indices.append(-1 if index is None else index)
    special = tokenizer.num_special_tokens_to_add(pair=bool(seconds))
    least = special + (2 if seconds else 1)
    if max_length < least:
        raise UserError(
            f"data.max_length={max_length} leaves no room for text beside {special} special tokens; give {least} or more"
        )
    encoded = tokenizer(firsts, seconds or None, truncation=True, max_length=max_length, return_attention_mask=False)
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int64, len(firsts))
    if len(lengths) and lengths.min() == 0:
        raise UserError(f"{rows[int(lengths.argmin()) * len(rows) // len(firsts)][0]}: the text has no tokens")
    types = encoded.get("token_type_ids")
    return Features(
        tokens=np.concatenate([np.asarray(ids, np.int32) for ids in encoded["input_ids"]]),
        token_types=None if types is None else np.concatenate([np.asarray(row, np.int8) for row in types]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        rows_per_example=len(firsts) // max(1, len(rows)),
        labels=np.asarray(indices, np.int64),
    )


def _text(where: str, text: Any) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: {show(text)} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} of a text is half of a surrogate pair; repair it"
        ) from None
    return text
