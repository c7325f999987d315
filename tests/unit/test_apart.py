"""Attention over prefix and text apart: equal, gradients included, to one softmax over both, written out."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch.autograd import grad

from prompt_tuning.backbone.kernels import Look, apart, fused, grouped, padded, written_out
from prompt_tuning.backbone.rows import Group, PackedRows

H, D = 4, 8
ROWS = [(0, 5), (0, 5), (0, 1), (1, 7), (2, 4), (2, 3)]
"""Member and tokens of each row; member 1 has no prefix."""


def everything(kv_heads, dtype=torch.float64, lengths=(3, 0, 6)):
    """Queries, keys and values of packed tokens, and the members' tables, all with gradients."""
    torch.manual_seed(1)
    tokens = sum(length for _, length in ROWS)
    q, k, v = (
        torch.randn(1, tokens, heads, D, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (H, kv_heads, kv_heads)
    )
    tables = [torch.randn(n, 2, kv_heads, D, dtype=dtype).requires_grad_() if n else None for n in lengths]
    return q, k, v, tables


def packed(tables, read=None):
    return PackedRows(Group.neighbours(ROWS), read, tuple(None if t is None else (t,) for t in tables))


def by_hand(q, k, v, tables, look, scale):
    """One row, one head and one query at a time; [T, H, D]."""
    repeats, found, start = H // k.shape[1], [], 0
    for member, length in ROWS:
        for place in range(length):
            for head in range(H):
                own = head // repeats
                seen = [
                    start + other
                    for other in range(length)
                    if not (look.is_causal and other > place)
                    and not (look.window is not None and abs(other - place) >= look.window)
                ]
                keys, values = k[0, own, seen], v[0, own, seen]
                if tables[member] is not None:
                    keys = torch.cat([tables[member][:, 0, own], keys])
                    values = torch.cat([tables[member][:, 1, own], values])
                found.append(torch.softmax(q[0, head, start + place] @ keys.T * scale, -1) @ values)
        start += length
    return torch.stack(found).view(-1, H, D)


LOOKS = [Look(False), Look(True), Look(True, 3), Look(False, 2)]


@pytest.mark.parametrize(("look", "kv_heads"), list(itertools.product(LOOKS, [H, 2])))
@pytest.mark.parametrize("kernel", [apart, partial(grouped, fused)])
def test_prefix_and_text_are_one_softmax_with_its_gradients(kernel, look, kv_heads):
    q, k, v, tables = everything(kv_heads)
    wanted = [q, k, v, tables[0], tables[2]]
    found = kernel(q, k, v, packed(tables), 0, look, 0.3, 0.0)[0]
    expected = by_hand(q, k, v, tables, look, 0.3)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    weights = torch.randn_like(expected)
    for own, theirs in zip(
        grad((found * weights).sum(), wanted), grad((expected * weights).sum(), wanted), strict=True
    ):
        assert torch.allclose(own, theirs, rtol=1e-10, atol=1e-12)


def test_only_what_is_read_is_asked():
    q, k, v, tables = everything(H)
    read = torch.tensor([0, 5, 10, 11, 18, 22])
    wanted = [q, k, v, tables[0], tables[2]]
    found = apart(q, k, v, packed(tables, read), 0, Look(False, None, reads_only=True), 0.3, 0.0)[0]
    expected = by_hand(q, k, v, tables, Look(False), 0.3)
    assert torch.allclose(found[read], expected[read], rtol=1e-12) and not found[[1, 2, 12]].any()
    weights = torch.randn(len(read), H, D, dtype=torch.float64)
    pairs = zip(
        grad((found[read] * weights).sum(), wanted), grad((expected[read] * weights).sum(), wanted), strict=True
    )
    assert all(torch.allclose(own, theirs, rtol=1e-10, atol=1e-12) for own, theirs in pairs)


def test_prompts_alone_may_need_a_gradient():
    """As under the lowest prompt, where nothing of the text is worked on backward."""
    q, k, v, tables = everything(H)
    expected = grad(apart(q, k, v, packed(tables), 0, Look(True), 0.3, 0.0).square().sum(), [tables[0], tables[2]])
    found = apart(q.detach(), k.detach(), v.detach(), packed(tables), 0, Look(True), 0.3, 0.0)
    for own, theirs in zip(grad(found.square().sum(), [tables[0], tables[2]]), expected, strict=True):
        assert torch.equal(own, theirs)


def test_a_member_without_a_gradient_costs_the_others_none():
    q, k, v, tables = everything(H)
    frozen = [tables[0].detach(), None, tables[2]]
    expected = grad(apart(q, k, v, packed(tables), 0, Look(False), 0.3, 0.0).square().sum(), tables[2])[0]
    found = apart(q.detach(), k.detach(), v.detach(), packed(frozen), 0, Look(False), 0.3, 0.0)
    assert torch.equal(grad(found.square().sum(), tables[2])[0], expected)


def test_scores_of_any_size_stay_finite():
    """Softmax parts are weighed by differences of logarithms, never by exponentials."""
    q, k, v, tables = everything(H)
    with torch.no_grad():
        tables[0] *= 1e4
        k *= 1e4
    found = apart(q, k, v, packed(tables), 0, Look(False), 0.3, 0.0)[0]
    assert found.isfinite().all() and torch.allclose(found, by_hand(q, k, v, tables, Look(False), 0.3), rtol=1e-9)


def test_half_types_are_attended_to_in_float32():
    q, k, v, tables = everything(2, torch.bfloat16)
    found = apart(q, k, v, packed(tables), 0, Look(True), 0.3, 0.0)
    other = padded(written_out, q, k, v, packed(tables), 0, Look(True), 0.3, 0.0)
    exact = by_hand(
        q.double(), k.double(), v.double(), [t if t is None else t.double() for t in tables], Look(True), 0.3
    )
    assert found.dtype == torch.bfloat16
    assert (found[0] - exact).abs().max() <= (other[0] - exact).abs().max()
    assert torch.allclose(found[0].double(), exact, rtol=2**-8, atol=2**-8)
