"""Metrics of tagged sentences, lists of lists of IOB2 tags: entities (CoNLL-2003) and arguments (CoNLL-2005)."""

from __future__ import annotations

from prompt_tuning.formats.tags import OUTSIDE, names_span, spans, to_iob2

Sentences = list[list[str]]


def entity_f1(gold: Sentences, predicted: Sentences) -> float:
    """Micro F1 of whole spans, as conlleval and seqeval's default read tags: leniently."""
    from seqeval.metrics import f1_score

    return float(f1_score(_spans_only(gold), _spans_only(predicted), zero_division=0))


def strict_entity_f1(gold: Sentences, predicted: Sentences) -> float:
    """Micro F1 of whole spans where only those that start with ``B-`` count (seqeval's strict IOB2)."""
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    return float(f1_score(_spans_only(gold), _spans_only(predicted), mode="strict", scheme=IOB2, zero_division=0))


def _spans_only(sentences: Sentences) -> Sentences:
    """Tags with "O" for those that name no span, of which seqeval makes types of their first letters or a KeyError."""
    return [[tag if tag[:2] in ("B-", "I-") and names_span(tag) else OUTSIDE for tag in tags] for tags in sentences]


def argument_f1(gold: Sentences, predicted: Sentences) -> float:
    """Micro F1 of arguments without the verb, the pieces ``C-X`` joined to their ``X`` (the CoNLL-2005 scorer's rule)."""
    counted = argument_counts(gold, predicted)
    right, both = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    return right / both if both else 0.0


def argument_counts(gold: Sentences, predicted: Sentences) -> list[tuple[int, int]]:
    """Of each sentence twice the right arguments, and those of both sides: numerator and denominator of :func:`argument_f1`."""
    pairs = [(_arguments(tags), _arguments(found)) for tags, found in zip(gold, predicted, strict=True)]
    return [(2 * len(right & own), len(right) + len(own)) for right, own in pairs]


def entity_counts(gold: Sentences, predicted: Sentences) -> list[tuple[int, int]]:
    """As :func:`argument_counts`, for :func:`entity_f1`."""
    from seqeval.metrics.sequence_labeling import get_entities

    sides = [[set(get_entities(tags)) for tags in _spans_only(side)] for side in (gold, predicted)]
    return [(2 * len(right & own), len(right) + len(own)) for right, own in zip(*sides, strict=True)]


def _arguments(tags: list[str]) -> set[tuple[str, tuple[tuple[int, int], ...]]]:
    """Arguments of a proposition: type and pieces."""
    pieces: list[tuple[str, list[tuple[int, int]]]] = []
    for name, first, last in spans(to_iob2(tags)):
        kind = name.removeprefix("C-")
        whole = next((found for label, found in reversed(pieces) if label == kind), None)
        if kind != name and whole is not None:
            whole.append((first, last))
        else:
            pieces.append((kind, [(first, last)]))
    return {(name, tuple(found)) for name, found in pieces if name != "V"}
