"""Choice among the user's own candidates: which of several texts goes with a given one.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from pydantic import Field

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.types import Pair, Task


class Options(Section):
    name: str = Field("choice", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    text: str = Field("text", description="Column of the text that all choices share.")
    choices: list[str] = Field(["choice1", "choice2"], min_length=2, description="Columns of the choices.")
    label: str = Field("label", description="Column of the right choice: its column's name, or its number from 0.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")


def build(options: Options) -> Task:
    """The task that ``options`` describe."""

    def pairs(row: Row) -> tuple[Pair, ...]:
        return tuple((row[options.text], row[choice]) for choice in options.choices)

    return Task(
        name=options.name,
        kind="choice",
        labels=tuple(options.choices),
        metrics={"accuracy": accuracy},
        columns=(options.text, *options.choices),
        templates={"pair": pairs},
        label_column=options.label,
    )
