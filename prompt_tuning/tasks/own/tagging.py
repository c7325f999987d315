"""Tags of the user's own words: columns in CoNLL's manner, or JSONL with a list of words and one of tags.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, of any suffix, or a hub id.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from prompt_tuning.formats import Row
from prompt_tuning.formats.columns import TABLES_OR_COLUMNS, tag_columns
from prompt_tuning.formats.tags import OUTSIDE, names_span
from prompt_tuning.messages import show
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.types import Files, Task


def _word_accuracy(gold: list[list[str]], predicted: list[list[str]]) -> float:
    return accuracy(*(np.array(list(chain.from_iterable(side))) for side in (gold, predicted)))


_METRICS = {"f1": entity_f1, "f1_strict": strict_entity_f1, "accuracy": _word_accuracy}


class Options(Section):
    """Settings of a tagging task."""

    name: str = Field("tagging", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    words: str = Field("words", description="JSON column of the words, a list.")
    tags: str = Field("tags", description="JSON column of the tags, a list; spans in IOB1, IOB2, BILOU or BIOES.")
    word_column: int | None = Field(
        None, description="Column of the word in other files, from 0; None: the first that does not count."
    )
    tag_column: int = Field(-1, description="Column of the tag in other files; -1: the last.")
    labels: list[str] | None = Field(
        None, min_length=2, description="All tags in IOB2; None: those of the training split."
    )
    metric: Literal["f1", "f1_strict", "accuracy"] | None = Field(
        None,
        description="Metric that selects the best prompt; None: f1 where tags name spans (B-, I-, O), else accuracy.",
    )
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")

    @model_validator(mode="after")
    def _spans_for_f1(self) -> "Options":
        tags = [tag for tag in self.labels or () if tag != OUTSIDE]
        plain = [tag for tag in tags if not names_span(tag)]
        if plain and (self.metric in ("f1", "f1_strict") or (self.metric is None and len(plain) < len(tags))):
            raise ValueError(
                f"labels: tag {show(plain[0])} is no B-, I- or O, which {self.metric or 'f1'} counts;"
                " correct it or set task.metric to accuracy"
            )
        return self


def build(options: Options) -> Task:
    """The task that ``options`` describe."""
    names = {options.words: "words", options.tags: "tags"}

    def rename(row: Row) -> Iterator[Row]:
        yield {names.get(key, key): value for key, value in row.items()}

    return Task(
        name=options.name,
        kind="tagging",
        labels=None if options.labels is None else tuple(options.labels),
        metrics={name: _METRICS[name] for name in sorted(_METRICS, key=lambda name: name != (options.metric or "f1"))},
        plain_metrics={"accuracy": _word_accuracy} if options.metric in (None, "accuracy") else {},
        columns=("words",),
        templates={"words": lambda row: ((row["words"], None),)},
        files=Files(patterns=TABLES_OR_COLUMNS, read=tag_columns(options.word_column, options.tag_column)),
        label_column="tags",
        word_columns=("words",),
        expand=rename,
    )
