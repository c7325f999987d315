"""Winograd schema challenge: does a pronoun refer to a given noun phrase (Levesque et al. 2012; SuperGLUE).

``prefixed`` puts the pronoun in front of the text, ``starred`` marks it inside the text; the noun phrase is the second
text of both. SuperGLUE's own files nest the spans under ``target``; the hub's have them as columns.
"""

from collections.abc import Iterator

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Pair, Task, yes_or_no


def _flatten(row: Row) -> Iterator[Row]:
    yield {**row, **row["target"]} if isinstance(row.get("target"), dict) else row


def _prefixed(row: Row) -> tuple[Pair, ...]:
    return ((f"{row['span2_text']}: {row['text']}", row["span1_text"]),)


def _starred(row: Row) -> tuple[Pair, ...]:
    words, index = row["text"].split(), row["span2_index"]
    if not 0 <= index < len(words):
        raise ValueError(f"span2_index is {index}, but the text has {len(words)} words, counted from 0")
    words[index] = f"*{words[index]}*"
    return ((" ".join(words), row["span1_text"]),)


TASK = Task(
    name="wsc",
    kind="classification",
    labels=("False", "True"),
    metrics={"accuracy": accuracy},
    columns=("text", "span1_text", "span2_text", "span2_index"),
    templates={"prefixed": _prefixed, "starred": _starred},
    cloze={"cloze": lambda row: yes_or_no(row["text"], f"Does the word {row['span2_text']} mean {row['span1_text']}?")},
    hub=("aps/super_glue", "wsc.fixed"),
    files=Files(folders=("WSC", "superglue/WSC")),
    number_columns=("span2_index",),
    expand=_flatten,
)
