"""Plans that lose and double nothing, and layouts equal to a plain loop over rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.forward.batch import Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.plan import plan
from prompt_tuning.tokens.features import Features
from tests.support.packed import text_rows

CPU = torch.device("cpu")
PAD = 99


def make_features(row_lengths, choices=1, seed=0, with_types=True):
    """Features of rows of given lengths, every token and label random."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(row_lengths)])
    tokens = generator.integers(0, 90, offsets[-1]).astype(np.int32)
    types = generator.integers(0, 2, offsets[-1]).astype(np.int8) if with_types else None
    labels = generator.integers(0, 5, len(row_lengths) // choices)
    tags = generator.integers(-1, 3, offsets[-1]) if seed % 2 else None
    return Features(tokens, types, offsets, choices, labels, tags)


def draw_shapes(draw, members):
    """Prefixes, input prompts, or nothing."""
    drawn = [
        draw(
            st.sampled_from(
                [
                    (0, 0, 0, 0, 0),
                    (1, 0, 1, 0, 1),
                    (5, 0, 5, 0.25, 0),
                    (5, 0, 0, 0, 2),
                    (40, 40, 0, 0, 1),
                ]
            )
        )
        for _ in range(members)
    ]
    *whole, rates, reads = np.array(drawn).T
    return PromptShapes(*(column.astype(np.int64) for column in whole), rates, reads.astype(np.int64))


@st.composite
def fleets(draw):
    """A pool whose members differ in choices and prompts, some with the same data, and items of it."""
    distinct = []
    for seed in range(draw(st.integers(1, 3))):
        choices = draw(st.integers(1, 3))
        examples = draw(st.integers(1, 12))
        lengths = draw(st.lists(st.integers(1, 30), min_size=choices * examples, max_size=choices * examples))
        distinct.append(make_features(lengths, choices, seed))
    members = [draw(st.sampled_from(distinct)) for _ in range(draw(st.integers(1, 4)))]
    prompts = draw_shapes(draw, len(members))
    parts = []
    for index, features in enumerate(members):
        chosen = draw(st.lists(st.integers(0, len(features) - 1), unique=True))
        if chosen:
            parts.append((index, np.array(chosen), 1 / len(chosen)))
    if not parts:
        parts.append((0, np.array([0]), 1.0))
    return members, prompts, parts


@given(fleet=fleets(), budget=st.sampled_from([1, 30, 100, 10**6]), ranks=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_a_plan_covers_every_item_once_in_equally_many_batches(fleet, budget, ranks):
    members, prompts, parts = fleet
    pool, items = Pool(members, prompts), Items.of(parts)
    plans = [list(plan(pool, items, budget, rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in plans}) == 1
    batches = [batch for batches in plans for batch in batches]
    found = [
        (m, e, w)
        for batch in batches
        for m, e, w in zip(batch.members.tolist(), batch.examples.tolist(), batch.weights.tolist(), strict=True)
        if w > 0
    ]
    assert sorted(found) == sorted((m, int(e), w) for m, examples, w in parts for e in examples)
    for batch in batches:
        assert len(batch) == 1 or (batch.weights > 0).all(), "a dummy runs alone"


@given(fleet=fleets(), budget=st.sampled_from([1, 30, 100, 400]), ranks=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_no_batch_outgrows_its_budget(fleet, budget, ranks):
    """Tokens of texts and prompts count; only an example that is too long by itself may exceed the budget."""
    members, prompts, parts = fleet
    pool = Pool(members, prompts)
    for rank in range(ranks):
        for chosen in plan(pool, Items.of(parts), budget, rank, ranks):
            batch = lay_out(pool, chosen, PAD, CPU)
            of_prompts = prompts.lengths[list(batch.members)][batch.member_of_row.numpy()].sum()
            assert len(batch.tokens) + of_prompts <= budget or len(chosen) == 1


def test_a_large_budget_makes_one_batch():
    pool = Pool([make_features([3, 9, 4, 7])], PromptShapes(*np.array([[5, 0, 5, 0, 0]]).T))
    items, tokens = Items.of([(0, np.arange(4), 0.25)]), 3 + 9 + 4 + 7 + 4 * 5
    (batch,) = plan(pool, items, tokens, 0, 1)
    assert batch.examples.tolist() == [1, 3, 2, 0], "longest first"
    assert len(list(plan(pool, items, tokens - 1, 0, 1))) == 2


def test_a_rank_without_examples_runs_the_shortest_as_a_dummy():
    pool = Pool([make_features([8, 2])])
    items = Items.of([(0, np.array([0, 1]), 0.5)])
    (idle,) = plan(pool, items, 100, 2, 3)
    assert idle.examples.tolist() == [1]
    assert idle.weights.tolist() == [0.0]
    batch = lay_out(pool, idle, PAD, CPU)
    assert batch.weights.tolist() == [0.0]
    assert batch.input_ids.shape == (1, 2)


def naive_rows(members, items):
    """Each row as (member, example, choice, tokens, types), sorted by member, by plain loops."""
    rows = []
    for member, example in sorted(
        zip(items.members.tolist(), items.examples.tolist(), strict=True), key=lambda x: x[0]
    ):
        features = members[member]
        for choice in range(features.rows_per_example):
            row = example * features.rows_per_example + choice
            start, end = features.offsets[row], features.offsets[row + 1]
            types = None if features.token_types is None else features.token_types[start:end].tolist()
            rows.append((member, example, choice, features.tokens[start:end].tolist(), types))
    return rows


@given(fleet=fleets())
@settings(max_examples=150, deadline=None)
def test_a_layout_equals_a_loop_over_rows(fleet):
    members, prompts, parts = fleet
    pool, items = Pool(members, prompts), Items.of(parts)
    shuffled = items.take(np.random.default_rng(0).permutation(len(items)))
    batch = lay_out(pool, shuffled, PAD, CPU)
    rows = naive_rows(members, shuffled)
    longest = max(len(tokens) for *_, tokens, _ in rows)
    padded = [tokens + [PAD] * (longest - len(tokens)) for *_, tokens, _ in rows]
    assert text_rows(batch.input_ids[0], batch, PAD).tolist() == padded
    padded = [types + [0] * (longest - len(types)) for *_, types in rows]
    assert text_rows(batch.token_type_ids[0], batch).tolist() == padded
    assert batch.lengths.tolist() == [len(tokens) for *_, tokens, _ in rows]
    assert [batch.members[i] for i in batch.member_of_row] == [row[0] for row in rows]
    keys = [example * members[member].rows_per_example + choice for member, example, choice, _, _ in rows]
    assert batch.row_examples.tolist() == keys
    firsts = [row for row in rows if row[2] == 0]
    assert batch.examples.tolist() == [example for _, example, *_ in firsts]
    assert batch.labels.tolist() == [members[member].labels[example] for member, example, *_ in firsts]
    assert batch.weights.dtype == torch.float64
    weights = {member: weight for member, _, weight in parts}
    assert batch.weights.tolist() == [weights[member] for member, *_ in firsts]
    for place, (member, span) in enumerate(zip(batch.members, batch.spans, strict=True)):
        assert {row[0] for row in rows[span.rows]} == {member} == {row[0] for row in firsts[span.examples]}
        own = batch.rows_of(place)
        assert own.lengths.tolist() == batch.lengths[span.rows].tolist() and own.longest == own.lengths.max()
        assert own.row_of_token.tolist() == [i for i, n in enumerate(own.lengths.tolist()) for _ in range(n)]
        assert own.tokens[own.first_of_row].tolist() == own.first.tolist()
        assert (own.asked is None) == (own.tags is None)
        assert own.asked is None or own.asked.tolist() == (own.tags >= 0).nonzero()[:, 0].tolist()
    assert sum(span.rows.stop - span.rows.start for span in batch.spans) == len(rows)
    check_where_rows_stand(batch, prompts)
    check_what_is_read(batch, prompts)
    check_rates(batch, prompts)


def check_rates(batch, prompts):
    """Each row drops as its member does."""
    rates = [prompts.rates[batch.members[member]] for member in batch.member_of_row]
    assert (batch.rates is None and not any(rates)) or batch.rates.tolist() == rates


def check_what_is_read(batch, prompts):
    """None where a head sees all tokens of a row; else one token a row."""
    own = [prompts.reads[batch.members[member]] for member in batch.member_of_row]
    expected = [
        int(first + (length - 1) * (read == 1))
        for read, first, length in zip(own, batch.first, batch.lengths, strict=True)
    ]
    assert (batch.read is None) if 2 in own else (batch.read.tolist() == sorted(expected))


def check_where_rows_stand(batch, prompts):
    """Tokens stand end to end, member by member, group by group, behind their input prompts; rows of a group are alike."""
    place, standing = 0, batch.standing.tolist()
    positions = batch.positions[0].tolist()
    fronts = set() if batch.fronts is None else set(batch.fronts.places.tolist())
    seen_groups = set()
    for group in batch.groups:
        assert (group.member, group.length) not in seen_groups, "neighbours of a kind run together"
        seen_groups.add((group.member, group.length))
        rows = standing[group.rows]
        assert {int(batch.member_of_row[row]) for row in rows} == {group.member}
        assert group.tokens == slice(place, place + len(rows) * group.length)
        for row in rows:
            member = batch.members[batch.member_of_row[row]]
            front, start, length = prompts.fronts[member], prompts.starts[member], int(batch.lengths[row])
            assert group.length == front + length and int(batch.first[row]) == place + front
            assert positions[place : place + front] == list(range(front))
            text = range(place + front, place + front + length)
            assert [positions[i] for i in text] == [front + start + i for i in range(length)]
            assert fronts.issuperset(range(place, place + front)) and fronts.isdisjoint(text)
            assert all(batch.input_ids[0, i] == PAD for i in range(place, place + front))
            place += group.length
    assert place == batch.input_ids.shape[1] and sorted(standing) == list(range(len(standing)))
    if batch.fronts is not None:
        before = np.cumsum(prompts.fronts[list(batch.members)]) - prompts.fronts[list(batch.members)]
        for row, column, vector in zip(
            *(x.tolist() for x in (batch.fronts.rows, batch.fronts.columns, batch.fronts.vectors)), strict=True
        ):
            assert vector == before[batch.member_of_row[row]] + column


def test_members_with_the_same_data_share_its_arrays():
    features = make_features([3, 4, 5])
    other = make_features([2, 2])
    pool = Pool([features, other, features])
    assert pool.sources == [features, other] and pool.source_of.tolist() == [0, 1, 0]


@pytest.mark.parametrize("with_types", [True, False])
def test_token_types_are_there_where_the_data_has_them(with_types):
    pool = Pool([make_features([3, 4], with_types=with_types)])
    batch = lay_out(pool, Items.of([(0, np.arange(2), 0.5)]), PAD, CPU)
    assert (batch.token_type_ids is not None) == with_types
