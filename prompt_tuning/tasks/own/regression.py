"""A number for the user's own texts or text pairs, from JSONL, CSV, TSV, Parquet or a hub data set.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from typing import Literal

from pydantic import Field

from prompt_tuning.formats import Row
from prompt_tuning.metrics.values import pearson, spearman
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.types import Pair, Task

_METRICS = {"pearson": pearson, "spearman": spearman}


class Options(Section):
    """Settings of a regression task."""

    name: str = Field("regression", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    text: str = Field("text", description="Column of the text.")
    text_pair: str | None = Field(None, description="Column of a second text.")
    label: str = Field("label", description="Column of the number.")
    metric: Literal["pearson", "spearman"] = Field("pearson", description="Metric that selects the best prompt.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")


def build(options: Options) -> Task:
    """The task that ``options`` describe."""

    def texts(row: Row) -> tuple[Pair, ...]:
        return ((row[options.text], None if options.text_pair is None else row[options.text_pair]),)

    return Task(
        name=options.name,
        kind="regression",
        labels=None,
        metrics={name: _METRICS[name] for name in sorted(_METRICS, key=lambda name: name != options.metric)},
        columns=tuple(column for column in (options.text, options.text_pair) if column is not None),
        templates={"plain": texts},
        label_column=options.label,
    )
