"""Classification of the user's own texts or text pairs, from JSONL, CSV, Parquet or a hub data set.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from typing import Literal

from pydantic import Field, field_validator

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy, macro_f1
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.types import Pair, Task

_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}


class Options(Section):
    """Settings of a classification task."""

    name: str = Field("classification", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    text: str = Field("text", description="Column of the text.")
    text_pair: str | None = Field(None, description="Column of a second text.")
    label: str = Field("label", description="Column of the label: a name or a number.")
    labels: list[str] | None = Field(None, min_length=2, description="All labels; None: those of the training split.")
    metric: Literal["accuracy", "macro_f1"] = Field("accuracy", description="Metric that selects the best prompt.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        twice = [label for i, label in enumerate(value or []) if label in (value or [])[:i]]
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice; every label is a class of its own")
        return value


def build(options: Options) -> Task:
    """The task that ``options`` describe."""

    def texts(row: Row) -> tuple[Pair, ...]:
        return ((row[options.text], None if options.text_pair is None else row[options.text_pair]),)

    return Task(
        name=options.name,
        kind="classification",
        labels=None if options.labels is None else tuple(options.labels),
        metrics={name: _METRICS[name] for name in sorted(_METRICS, key=lambda name: name != options.metric)},
        columns=tuple(column for column in (options.text, options.text_pair) if column is not None),
        templates={"plain": texts},
        label_column=options.label,
    )
