"""Rows of chat messages as conversations, each with its reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from prompt_tuning.formats import Row

CONVERSATION, REPLY = "conversation", "reply"
"""Columns of a task's own rows: messages up to a reply, as JSON, and the reply."""


def replies(column: str) -> Callable[[Row], Iterator[Row]]:
    """An ``expand`` from a column of messages, each with `role` and `content`, to a row for each reply of the assistant; where the
    last message is none, to the one row that is to be answered."""

    def expand(row: Row) -> Iterator[Row]:
        messages = [_message(place, own) for place, own in enumerate(_listed(column, row[column]), 1)]
        last = len(messages) - 1
        places = [place for place, own in enumerate(messages) if own["role"] == "assistant"]
        if last not in places:
            yield {CONVERSATION: json.dumps(messages, ensure_ascii=False)}
            return
        for place in places:
            if not any(own["role"] != "system" for own in messages[:place]):
                raise ValueError(f"message {place + 1} of `{column}` is a reply to nothing")
            before = json.dumps(messages[:place], ensure_ascii=False)
            yield {CONVERSATION: before, REPLY: messages[place]["content"]}

    return expand


def conversation(messages: Any) -> str:
    """Messages that are to be answered, as a row of such a task has them. Raises :class:`ValueError`."""
    found = [_message(place, own) for place, own in enumerate(_listed("messages", messages), 1)]
    if found[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's, and there is nothing to answer")
    return json.dumps(found, ensure_ascii=False)


def _listed(column: str, value: Any) -> list[Any]:
    """A list of messages, which some formats keep as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"`{column}` is a text, and no JSON list of messages") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` is no list of messages")
    return value


def _message(place: int, own: Any) -> dict[str, str]:
    if not isinstance(own, dict) or not all(isinstance(own.get(key), str) for key in ("role", "content")):
        raise ValueError(f"message {place} is no object with the texts `role` and `content`")
    return {key: own[key] for key in ("role", "content")}
