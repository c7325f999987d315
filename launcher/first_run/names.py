"""What columns are usually called."""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.first_run.columns import Column
from prompt_tuning.messages import show

Columns = Mapping[str, Column]

TEXTS = ("text", "sentence", "premise", "question", "review", "content", "body", "message", "comment", "document", "tweet",
         "utterance", "query", "description")  # fmt: skip
PAIRS = (("text", "text_pair"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("premise", "hypothesis"),
         ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"), ("question", "passage"),
         ("query", "document"), ("question", "sentence"))  # fmt: skip
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold", "label_text",
          "score", "rating", "stars", "similarity", "value", "price", "grade")  # fmt: skip
AMOUNTS = ("score", "rating", "stars", "similarity", "value", "price", "grade", "age", "count")
"""Names of labels that are amounts rather than classes."""
WRITTEN = (("source", "target"), ("input", "output"), ("prompt", "completion"), ("instruction", "output"),
           ("instruction", "response"), ("article", "summary"), ("article", "highlights"), ("document", "summary"),
           ("text", "summary"), ("question", "answer"))  # fmt: skip
CHOICES = ("choices", "options", "candidates", "endings", "alternatives", "answers")
NUMBERED = re.compile(r"(choice|option|answer|ending|alternative|solution|sol|candidate)[ _]?([0-9]|[A-Ea-e])")
_IN_PAIRS = {name for pair in (*PAIRS, *WRITTEN) for name in pair}
KNOWN = {*TEXTS, *LABELS, *CHOICES, *_IN_PAIRS, "context", "tokens", "words", "tags"}
OF_COLUMNS = (
    "text",
    "text_pair",
    "label",
    "source",
    "target",
    "question",
    "context",
    "answers",
    "choices",
    "words",
    "tags",
    "messages",
)
"""Settings of tasks that name columns."""


def columns_there(columns: Columns) -> str:
    """For messages: the columns that a table has."""
    names = [show(name) for name in columns]
    return f"there are columns {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def named(columns: Columns, *wanted: str) -> str | None:
    """The column that bears the first of some names, whatever its case."""
    folded = {name.strip().lower(): name for name in reversed(list(columns))}
    return next((folded[name] for name in wanted if name in folded), None)
