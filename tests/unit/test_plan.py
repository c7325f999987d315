"""Where weights are cut: ranges of plain, fused and grouped projections, and the sentences of what cannot be cut."""

from __future__ import annotations

import pytest

from model_parallel.grid import TopologyError, check_ranks
from model_parallel.plan import (
    Plan,
    Rule,
    Sizes,
    check_heads,
    columns,
    cut_ranges,
    head_range,
    matches,
    rows,
    vocabulary,
)

SIZES = Sizes(heads=8, key_value_heads=2, head_size=10)


def ranges(rule, length, ranks, sizes=SIZES):
    return [cut_ranges(rule, length, sizes, rank, ranks, "here") for rank in range(ranks)]


def test_plain_columns_and_rows_are_cut_evenly():
    assert ranges(columns("x"), 12, 3) == [((0, 4),), ((4, 8),), ((8, 12),)]
    assert ranges(rows("x", "heads"), 80, 2) == [((0, 40),), ((40, 80),)]


def test_fused_query_key_value_is_regrouped():
    rule = columns("x", "heads", "key_value_heads", "key_value_heads")
    assert ranges(rule, 120, 2) == [((0, 40), (80, 90), (100, 110)), ((40, 80), (90, 100), (110, 120))]


def test_fused_blocks_of_width_are_regrouped():
    assert ranges(columns("x", "width", "width"), 12, 2) == [((0, 3), (6, 9)), ((3, 6), (9, 12))]


def test_neighbours_keep_the_same_key_value_head_where_there_are_too_few():
    assert [head_range(2, rank, 8) for rank in range(8)] == [(0, 1)] * 4 + [(1, 2)] * 4
    assert ranges(columns("x", "key_value_heads"), 20, 4) == [((0, 10),)] * 2 + [((10, 20),)] * 2


def test_a_vocabulary_need_not_divide():
    cut = ranges(vocabulary("x"), 50265, 4)
    assert [end for ((_, end),) in cut[:-1]] == [start for ((start, _),) in cut[1:]]
    assert cut[0][0][0] == 0
    assert cut[-1][0][1] == 50265


def test_a_width_that_does_not_divide_is_one_sentence():
    with pytest.raises(TopologyError, match=r"parallel.tensor=4 does not divide the width 6 of here; .* such as 2"):
        cut_ranges(columns("x"), 6, SIZES, 0, 4, "here")


@pytest.mark.parametrize(
    ("sizes", "tensor", "sentence"),
    [
        (Sizes(16, 16, 64), 3, "parallel.tensor=3 does not divide the 16 heads of m; choose one of 1, 2, 4, 8, 16"),
        (
            Sizes(12, 4, 64),
            3,
            "parallel.tensor=3 does not divide the 4 key/value heads of m; choose one of 1, 2, 4, 12",
        ),
    ],
)
def test_heads_that_do_not_divide_are_one_sentence(sizes, tensor, sentence):
    with pytest.raises(TopologyError) as caught:
        check_heads(sizes, tensor, "m")
    assert str(caught.value) == sentence


def test_fitting_heads_pass():
    for tensor in (1, 2, 4, 8):
        check_heads(SIZES, tensor, "m")


def test_ranks_that_are_no_multiple_are_one_sentence():
    check_ranks(8, 4)
    with pytest.raises(
        TopologyError, match=r"parallel.tensor=4 needs a multiple of 4 ranks, but the job has 6; start 8"
    ):
        check_ranks(6, 4)
    with pytest.raises(TopologyError, match=r"but the job has 1; start 2 or set parallel.tensor to one of 1"):
        check_ranks(1, 2)


def test_a_star_stays_between_two_dots():
    assert matches("layer.3.output.dense", "layer.*.output.dense")
    assert not matches("layer.3.attention.output.dense", "layer.*.output.dense")


def test_two_rules_for_one_module_are_a_mistake_of_the_family():
    plan = Plan((Rule("a.*", "rows"), Rule("a.b", "columns")))
    with pytest.raises(AssertionError, match="matches several rules"):
        plan.rule("a.b")
