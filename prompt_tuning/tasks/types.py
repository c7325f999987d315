"""Tasks: one file each, found by its name.

A file named ``<task>.py`` holds ``TASK``, a :class:`Task`; a file for the user's own data holds ``Options`` (its settings)
and ``build(options) -> Task``. Nothing else needs to change to add one. Task files do not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from prompt_tuning.formats import STEMS, Reader, Row
from prompt_tuning.formats.tags import OUTSIDE, names_span
from prompt_tuning.metrics import Metric
from prompt_tuning.tasks.labels import label_index

WRITTEN = ("generation", "document")
"""Kinds whose answers the language model writes."""

Pair = tuple[Any, Any]
"""A text and its optional second text (None), tokenised together; lists of words for tagging."""


class Gap(NamedTuple):
    """In place of a pair's second text: a candidate between texts, which the language model scores."""

    before: str
    candidate: str
    after: str


Template = Callable[[Row], tuple[Pair, ...]]
"""From a row of data to its sequences: one, or one a choice for choice tasks."""


def _one_row(row: Row) -> Iterator[Row]:
    yield row


@dataclass(frozen=True)
class Files:
    """Where a task's splits lie in a folder of one's own, and how a file becomes rows.

    ``patterns`` are globs by split, tried in order, below ``data.path`` or its ``folders``; ``{name}`` in a split's name
    and its patterns stands for what tells extra test splits apart, such as a language. Without ``read`` the suffix says
    how to read a file: JSONL, CSV, TSV or Parquet, and the patterns are without suffix.
    """

    folders: tuple[str, ...] = ()
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: STEMS)
    read: Reader | None = None
    parted_by: tuple[str, str] | None = None
    """A column that tells apart the extra test splits that one ``test`` file holds, and its value in the dev split."""


@dataclass(frozen=True)
class Task:
    """What a task is: where its rows are, how a row becomes text, which labels and metrics it has.

    ``kind`` names a file of ``prompt_tuning.kinds``. ``labels`` are names in the order of the logits; ``None`` means that
    they are collected from the training split. The first of ``metrics`` selects the best evaluation. All ``columns`` hold
    texts but the ``number_columns`` and, for lists of words, the ``word_columns``.
    """

    name: str
    kind: str
    labels: tuple[str, ...] | None
    metrics: Mapping[str, Metric]
    columns: tuple[str, ...]
    templates: Mapping[str, Template]
    cloze: Mapping[str, Template] = field(default_factory=dict)
    """Templates whose second texts are gaps: one sequence for each label, scored by the language model."""
    hub: tuple[str, str | None] | None = None
    files: Files = Files()
    label_column: str = "label"
    number_columns: tuple[str, ...] = ()
    word_columns: tuple[str, ...] = ()
    expand: Callable[[Row], Iterable[Row]] = _one_row
    """The task's rows in a row of a file, as where a passage brings several questions."""
    example: Callable[[Row], Any] | None = None
    """What rows share that are one example together, one behind the other; None: every row is an example."""
    remember: Callable[[Row], Any] | None = None
    """What ``regroup`` needs to know of a row."""
    regroup: Callable[[Sequence[Any], Any, Any], tuple[Any, Any]] | None = None
    """From what is remembered of the examples, their classes [E] and logits [E, C]: gold and predicted answers, where
    examples belong together."""
    plain_metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Metrics of a tagging task whose tags name no spans (no B-, I- or O); none: its tags must."""
    lead: str = ""
    """What stands in front of the source where the answer is written (kinds :data:`WRITTEN`)."""
    is_whole: bool = False
    """Whether a source that would be cut is a mistake, as a question behind examples is."""
    separator: str = "\n"
    """What stands between source and target there."""
    goes_on: bool = False
    """Whether a source goes on where the prompt ends, without the tokens that begin a text, and its target is the rest of a line:
    it begins as words inside a sentence do, and a line break ends it in place of the end token."""
    is_chat: bool = False
    """Whether sources are conversations (:mod:`prompt_tuning.tasks.chat`), which the tokenizer's own template writes."""
    document: str | None = None
    """File of the document that the prompt stands for (kind `document`)."""
    has_null: bool = False
    """Whether a question may have no answer."""
    hub_splits: Mapping[str, tuple[str, str | None, str]] = field(default_factory=dict)
    """Repository, configuration and split on the hub of splits that ``hub`` does not hold under their usual names."""
    origin: str | None = None
    """Where to get data that may not be passed on."""
    version: int = 1
    """Of the texts that the templates make: raised when any changes, so that a prompt trained on the old ones says so."""

    @property
    def is_written(self) -> bool:
        """Whether the language model writes the answer, a text, behind the first text of the template."""
        return self.kind in WRITTEN

    def all_templates(self) -> dict[str, Template]:
        """By name, the published one first."""
        return {**self.templates, **self.cloze}

    def template_name(self, name: str | None) -> str:
        """A template's name as a setting gives it; None: the published one."""
        return name or next(iter(self.templates))

    def for_labels(self, labels: tuple[str, ...]) -> Task:
        """This task with the metrics that its labels allow: tags that name no spans have ``plain_metrics`` alone."""
        if not self.plain_metrics or all(label == OUTSIDE or names_span(label) for label in labels):
            return self
        return replace(self, metrics=self.plain_metrics)

    @property
    def selects_by(self) -> str:
        """Name of the metric that selects the best evaluation."""
        return next(iter(self.metrics))

    def label_index(self, value: Any, labels: tuple[str, ...]) -> int | None:
        """As :func:`prompt_tuning.tasks.labels.label_index`."""
        return label_index(value, labels, self.labels is not None)


def yes_or_no(context: str, question: str, answers: tuple[str, ...] = ("no", "yes")) -> tuple[tuple[str, Gap], ...]:
    """A sequence for each answer to a question about a context."""
    return tuple((context, Gap(f"{question} ", answer, ".")) for answer in answers)


def named(names: Mapping[str, str] | None = None) -> Callable[[Row], Iterator[Row]]:
    """An ``expand`` that gives columns the task's names where a row lacks those."""

    def rename(row: Row) -> Iterator[Row]:
        yield {(names or {}).get(key, key) if (names or {}).get(key) not in row else key: row[key] for key in row}

    return rename


def with_references(target: str, expand: Callable[[Row], Iterable[Row]] = _one_row) -> Callable[[Row], Iterator[Row]]:
    """An ``expand`` that joins the texts of a column ``references`` to those of the column ``target``, which stays the first."""

    def join(row: Row) -> Iterator[Row]:
        for own in expand(row):
            others = [text for text in own.get("references") or () if text != own.get(target)]
            yield {**own, target: [own[target], *others]} if own.get(target) is not None and others else own

    return join
