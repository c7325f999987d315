"""From a task's files to tokenised splits."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from prompt_tuning.bars import RowsBar
from prompt_tuning.data.asking import member_task
from prompt_tuning.data.cache import Cache, Entry, default_folder, describe
from prompt_tuning.data.encode import chunks, encode, encoded, no_example, num_processes
from prompt_tuning.data.parts import Parts
from prompt_tuning.data.read import Source
from prompt_tuning.data.rows import Rows
from prompt_tuning.data.splits import Limits, check_labelled, choose_rows, first_of, open_splits
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import find_kind
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import DataSection
from prompt_tuning.storage.atomic import expand, new_folder
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Encoding, Recipe
from prompt_tuning.tokens.rows import Example, own_rows
from prompt_tuning.tokens.tokenise import class_labels, tokenizer_digest

logger = logging.getLogger(__name__)

SMALL = 8000
"""Rows of a split up to which every rank tokenises them for itself, in a second or two."""


@dataclass(frozen=True)
class TaskData:
    """All splits of a task for one tokenizer, and the label names in the order of the logits."""

    labels: tuple[str, ...]
    splits: dict[str, Features]


def task_data(config: RunFile, tokenizer: PreTrainedTokenizerBase, has_encoder: bool = False) -> TaskData:
    """The data of a member, read and tokenised as its settings say, for an encoder-decoder or another. Raises :class:`UserError`.

    Large data are tokenised once on a host and kept: its other ranks and later starts map them.
    """
    task, data, limits = find_task(config.task), config.data, limits_of(config.data)
    source = source_of(config)
    splits = open_splits(task, source, held_out=data.held_out)
    if _are_small(task, splits, limits):
        rows = choose_rows(task, source, splits, limits, data.held_out)
        task = member_task(config, rows)
        return _tokenise(Recipe(task, tokenizer, encoding_of(data), _labels(task, rows), has_encoder), rows)
    cache = _cache(config, tokenizer, has_encoder, splits)
    found = cache.find(find_kind(task.kind))
    if found is not None:
        logger.info("task %r: tokenised before, and kept in %s", task.name, cache.path)
    else:
        found = _keep(cache, config, tokenizer, has_encoder, splits)
    _say(task, found[1])
    return TaskData(*found)


def _keep(
    cache: Cache, config: RunFile, tokenizer: PreTrainedTokenizerBase, has_encoder: bool, splits: Mapping[str, Rows]
) -> Entry:
    """Tokenise large data, or wait until another process of this host has. Raises :class:`UserError`."""
    task, data, source = find_task(config.task), config.data, source_of(config)
    try:
        with cache.alone():
            found = cache.find(find_kind(task.kind))
            if found is None:
                rows = choose_rows(task, source, splits, limits_of(data), data.held_out)
                task = member_task(config, rows)
                recipe = Recipe(task, tokenizer, encoding_of(data), _labels(task, rows), has_encoder)
                with new_folder(cache.path) as folder:
                    _write(folder, recipe, rows)
                    again = open_splits(task, source, held_out=data.held_out)
                    if cache.path != _cache(config, tokenizer, has_encoder, again).path:
                        raise UserError(f"{source.name}: data have changed while they were tokenised; start again")
                found = cache.find(find_kind(task.kind))
    except OSError as error:
        raise UserError(
            f"data.cache={cache.path.parent}: tokenised data cannot be kept there: {error.strerror or error}; name another folder"
        ) from None
    assert found is not None
    return found


def encoding_of(data: DataSection) -> Encoding:
    """How a run file's rows become tokens."""
    return Encoding(data.max_length, data.template, data.stride, data.max_target_length)


def limits_of(data: DataSection) -> Limits:
    """Most examples of each split."""
    return {"train": data.max_train_examples, "dev": data.max_eval_examples, "test": data.max_eval_examples}


def source_of(config: RunFile) -> Source:
    """Where a member's rows are."""
    task = config.task
    hub_config = task.get("hub_config") if isinstance(task, dict) else None
    return Source(config.data.path, config.data.files, hub_config)


def chosen_rows(config: RunFile) -> dict[str, Rows]:
    """The rows that a member would train and be judged on, by split. Raises :class:`UserError`."""
    task, source, data = find_task(config.task), source_of(config), config.data
    return choose_rows(task, source, open_splits(task, source, held_out=data.held_out), limits_of(data), data.held_out)


def load_task_data(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    encoding: Encoding,
    limits: Limits | None = None,
    splits: tuple[str, ...] | None = None,
    labels: tuple[str, ...] | None = None,
    held_out: float = 0.0,
    has_encoder: bool = False,
) -> TaskData:
    """Read, check and tokenise the splits of a task. Raises :class:`UserError` naming file and line.

    Args:
        limits: most examples of a split, as the task counts them; that of ``test`` holds for extra test splits too.
        splits: None: all there are. ``test`` and extra ones may be missing or unlabelled; they are then left out.
        labels: names in the order of the logits, where they are known already.
        held_out: share of the training rows that becomes the dev split; the task's own dev split, if there is one, is then ``test/dev``.
        has_encoder: whether the backbone's encoder reads sources and its decoder targets.
    """
    rows = choose_rows(task, source, open_splits(task, source, splits, held_out), limits or {}, held_out)
    return _tokenise(Recipe(task, tokenizer, encoding, labels or _labels(task, rows), has_encoder), rows)


def _tokenise(recipe: Recipe, rows: Mapping[str, Rows]) -> TaskData:
    """The splits of some rows, in memory. Raises :class:`UserError`."""
    kind, features = find_kind(recipe.task.kind), {}
    for split, own in rows.items():
        parts = Parts()
        _fill(parts, recipe, split, own)
        features[split] = parts.joined(kind)
        if not features[split].is_labelled:
            check_labelled(recipe.task, split, own)
    _say(recipe.task, features)
    return TaskData(recipe.labels, features)


def _write(folder: Path, recipe: Recipe, rows: Mapping[str, Rows]) -> None:
    """The splits of some rows, in files of a folder. Raises :class:`UserError`."""
    kind, described = find_kind(recipe.task.kind), {}
    for number, (split, own) in enumerate(rows.items()):
        parts = Parts(folder / str(number))
        _fill(parts, recipe, split, own)
        described[split] = parts.written(kind)
        if not parts.mapped(kind, described[split]).is_labelled:
            check_labelled(recipe.task, split, own)
    describe(folder, recipe.labels, described)


def _fill(parts: Parts, recipe: Recipe, split: str, rows: Rows) -> None:
    """Tokenise the rows of a split, large ones in several processes."""
    processes = num_processes() if rows.count(SMALL + 1) > SMALL else 1
    started, name = time.monotonic(), f"{recipe.task.name} {split}"
    with RowsBar(None, title=f"tokenising {name}") as bar:
        # A document is read once, before there are several processes to read it.
        for features in encoded(recipe, list(rows) if rows.is_document and processes > 1 else rows, processes):
            parts.add(features)
            bar.show(parts.num_examples)
    if not parts.num_examples:
        raise no_example(recipe.task, rows)
    if processes > 1:
        logger.info(
            "task %r: %d examples of %s tokenised in %.0f s by %d processes",
            recipe.task.name,
            parts.num_examples,
            split,
            time.monotonic() - started,
            processes,
        )


def _labels(task: Task, rows: Mapping[str, Rows]) -> tuple[str, ...]:
    return task.labels or find_kind(task.kind).collect_labels(task, rows.get("train", ()))


def _are_small(task: Task, sources: Mapping[str, Rows], limits: Limits) -> bool:
    return all(first_of(task, rows, split, limits).count(SMALL + 1) <= SMALL for split, rows in sources.items())


def _cache(
    config: RunFile, tokenizer: PreTrainedTokenizerBase, has_encoder: bool, sources: Mapping[str, Rows]
) -> Cache:
    """The place of a member's tokenised data. Raises :class:`UserError` where there is none."""
    data = config.data
    folder = expand(data.cache) if data.cache else default_folder()
    if folder is None:
        raise UserError("this user has no home for tokenised data; set data.cache to a folder")
    facts = {
        **({} if config.asking is None else {"asking": list(config.asking)}),
        "task": config.task,
        "encoding": asdict(encoding_of(data)),
        "limits": dict(limits_of(data)),
        "held_out": data.held_out,
        "has_encoder": has_encoder,
        "tokenizer": tokenizer_digest(tokenizer),
        # What the identity of a backbone, older than this, leaves out.
        "tokenizer_settings": [
            type(tokenizer).__name__,
            getattr(tokenizer, "truncation_side", None),
            getattr(tokenizer, "mask_token_id", None),
            list(getattr(tokenizer, "model_input_names", ())),
        ],
        "sources": {split: rows.mark() for split, rows in sources.items()},
    }
    return Cache(folder, facts)


def _say(task: Task, splits: Mapping[str, Features]) -> None:
    for features in splits.values():
        for remark, numbers in features.remarks.items():
            if numbers[0]:
                logger.info(f"task %r: {remark}", task.name, *numbers)


def check_data(config: RunFile, tokenizer: PreTrainedTokenizerBase, has_encoder: bool = False) -> str:
    """Read all rows that a member would train and be judged on, and tokenise the first and the last of each split.

    Returns what is there, for people. Raises :class:`UserError` as training would.
    """
    rows = chosen_rows(config)
    task = member_task(config, rows)
    recipe = Recipe(task, tokenizer, encoding_of(config.data), _labels(task, rows), has_encoder)
    counts = ", ".join(f"{split} {_check_split(recipe, split, found)} rows" for split, found in rows.items())
    labels = recipe.labels
    return f"{counts}; labels {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"


def _check_split(recipe: Recipe, split: str, rows: Rows) -> int:
    """Go once through the rows of a split; how many there are."""
    task, count, ends = recipe.task, 0, list[LocatedRow]()
    for _, chunk in chunks(rows):
        own: list[LocatedRow] = [(where, Example(row)) for where, row in own_rows(task, chunk)]
        if find_kind(task.kind).asks_classes:
            class_labels(task, own, recipe.labels)
        check_labelled(task, split, own)
        count += len(chunk)
        ends = [*(ends or own)[:1], *own[-1:]] if own else ends
    if not ends:
        raise no_example(task, rows)
    encode(recipe, ends)
    return count
