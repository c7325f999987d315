"""Files of questions about contexts in SQuAD's layout: ``{"data": [{"paragraphs": [{"context", "qas": [...]}]}]}``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.messages import show


def questions(file: Path) -> Iterator[LocatedRow]:
    """One row a question: ``id``, ``question``, ``context`` and ``answers``. Raises :class:`UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{file}{line}: not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    for number, article in enumerate(_items(content, "data", str(file))):
        for place, paragraph in enumerate(_items(article, "paragraphs", f"{file}: data[{number}]")):
            where = f"{file}: data[{number}].paragraphs[{place}]"
            for count, question in enumerate(_items(paragraph, "qas", where)):
                if not isinstance(question, dict):
                    raise UserError(f"{where}.qas[{count}]: {show(question)} is not an object")
                name = f"{where}.qas[{count}]" + (f" (id {question['id']})" if "id" in question else "")
                # Some files keep crowd workers' wrong answers to impossible questions beside an empty list.
                answers = [] if question.get("is_impossible") is True else question.get("answers")
                yield name, {**question, "context": paragraph.get("context"), "answers": answers}


def _items(value: Any, key: str, where: str) -> list[Any]:
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{where}: no list `{key}`; the file needs SQuAD's layout, data > paragraphs > qas")
    return items
