"""Classification of the user's own texts or text pairs, from JSONL, CSV, Parquet or a hub data set.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from typing import Literal

from pydantic import Field

from prompt_tuning.config import Section
from prompt_tuning.tasks import Pair, Row, Task


class Options(Section):
    name: str = Field("classification", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name in results.")
    text: str = Field("text", description="Column of the text.")
    text_pair: str | None = Field(None, description="Column of a second text.")
    label: str = Field("label", description="Column of the label: a name or a number.")
    labels: list[str] | None = Field(None, min_length=2, description="All labels; None: those of the training split.")
    metric: Literal["accuracy", "macro_f1"] = Field("accuracy", description="Metric that selects the best prompt.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")


def build(options: Options) -> Task:
    """The task that ``options`` describe."""

    def texts(row: Row) -> tuple[Pair, ...]:
        return ((str(row[options.text]), None if options.text_pair is None else str(row[options.text_pair])),)

    return Task(
        name=options.name,
        kind="classification",
        labels=None if options.labels is None else tuple(options.labels),
        metrics=(options.metric, *(m for m in ("accuracy", "macro_f1") if m != options.metric)),
        columns=tuple(column for column in (options.text, options.text_pair) if column is not None),
        templates={"plain": texts},
        hub=None,
        label_column=options.label,
    )
