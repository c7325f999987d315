"""Texts that the language model writes behind the user's own (a causal backbone), from JSONL, CSV, TSV, Parquet or a hub data
set. A target may be a list of texts: the first is trained on, and all are right answers. Or chat messages, each with `role` and
`content`, for which the tokenizer's own chat template stands around.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id.
"""

from typing import Literal

from pydantic import Field, model_validator

from prompt_tuning.metrics.generation import METRICS
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.chat import CONVERSATION, REPLY, replies
from prompt_tuning.tasks.types import Task

Name = Literal["f1", "exact_match", "bleu", "bleu4", "chrf", "rouge1", "rouge2", "rouge_l", "likelihood"]


class Options(Section):
    """Settings of a generation task."""

    name: str = Field("generation", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    source: str = Field("source", description="Column of the text behind which is written.")
    target: str = Field("target", description="Column of the text to write, or of a list of such.")
    messages: str | None = Field(
        None, description="Column of chat messages, in place of source and target; each reply is an example."
    )
    separator: str = Field("\n", description="What stands between source and target.")
    metrics: list[Name] = Field(
        ["f1", "exact_match"],
        min_length=1,
        description="Metrics; the first selects the best prompt. BLEU, chrF and ROUGE need the extra `generation`.",
    )
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")

    @model_validator(mode="after")
    def _columns_differ(self) -> "Options":
        given = [name for name in ("source", "target", "separator") if name in self.model_fields_set]
        if self.messages is not None and given:
            raise ValueError(f"{given[0]} is of texts, and messages are written by the chat template; keep one of them")
        if self.source == self.target:
            raise ValueError(f"source and target are both column {self.source!r}; name two")
        return self


def build(options: Options) -> Task:
    """The task that ``options`` describe."""
    metrics = {name: METRICS[name] for name in (*options.metrics, "perplexity")}
    if options.messages is not None:
        return Task(
            name=options.name,
            kind="generation",
            labels=None,
            metrics=metrics,
            columns=(CONVERSATION,),
            templates={"plain": lambda row: ((row[CONVERSATION], None),)},
            label_column=REPLY,
            expand=replies(options.messages),
            is_chat=True,
        )
    return Task(
        name=options.name,
        kind="generation",
        labels=None,
        metrics=metrics,
        columns=(options.source,),
        templates={"plain": lambda row: ((row[options.source], None),)},
        label_column=options.target,
        separator=options.separator,
    )
