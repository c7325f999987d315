"""The answers to a test split, kept beside a member's result: one line of JSON an example, as the task's metrics take them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.metrics.generation import Written
from prompt_tuning.metrics.texts import SpanAnswer
from prompt_tuning.storage.atomic import make_folder, write_text

_LARGEST = 1e308
"""In the place of an infinite score, which JSON has no word for."""


def answers_file(member: Path, split: str) -> Path:
    """Where a member's folder keeps its answers to a split, such as ``answers/test.jsonl`` or ``answers/test/de.jsonl``."""
    return member / "answers" / f"{split}.jsonl"


def write_answers(file: Path, gold: Any, predicted: Any) -> None:
    """Write gold and predicted answers of a whole split."""
    make_folder(file.parent)
    lines = [
        json.dumps({"gold": _plain(right), "predicted": _plain(own)}, ensure_ascii=False)
        for right, own in zip(gold, predicted, strict=True)
    ]
    write_text(file, "".join(f"{line}\n" for line in lines))


def read_answers(file: Path) -> tuple[Any, Any]:
    """Gold and predicted answers as they were written. Raises :class:`UserError`."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return _column([line["gold"] for line in lines]), _column([line["predicted"] for line in lines])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file}: the answers of a test split are missing or damaged; run its member again") from None


def _plain(answer: Any) -> Any:
    if isinstance(answer, SpanAnswer):
        score, odds = (float(np.clip(value, -_LARGEST, _LARGEST)) for value in (answer.score, answer.null_odds))
        return asdict(SpanAnswer(answer.text, score, odds))
    if isinstance(answer, Written):
        return asdict(answer)
    return answer.tolist() if isinstance(answer, (np.ndarray, np.generic)) else answer


def _column(values: list[Any]) -> Any:
    """Numbers and lists of numbers become arrays, answers of spans what they were."""
    if all(isinstance(value, (int, float)) for value in values):
        return np.array(values)
    if all(isinstance(value, dict) for value in values):
        kind: type[SpanAnswer] | type[Written] = Written if "log_probability" in values[0] else SpanAnswer
        return [kind(**value) for value in values]
    lists = [value for value in values if isinstance(value, list) and value]
    if lists and len(lists) == len(values) and all(isinstance(item, (int, float)) for own in lists for item in own):
        return [np.array(value) for value in values]
    return values
