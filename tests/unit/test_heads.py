"""Heads against hand computation, row by row."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from prompt_tuning.prompt.head import Head
from prompt_tuning.settings.sections import HeadSection
from tests.support.packed import packed

ROWS, LENGTH, HIDDEN, CLASSES = 4, 6, 8, 3
LENGTHS = torch.tensor([6, 1, 3, 2])


def make_hidden():
    return torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make_head(pooling, seed=3, dtype=torch.float64, **options):
    return Head(HIDDEN, CLASSES, pooling, seed, dtype, **options)


class Pooler(nn.Module):
    """As BERT's: tanh of a linear layer of the first token."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden[:, 0]))


BY_HAND = {
    "first": lambda row, length, pooler: row[0],
    "last": lambda row, length, pooler: row[length - 1],
    "context": lambda row, length, pooler: row[0],
    "mean": lambda row, length, pooler: row[:length].sum(0) / length,
    "pooler": lambda row, length, pooler: torch.tanh(pooler.dense.weight @ row[0] + pooler.dense.bias),
}


def test_every_pooling_of_run_files_is_covered():
    choices = HeadSection.model_fields["pooling"].annotation
    assert set(BY_HAND) == {value for part in get_args(choices) for value in get_args(part)}


@pytest.mark.parametrize("pooling", BY_HAND)
def test_pooling_equals_hand_computation(pooling):
    hidden, pooler, head = make_hidden(), Pooler(), make_head(pooling)
    found = head.pool(*packed(hidden, LENGTHS), pooler)
    expected = [BY_HAND[pooling](row, length, pooler) for row, length in zip(hidden, LENGTHS.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-13)
    inner = found
    if pooling == "context":
        inner = torch.nn.functional.gelu(found @ head.pooler.weight.T + head.pooler.bias)
        assert all(parameter.requires_grad for parameter in head.pooler.parameters())
    torch.testing.assert_close(head(found), inner @ head.weight.T + head.bias, rtol=0, atol=1e-13)


def test_a_mean_keeps_to_its_row():
    hidden, head = make_hidden().requires_grad_(), make_head("mean")
    (head.pool(*packed(hidden, LENGTHS))[2] * torch.arange(1.0, HIDDEN + 1)).sum().backward()
    expected = torch.zeros_like(hidden)
    expected[2, :3] = torch.arange(1.0, HIDDEN + 1, dtype=torch.float64) / 3
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=1e-15)


def test_half_precision_is_pooled_in_the_heads_own_type():
    """A sum of 2049 ones is 2048 in bfloat16."""
    hidden = torch.ones(1, 2049, HIDDEN, dtype=torch.bfloat16)
    found = make_head("mean", dtype=torch.float32).pool(*packed(hidden, torch.tensor([2049])))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.ones(1, HIDDEN))


def test_an_own_pooler_replaces_the_backbones():
    head = make_head("pooler", own_pooler=True)
    hidden = make_hidden()
    texts = head.pool(*packed(hidden, LENGTHS), backbone_pooler=None)
    assert torch.equal(texts, hidden[:, 0])
    inner = torch.tanh(hidden[:, 0] @ head.pooler.weight.T + head.pooler.bias)
    torch.testing.assert_close(head(texts), inner @ head.weight.T + head.bias, rtol=0, atol=1e-13)


def test_an_own_pooler_is_frozen_unless_everything_is_trained():
    def trained(**options):
        return {n for n, p in make_head("pooler", own_pooler=True, **options).named_parameters() if p.requires_grad}

    assert trained() == {"weight", "bias"}
    assert trained(train_pooler=True) == {"weight", "bias", "pooler.weight", "pooler.bias"}


def test_start_is_a_function_of_the_seed_with_the_published_spread():
    """N(0, 0.02) weights and zero biases (transformers' own start), however large."""
    first, again, other = (Head(500, 40, "pooler", seed, torch.float32, own_pooler=True) for seed in (1, 1, 2))
    for weight in (first.weight, first.pooler.weight):
        assert 0.0195 < weight.std().item() < 0.0205
        assert abs(weight.mean().item()) < 5e-4
    assert not first.bias.any() and not first.pooler.bias.any()
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.any() or not torch.equal(a, c)


def test_a_choice_head_has_no_bias_to_train():
    head = Head(HIDDEN, 1, "first", 0, torch.float64, train_bias=False)
    assert [name for name, p in head.named_parameters() if p.requires_grad] == ["weight"]


KEYS = torch.arange(1000, 1400)


def dropped(rate, keys=KEYS):
    """Logits of a head that shows its input: ones through the identity."""
    head = Head(HIDDEN, HIDDEN, "first", 0, torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(HIDDEN))
    return head(torch.ones(len(keys), HIDDEN, dtype=torch.float64), None, keys, rate)


def test_dropout_zeroes_and_scales():
    found = dropped(0.25)
    assert set(found.unique().tolist()) == {0.0, 1 / 0.75}
    # 3200 draws: the standard deviation of the share is below 0.008.
    assert abs((found == 0).double().mean().item() - 0.25) < 0.03


def test_dropout_differs_between_rows_and_is_a_function_of_the_row_key():
    found = dropped(0.25)
    assert len({tuple(row) for row in found.tolist()}) > 50
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(1))
    assert torch.equal(dropped(0.25, KEYS[order]), found[order])


def test_dropout_is_off_without_keys_or_rate():
    head = make_head("first")
    texts = make_hidden()[:, 0]
    assert torch.equal(head(texts, None, None, 0.9), head(texts))
    assert torch.equal(head(texts, None, torch.arange(ROWS), 0.0), head(texts))


def test_dropout_of_tokens_follows_row_and_place_alone():
    """Rows of other lengths beside it, or another order, change nothing."""
    head = Head(HIDDEN, HIDDEN, "tokens", 0, torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(HIDDEN))

    def dropped(lengths, keys):
        ones, rows = packed(torch.ones(len(lengths), max(lengths), HIDDEN, dtype=torch.float64), torch.tensor(lengths))
        return head(ones, rows, torch.tensor(keys), 0.5).split(lengths)

    together, alone = dropped([2, 5, 3], [7, 8, 9]), dropped([3, 2], [9, 7])
    assert torch.equal(together[0], alone[1]) and torch.equal(together[2], alone[0])
    assert not torch.equal(together[0], together[1][:2]) and set(together[1].unique().tolist()) == {0.0, 2.0}
