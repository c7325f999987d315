"""How the tokens of a batch are laid out: end to end, member after member, a member's rows of equal length side by side."""

from __future__ import annotations

import numpy as np
import torch

from prompt_tuning.backbone.rows import Group
from prompt_tuning.forward.batch import ALL, FIRST, Batch, Fronts, Items, Pool, Span
from prompt_tuning.tokens.features import NO_TAG
from prompt_tuning.tokens.lessons import LESSON_TOKENS
from prompt_tuning.tokens.packed import Teacher


def lay_out(pool: Pool, items: Items, pad_token: int, device: torch.device) -> Batch:
    """Gather the items' tokens on the device; ``pad_token`` holds the place of an input prompt's vector."""
    items = items.take(np.argsort(items.members, kind="stable"))
    members, member_of_example = np.unique(items.members, return_inverse=True)
    per_example = pool.rows_per_example[items.members]
    row_examples = ranges(items.examples * per_example, per_example)
    row_members = np.repeat(items.members, per_example)
    member_of_row = np.repeat(member_of_example, per_example)
    lengths = np.empty(len(row_examples), np.int64)
    for source, rows in pool.by_source(row_members):
        lengths[rows] = source.lengths(row_examples[rows])

    encoded = np.zeros(len(lengths), np.int64)
    for source, rows in pool.by_source(row_members):
        counts = getattr(source.notes, "num_encoded", None)
        if counts is not None:
            encoded[rows] = counts[row_examples[rows]]

    shapes, fronts = pool.shapes, pool.shapes.fronts[row_members]
    widths = lengths + fronts
    standing = np.lexsort((-encoded, -widths, member_of_row))
    begins = np.empty_like(widths)
    begins[standing] = np.cumsum(widths[standing]) - widths[standing]
    first = begins + fronts

    row_of_token = np.repeat(np.arange(len(lengths)), lengths)
    tokens = ranges(first, lengths)
    total = int(widths.sum())
    positions = np.empty(total, np.int64)
    positions[tokens] = tokens - begins[row_of_token] + shapes.starts[row_members][row_of_token]
    input_ids = np.full(total, pad_token, np.int64)
    token_types = np.zeros(total, np.int64) if pool.has_types else None
    tags = np.full(len(tokens), NO_TAG, np.int64) if pool.has_tags else None
    for source, rows in pool.by_source(row_members):
        own: slice | np.ndarray = slice(None)
        if len(pool.sources) > 1:
            has = np.zeros(len(lengths), bool)
            has[rows] = True
            own = has[row_of_token]
        read = ranges(source.offsets[row_examples[rows]], lengths[rows])
        input_ids[tokens[own]] = source.tokens[read]
        if token_types is not None and source.token_types is not None:
            token_types[tokens[own]] = source.token_types[read]
        if tags is not None and source.tags is not None:
            tags[own] = source.tags[read]
    labels = np.empty(len(items), np.result_type(*(source.labels for source in pool.sources)))
    for source, examples in pool.by_source(items.members):
        labels[examples] = source.labels[items.examples[examples]]

    front_tokens = None
    if fronts.any():
        rows, columns = np.repeat(np.arange(len(fronts)), fronts), ranges(np.zeros_like(fronts), fronts)
        places = begins[rows] + columns
        positions[places] = columns
        before = np.cumsum(shapes.fronts[members]) - shapes.fronts[members]
        vectors = before[member_of_row[rows]] + columns
        front_tokens = Fronts(*map(torch.from_numpy, (places, vectors, rows, columns)))
    reads = shapes.reads[row_members]
    reading = None if (reads == ALL).any() else np.sort(np.where(reads == FIRST, first, first + lengths - 1))
    asked = np.zeros(0, np.int64) if tags is None else np.flatnonzero(tags >= 0)
    teacher = _teacher(pool, row_members, row_examples, np.bincount(row_of_token[asked], minlength=len(lengths)))
    is_taught = [pool.sources[source].has_teacher for source in pool.source_of[members]]
    spans = _spans(member_of_example, member_of_row, lengths, asked, is_taught)
    asked -= np.repeat([span.tokens.start for span in spans], [span.asked.stop - span.asked.start for span in spans])
    own_row = row_of_token - np.array([span.rows.start for span in spans])[member_of_row[row_of_token]]
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        token_type_ids=None if token_types is None else torch.from_numpy(token_types)[None],
        positions=torch.from_numpy(positions)[None],
        groups=Group.neighbours(
            zip(*(own[standing].tolist() for own in (member_of_row, widths, encoded)), strict=True)
        ),
        read=None if reading is None else torch.from_numpy(reading),
        standing=torch.from_numpy(standing),
        rates=torch.from_numpy(shapes.rates[row_members]) if shapes.rates[members].any() else None,
        members=tuple(members.tolist()),
        member_of_row=torch.from_numpy(member_of_row),
        spans=spans,
        first=torch.from_numpy(first),
        lengths=torch.from_numpy(lengths),
        tokens=torch.from_numpy(tokens),
        row_of_token=torch.from_numpy(own_row),
        tags=None if tags is None else torch.from_numpy(tags),
        asked=None if tags is None else torch.from_numpy(asked),
        teacher=teacher,
        fronts=front_tokens,
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(items.weights),
        examples=torch.from_numpy(items.examples),
        row_examples=torch.from_numpy(row_examples),
    ).to(device)


def _teacher(pool: Pool, row_members: np.ndarray, row_examples: np.ndarray, counts: np.ndarray) -> Teacher | None:
    """What teachers expect in the asked places of rows, of which each has ``counts``; None where no row has one."""
    lessons = [(source.notes.lessons, rows) for source, rows in pool.by_source(row_members) if source.has_teacher]
    if not lessons:
        return None
    begins = np.cumsum(counts) - counts
    tokens = np.full((int(counts.sum()), LESSON_TOKENS), -1, np.int64)
    logs = np.zeros(tokens.shape, np.float32)
    for own, rows in lessons:
        taught = rows[own.counts[row_examples[rows]] > 0]
        read = ranges(own.starts[row_examples[taught]], counts[taught])
        places = ranges(begins[taught], counts[taught])
        tokens[places], logs[places] = own.tokens[read], own.log_probabilities[read]
    return Teacher(torch.from_numpy(tokens), torch.from_numpy(logs))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``starts[i], starts[i] + 1, ...``, ``counts[i]`` numbers each, one range behind the other."""
    ends = np.cumsum(counts)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts))


def _spans(
    examples: np.ndarray, rows: np.ndarray, lengths: np.ndarray, asked: np.ndarray, is_taught: list[bool]
) -> tuple[Span, ...]:
    """Each member's part, given the sorted members of examples and rows, and the tokens that have a label."""
    own = np.arange(len(is_taught))
    example_ends, row_ends = (np.searchsorted(x, own, side="right").tolist() for x in (examples, rows))
    token_ends = np.cumsum(lengths)
    spans, example, row, token, label = [], 0, 0, 0, 0
    for example_end, row_end, taught in zip(example_ends, row_ends, is_taught, strict=True):
        token_end, longest = int(token_ends[row_end - 1]), int(lengths[row:row_end].max())
        label_end = int(np.searchsorted(asked, token_end))
        texts, labels = slice(token, token_end), slice(label, label_end)
        spans.append(Span(slice(example, example_end), slice(row, row_end), texts, labels, longest, taught))
        example, row, token, label = example_end, row_end, token_end, label_end
    return tuple(spans)
