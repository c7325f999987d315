"""How questions about a passage begin, by what they ask for; the frozen model writes the rest of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from prompt_tuning.errors import UserError, reason

Beginnings = Mapping[str, tuple[str, ...]]

ENDS = ("?", "\uff1f")
"""Marks that end a question."""

OPENING, SENTENCE, HALF, GAP = "{opening}", "{sentence}", "{half}", "{gap}"
"""Stand in a beginning for the passage's first words, for one of its sentences, for what a sentence begins with, whose rest is the
answer, and for words around a gap, which is the answer; such a question is whole."""
BLANK = "___"
"""Stands in a gap."""

BEGINNINGS: Beginnings = {
    "facts": (
        *("Who", "When", "Where", "Which", "What is the", "How many", "How much", "How long", "What does"),
        *("What happens", "What must", "At what time", "In which", "What is the name of", "From which", "What was"),
    ),
    "reasoning": ("Why", "How does", "What happens if"),
    "summary": (f'What does the part that begins with "{OPENING}" say?',),
    "structure": (f'What stands behind "{SENTENCE}"?',),
    "recall": (f'How does the sentence go on that begins with "{HALF}"?',),
    "gaps": (f'What stands for {BLANK} in "{GAP}"?',),
}
"""English ones. The more facts, the more of the questions ask for facts."""


def read_beginnings(file: str | None) -> Beginnings:
    """Beginnings from a JSON object of lists by kind; None: the English ones. Raises :class:`UserError`."""
    if file is None:
        return BEGINNINGS
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--beginnings {file}: cannot be read ({reason(error)}); give a JSON file") from None
    is_right = (
        isinstance(found, dict)
        and found
        and all(
            isinstance(own, list) and own and all(isinstance(text, str) and text.strip() for text in own)
            for own in found.values()
        )
    )
    if not is_right:
        raise UserError(
            f'--beginnings {file}: give an object of lists of texts by kind, such as {{"facts": ["Who", "When"]}}'
        )
    return {kind: tuple(text.strip() for text in own) for kind, own in found.items()}
