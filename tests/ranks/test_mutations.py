"""The mistakes that parallel code is known for, made on purpose: each must be seen by the comparison that guards it."""

from __future__ import annotations

import pytest
import torch

from model_parallel import apply, collectives, layers, rng
from model_parallel.collectives import sum_over_tensor_ranks
from prompt_tuning.fleet import update
from prompt_tuning.forward import loop
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone, make_texts, run_json


def add_row_bias_on_every_rank():
    def forward(self, inputs):
        return sum_over_tensor_ranks(layers.FrozenLinear.forward(self, inputs), self.group)

    layers.RowParallelLinear.forward = forward


def cut_fused_blocks_in_one_piece():
    def one_range(rule, length, sizes, rank, ranks, where):
        return ((rank * length // ranks, (rank + 1) * length // ranks),)

    apply.cut_ranges = one_range


def take_prefix_gradient_of_first_rank():
    def summed(split, whole, grid):
        collectives.sum_gradients([], [*split, *whole], grid)

    update.sum_gradients = summed


def average_prefix_gradient():
    def summed(split, whole, grid):
        collectives.sum_gradients(split, whole, grid)
        for parameter in split:
            parameter.grad /= grid.tensor

    update.sum_gradients = summed


def count_head_gradient_twice():
    def summed(split, whole, grid):
        collectives.sum_gradients([*split, *whole], [], grid)

    update.sum_gradients = summed


def draw_prompt_dropout_by_rank():
    draw = rng.keep_mask

    def own(keys, count, rates):
        return draw(rng.fold(keys, torch.distributed.get_rank() % 2), count, rates)

    rng.keep_mask = own


def forget_to_sum_what_enters():
    apply.enter_tensor_ranks = lambda tensor, group: tensor


def leave_a_rank_without_rows():
    whole_plan = loop.plan

    def without_dummies(*args):
        yield from (items for items in whole_plan(*args) if items.weights.any())

    loop.plan = without_dummies


MUTATIONS = [
    add_row_bias_on_every_rank,
    cut_fused_blocks_in_one_piece,
    take_prefix_gradient_of_first_rank,
    average_prefix_gradient,
    count_head_gradient_twice,
    draw_prompt_dropout_by_rank,
    forget_to_sum_what_enters,
]


def course(grid, raw, mutate=None):
    if mutate is not None:
        mutate()
    return follow(open_fleet(raw, grid), steps=3)


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """BERT has row biases, GLM-4 fused projections."""
    folder = tmp_path_factory.mktemp("mutations")
    texts = make_texts(folder / "texts", {"train": 17, "dev": 10})
    return {
        name: run_json(make_backbone(folder / name, name), texts, prompt={"dropout": 0.3}, train={"batch_size": 17})
        for name in ("bert", "glm4")
    }


@pytest.fixture(scope="module")
def alone(raws):
    return {name: run_ranks(1, course, raw)[0] for name, raw in raws.items()}


def compare(raws, alone, mutation=None):
    # float32's bounds: loose enough for transformers' norms, which round to it, and still far below any mutation.
    for name, raw in raws.items():
        for found in run_ranks(2, course, {**raw, "parallel": {"tensor": 2}}, mutation):
            assert_same_course(found, alone[name], "float32")


def test_without_mutation_all_is_equal(raws, alone):
    compare(raws, alone)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.__name__ for mutation in MUTATIONS])
def test_mutation_is_seen(raws, alone, mutation):
    with pytest.raises(AssertionError, match=r"differ by|is off by|ends"):
        compare(raws, alone, mutation)


def test_a_rank_left_without_rows_is_seen(raws):
    """One example for two data ranks: the other must run a dummy, or the gathers wait for it for ever."""
    raw = {**raws["bert"], "parallel": {"zero": True}, "train": {**raws["bert"]["train"], "batch_size": 1}}
    run_ranks(2, course, raw)
    with pytest.raises(pytest.fail.Exception):
        run_ranks(2, course, raw, leave_a_rank_without_rows, timeout_seconds=15)
