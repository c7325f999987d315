"""Which kind of task a table's columns are for, and which column is what in it; or one sentence that says what to decide."""

from __future__ import annotations

from typing import Any

from launcher.first_run.columns import Column
from launcher.first_run.labelled import labelled
from launcher.first_run.names import (
    CHOICES,
    LABELS,
    NUMBERED,
    OF_COLUMNS,
    TEXTS,
    WRITTEN,
    Columns,
    columns_there,
    named,
)
from launcher.first_run.reasons import Recognised
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show

Json = dict[str, Any]


def recognise(columns: Columns, given: Json, where: str) -> Recognised:
    """The task of a table. ``given``: settings of ``task`` that are decided, ``kind`` among them perhaps.

    Raises :class:`UserError` where a column is missing, or two readings are plausible.
    """
    for key, value in given.items():
        for name in (value if isinstance(value, list) else [value]) if key in OF_COLUMNS else ():
            if name not in columns:
                raise UserError(f"{where}: no column {show(name)}, as task.{key} names it; {columns_there(columns)}")
    readers = {"tagging": _tagging, "span": _span, "choice": _choice, "generation": _written}
    kind = given.get("kind")
    if kind is not None:
        found = readers[kind](columns, given) if kind in readers else labelled(columns, given, where)
        if found is None:
            raise UserError(f"{where}: {_WANTED[kind]}; {columns_there(columns)}")
        return _with_unused(found, columns)
    for name in ("tagging", "span", "choice"):  # their columns look like no other kind's
        found = readers[name](columns, given)
        if found is not None:
            return _with_unused(found, columns)
    written = None if {"text", "label"} & set(given) else _written(columns, given)
    if written is None:
        return _with_unused(labelled(columns, given, where), columns)
    read, answer = (
        columns[written.task[key]] for key in (("messages",) * 2 if _is_chat(written) else ("source", "target"))
    )
    has_labels = _label_by_name(columns, answer.name) or answer.repeats
    if {"source", "target", "messages"} & set(given) or not has_labels:
        return _with_unused(written, columns)
    what = f"columns {show(read.name)} and {show(answer.name)} could be texts and what is to be written behind them"
    if _is_chat(written):
        what = f"column {show(read.name)} could be conversations whose replies are to be written"
    raise UserError(
        f"{where}: {what}, and there are labels too or answers that repeat; say which with --kind generation, classification or"
        " regression"
    )


_WANTED = {
    "tagging": "kind tagging needs a list of words and one of tags in each row; name them with --set task.words=COLUMN and"
    " --set task.tags=COLUMN",
    "span": "kind span needs columns of questions, contexts and answers (a list of objects with `text` and `answer_start`); name"
    " them with --set task.question=COLUMN, task.context=COLUMN and task.answers=COLUMN",
    "choice": "kind choice needs a text, choices (columns choice1, choice2, ... or one list) and a label; name them with --set"
    ' task.text=COLUMN, --set \'task.choices=["a", "b"]\' and --set task.label=COLUMN',
    "generation": "kind generation needs a column of texts and one of what is written behind them, or one of chat messages; name"
    " them with --set task.source=COLUMN and --set task.target=COLUMN, or --set task.messages=COLUMN",
}


def _with_unused(found: Recognised, columns: Columns) -> Recognised:
    used = [name for value in found.task.values() for name in (value if isinstance(value, list) else [value])]
    return Recognised(found.task, found.why, tuple(name for name in columns if name not in used))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _lists(columns: Columns) -> list[str]:
    return [name for name, column in columns.items() if column.filled and all(map(_texts, column.filled))]


def _tagging(columns: Columns, given: Json) -> Recognised | None:
    lists = {name: columns[name] for name in _lists(columns)}
    words = given.get("words") or named(lists, "words", "tokens")
    tags = given.get("tags") or named(lists, "tags", "ner_tags", "pos_tags", "labels")
    if words is None or tags is None:
        raw = None if words is None else named(columns, "tags", "ner_tags", "pos_tags", "labels")
        if raw is not None and any(isinstance(value, list) for value in columns[raw].filled):
            raise UserError(
                f"column {show(raw)} holds lists of numbers; write the names of the tags (B-PER, I-PER, O, ...), one for each word"
            )
        return None
    task = {"kind": "tagging", "words": words, "tags": tags}
    return Recognised(task, f"`{words}` and `{tags}` are lists, one tag a word")


def _span(columns: Columns, given: Json) -> Recognised | None:
    def holds(column: Column) -> bool:
        first = next((value for value in column.filled if value not in ([], {})), None)
        entry = first[0] if isinstance(first, list) and first else first
        return isinstance(entry, dict) and {"text", "answer_start"} <= set(entry)

    answers = given.get("answers") or next((name for name, column in columns.items() if holds(column)), None)
    question = given.get("question") or named(columns, "question", "query")
    context = given.get("context") or named(columns, "context", "passage", "paragraph", "text", "document")
    if answers is None or question is None or context is None:
        return None
    task = {"kind": "span", "question": question, "context": context, "answers": answers}
    return Recognised(task, f"`{answers}` says where in `{context}` an answer stands")


def _choice(columns: Columns, given: Json) -> Recognised | None:
    choices: list[str] = given.get("choices") or []
    if not isinstance(choices, list):
        raise UserError(f'task.choices={show(choices)} is no list; give --set \'task.choices=["a", "b"]\'')
    if len(choices) == 1 and not _is_list_of_choices(columns[choices[0]]):
        raise UserError(f"column {show(choices[0])} holds no lists of texts; name two columns or more in task.choices")
    if not choices:
        listed = named({name: columns[name] for name in columns if _is_list_of_choices(columns[name])}, *CHOICES)
        numbered = sorted(name for name in columns if NUMBERED.fullmatch(name.lower()))
        choices = [listed] if listed is not None else numbered if len(numbered) > 1 else []
    rest = {name: column for name, column in columns.items() if name not in choices}
    label = given.get("label") or named(rest, "label", "answer", "answerkey", "answer_key", "gold", "correct", "target")
    text = given.get("text") or named(rest, *TEXTS, "context", "ctx", "goal", "stem")
    if not choices or label is None or text is None:
        return None
    task: Json = {"kind": "choice", "text": text, "choices": choices, "label": label}
    if len(choices) == 1:
        task["most_choices"] = max(2, *(_num_choices(value) for value in columns[choices[0]].filled))
    return Recognised(task, f"`{label}` says which of {', '.join(f'`{name}`' for name in choices)} goes with `{text}`")


def _is_list_of_choices(column: Column) -> bool:
    def is_one(value: Any) -> bool:
        return _texts(value) or (isinstance(value, dict) and _texts(value.get("text")))

    return bool(column.filled) and all(map(is_one, column.filled))


def _num_choices(value: Any) -> int:
    return len(value["text"] if isinstance(value, dict) else value)


def _is_chat(found: Recognised) -> bool:
    return "messages" in found.task


def _written(columns: Columns, given: Json) -> Recognised | None:
    """Texts behind texts, or replies in conversations."""
    return (None if {"source", "target"} & set(given) else _chat(columns, given)) or _generation(columns, given)


def _chat(columns: Columns, given: Json) -> Recognised | None:
    def are(column: Column, *keys: str) -> bool:
        turns = [value for value in column.filled if isinstance(value, list) and value]
        return bool(turns) and all(isinstance(own, dict) and set(keys) <= set(own) for value in turns for own in value)

    name = given.get("messages") or next((name for name, own in columns.items() if are(own, "role", "content")), None)
    other = next((name for name, own in columns.items() if are(own, "from", "value")), None)
    if name is None and other is not None:
        raise UserError(
            f"column {show(other)} holds turns with `from` and `value`; write messages with `role` (system, user, assistant) and"
            " `content`"
        )
    if name is None:
        return None
    return Recognised(
        {"kind": "generation", "messages": name}, f"`{name}` holds chat messages, whose replies are written"
    )


def _generation(columns: Columns, given: Json) -> Recognised | None:
    source, target = given.get("source"), given.get("target")
    if source is None or target is None:
        for names in WRITTEN:
            first, second = source or named(columns, names[0]), target or named(columns, names[1])
            if first is None or second is None or first == second:
                continue
            texts = columns[second].words > 0 or _texts(next(iter(columns[second].filled), None))
            if columns[first].words > 0 and (texts or target is not None):
                source, target = first, second
                break
    if source is None or target is None:
        return None
    return Recognised(
        {"kind": "generation", "source": source, "target": target}, f"`{target}` is written behind `{source}`"
    )


def _label_by_name(columns: Columns, other_than: str) -> bool:
    return named({name: column for name, column in columns.items() if name != other_than}, *LABELS) is not None
