"""Answers to the user's own questions as pieces of a context: SQuAD's JSON layout, or JSONL rows of
``question``, ``context`` and ``answers`` (a list of ``{"text": ..., "answer_start": ...}``, empty for no answer).

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from pydantic import Field

from prompt_tuning.formats import STEMS
from prompt_tuning.formats.squad import questions
from prompt_tuning.metrics.texts import best_exact_match, best_f1, null_exact_match, null_f1, span_exact_match, span_f1
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.types import Files, Task

_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class Options(Section):
    """Settings of a span task."""

    name: str = Field("span", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    question: str = Field("question", description="Column of the question.")
    context: str = Field("context", description="Column of the text that holds the answer.")
    answers: str = Field("answers", description="Column of the answers.")
    has_null: bool = Field(False, description="Whether a question may have no answer, as in SQuAD 2.0.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")


def build(options: Options) -> Task:
    """The task that ``options`` describe."""
    with_null = {
        "f1": null_f1,
        "exact_match": null_exact_match,
        "best_f1": best_f1,
        "best_exact_match": best_exact_match,
    }
    return Task(
        name=options.name,
        kind="span",
        labels=("start", "end"),
        metrics=with_null if options.has_null else {"f1": span_f1, "exact_match": span_exact_match},
        columns=(options.question, options.context),
        templates={"pair": lambda row: ((row[options.question], row[options.context]),)},
        files=Files(
            patterns={
                split: tuple(f"{stem}{end}" for stem in stems for end in _SUFFIXES) for split, stems in STEMS.items()
            },
            read=questions,
        ),
        label_column=options.answers,
        has_null=options.has_null,
    )
