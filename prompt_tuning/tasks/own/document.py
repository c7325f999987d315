"""A prompt that stands for a document: questions about it, from `promptfleet synthesise`, and what a teacher that reads the
passage they are about expects as answers.

``data.path`` is a folder with the ``train`` file that the verb has written, ``dev`` and optionally ``test`` files of questions and
answers, which people may have written.
"""

from pydantic import Field

from prompt_tuning.metrics.generation import METRICS
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.own.generation import Name
from prompt_tuning.tasks.types import Task

TEACHER = "teacher"
"""Column of what the teacher expects."""


class Options(Section):
    """Settings of a document's task."""

    document: str = Field(min_length=1, description="The document, a UTF-8 text file.")
    name: str = Field("document", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    metrics: list[Name] = Field(
        ["likelihood", "f1"],
        min_length=1,
        description="Metrics, of which the first selects the best prompt; perplexity is reported beside them.",
    )


def build(options: Options) -> Task:
    """The task that ``options`` describe."""
    return Task(
        name=options.name,
        kind="document",
        labels=None,
        metrics={name: METRICS[name] for name in (*options.metrics, "perplexity")},
        columns=("question",),
        templates={"plain": lambda row: ((row["question"], None),)},
        label_column="answer",
        lead="\n\nQuestion: ",
        separator="\nAnswer:",
        goes_on=True,
        document=options.document,
        origin="promptfleet synthesise writes train, and dev where there is none",
    )
