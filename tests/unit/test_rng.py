"""Random numbers: functions of key and counter alone, with the statistics that training relies on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_parallel import rng

COUNT = 200_000


def test_the_generator_never_changes():
    """Every published seed depends on these; a change of any makes old runs irreproducible."""
    assert rng.key(11, "order", 0) == 3949721573170080699
    assert rng.bits(12345, 3).tolist() == [9202820341700851064, 8451028812110784062, -8516367985638756560]
    assert rng.fold(torch.tensor([0, -1]), torch.tensor([0, 7])).tolist() == [
        -2152535657050944081,
        -4166297692289072321,
    ]
    assert rng.uniform(12345, 2).tolist() == [0.49888589037329273, 0.45813118989140517]
    # The logarithm and the cosine may differ in the last bit between processors.
    normal = [0.023475325597099948, -0.024947400079559402, -0.022099150751461637]
    assert rng.normal(12345, 3, std=0.02).tolist() == pytest.approx(normal, rel=1e-13)
    assert rng.permutation(12345, 10).tolist() == [2, 9, 6, 7, 3, 8, 1, 5, 4, 0]
    keep = rng.keep_mask(torch.tensor([12345]), 12, torch.tensor([0.5]))
    assert keep.int().tolist() == [[1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0]]


def test_splitmix_is_the_published_one():
    """The mixer against whole-number arithmetic; its output function is SplitMix64's (Steele, Lea and Flood 2014)."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    key = 987654321
    expected = [mix((mix(key) + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, 9)]
    assert [word % 2**64 for word in rng.bits(key, 8).tolist()] == expected
    # First words of the reference generator seeded with 0.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_keys_differ_by_every_part():
    parts = [(1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a"), ("1", "a", 2), (1, "a2"), (12, "a")]
    assert len({rng.key(*part) for part in parts}) == len(parts)
    keys = rng.fold(torch.arange(300)[:, None], torch.arange(300))
    assert len(keys.unique()) == keys.numel()


def half_of(key, count):
    return rng.keep_mask(torch.tensor([key]), count, torch.tensor([0.5]))[0]


@pytest.mark.parametrize("draw", [rng.uniform, rng.bits, half_of])
@given(short=st.integers(1, 70), more=st.integers(0, 70), key=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_longer_draws_begin_with_the_shorter(draw, short, more, key):
    """Hence a member's dropout does not depend on its neighbours' longer prompts."""
    assert torch.equal(draw(key, short + more)[:short], draw(key, short))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 0.5, 0.9, 1 - 2**-16])
def test_dropout_keeps_the_stated_share(rate):
    keep = rng.keep_mask(torch.tensor([5]), COUNT, torch.tensor([rate]))
    deviation = math.sqrt(rate * (1 - rate) / COUNT)
    assert abs(keep.double().mean().item() - (1 - rate)) <= 4.5 * deviation + 2**-17
    if rate == 0:
        assert keep.all()


def test_dropout_elements_are_independent():
    """No correlation between neighbours, the four elements of one word, or rows of neighbouring keys."""
    keys = rng.fold(torch.tensor(3), torch.arange(4))
    keep = rng.keep_mask(keys, COUNT, torch.full((4,), 0.5)).double() - 0.5
    shifted = [(keep[0, :-s], keep[0, s:]) for s in (1, 2, 3, 4, 64)]
    for a, b in [*shifted, *((keep[i], keep[j]) for i, j in ((0, 1), (1, 2), (0, 3)))]:
        assert abs((a * b).mean().item() * 4) < 4.5 / math.sqrt(COUNT)


def test_rows_and_rates_are_their_own():
    rates = torch.tensor([0.2, 0.2, 0.8, 0.0])
    keys = torch.tensor([1, 2, 1, 1])
    keep = rng.keep_mask(keys, 1000, rates)
    assert not torch.equal(keep[0], keep[1])
    assert (keep[0] >= keep[2]).all(), "what a high rate keeps, a lower one keeps too"
    assert keep[3].all()
    for row in range(4):
        assert torch.equal(keep[row], rng.keep_mask(keys[row : row + 1], 1000, rates[row : row + 1])[0])


def test_normal_numbers_have_normal_moments():
    x = rng.normal(7, COUNT // 100, 100, std=2.0) / 2
    assert x.shape == (COUNT // 100, 100)
    deviation = 1 / math.sqrt(COUNT)
    assert abs(x.mean()) < 4.5 * deviation
    assert abs(x.pow(2).mean() - 1) < 4.5 * math.sqrt(2) * deviation
    assert abs(x.pow(3).mean()) < 4.5 * math.sqrt(15) * deviation
    assert abs(x.pow(4).mean() - 3) < 4.5 * math.sqrt(96) * deviation
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4.5 * deviation
    assert x.isfinite().all()


def test_uniform_numbers_fill_the_open_interval():
    x = rng.uniform(9, COUNT)
    assert 0 < x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    counts = torch.histc(x, 20, 0, 1)
    assert ((counts - COUNT / 20) ** 2 / (COUNT / 20)).sum() < 50, "chi-square with 19 degrees of freedom"


@given(count=st.integers(0, 500), key=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_a_permutation_holds_every_index_once(count, key):
    assert rng.permutation(key, count).sort().values.tolist() == list(range(count))


def test_permutations_are_fair():
    """Each of six orders of three about equally often."""
    orders = [tuple(rng.permutation(rng.key(seed, "order"), 3).tolist()) for seed in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 140
    assert max(counts) < 260
