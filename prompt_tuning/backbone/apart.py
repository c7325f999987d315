"""Attention over a prefix and a text that are never put into one tensor: each is attended to apart, and the two are merged.

A member's prefix is read where it lies, once for all the member's tokens, and nothing is copied for a row. Softmax over
[prefix ; text] is exact: the outputs o of the two parts and the logarithms z of their sums of exponentials give

    z = log(exp(z_prefix) + exp(z_text)),    o = o_prefix exp(z_prefix - z) + o_text exp(z_text - z),

and a fused backward that is handed the whole o and z gives each part's share of the gradients, because these enter it as
exp(score - z) and as the sum of o times its gradient alone (Dao et al. 2022, algorithm 4).

Shape letters: T tokens, R read tokens, h heads, G key/value heads, n rows of a group, l tokens of each, P prompt tokens,
D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Text:
    """Rows of equal length that attend to themselves."""

    queries: slice
    """Their queries, all of one row behind each other."""
    tokens: slice
    num_rows: int
    is_causal: bool
    mask: Tensor | None
    """[l, l] Added to the scores; None: all is seen, but for what ``is_causal`` hides."""


@dataclass(frozen=True)
class Prompt:
    """Queries that attend to the table of their member."""

    queries: slice
    table: int
    """Which of the tables."""


def attend_apart(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    texts: Sequence[Text],
    prompts: Sequence[Prompt],
    tables: Sequence[Tensor],
    scale: float,
) -> Tensor:
    """Attention [R, h, D] of queries [h, R, D] over keys and values [G, T, D] and tables [P, 2, G, D], all of one type.

    For processors alone; heads that share a key/value head stand side by side.
    """
    found: Tensor = _Apart.apply(query, key, value, (tuple(texts), tuple(prompts), scale), *tables)
    return found


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: tuple[Any, Any, float], *tables: Tensor
    ) -> Tensor:
        texts, prompts, scale = plan
        heads, count, size = query.shape
        repeats = heads // key.shape[0]
        out, logs = query.new_empty(count, heads, size), query.new_empty(count, heads)
        for text in texts:
            q, k, v = _of_text(text, query, key, value, repeats)
            o, z = _forward(q, k, v, 0.0, text.is_causal, attn_mask=text.mask, scale=scale)
            _rows(out, text.queries, text.num_rows).copy_(o.transpose(1, 2))
            _rows(logs, text.queries, text.num_rows).copy_(z.transpose(1, 2))
        for prompt in prompts:
            k, v = _of_table(tables[prompt.table], repeats)
            o, z = _forward(query[None, :, prompt.queries], k, v, scale=scale)
            o, z = o[0].transpose(0, 1), z[0].transpose(0, 1)
            own_out, own_logs = out[prompt.queries], logs[prompt.queries]
            own_out.lerp_(o, torch.sigmoid(z - own_logs)[..., None].to(o.dtype))
            torch.logaddexp(own_logs, z, out=own_logs)
        ctx.save_for_backward(query, key, value, out, logs, *tables)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logs, *tables = ctx.saved_tensors
        texts, prompts, scale = ctx.plan
        gradient, repeats = gradients[0], query.shape[0] // key.shape[0]
        needs_text, needs_tables = any(ctx.needs_input_grad[:3]), ctx.needs_input_grad[4:]
        # Under the lowest prompt nothing of the text needs a gradient.
        found = [torch.zeros_like(x) if needs_text else None for x in (query, key, value)]
        by_table: list[Tensor | None] = [None] * len(tables)
        for text in texts if needs_text else ():
            q, k, v = _of_text(text, query, key, value, repeats)
            g, o, z = (_rows(x, text.queries, text.num_rows).transpose(1, 2) for x in (gradient, out, logs))
            parts = _backward(g, q, k, v, o, z, 0.0, text.is_causal, attn_mask=text.mask, scale=scale)
            for whole, part, some in zip(found, parts, (text.queries, text.tokens, text.tokens), strict=True):
                assert whole is not None
                part = _sum_heads(part, whole.shape[0])
                whole[:, some].unflatten(1, (text.num_rows, -1)).copy_(part.transpose(0, 1))
        for prompt in prompts:
            if not needs_text and not needs_tables[prompt.table]:
                continue
            k, v = _of_table(tables[prompt.table], repeats)
            g, o, z = (x[None, prompt.queries].transpose(1, 2) for x in (gradient, out, logs))
            own_query, own_key, own_value = _backward(
                g, query[None, :, prompt.queries], k, v, o, z, 0.0, False, scale=scale
            )
            if found[0] is not None:
                found[0][:, prompt.queries] += own_query[0]
            sides = [_sum_heads(side, key.shape[0])[0] for side in (own_key, own_value)]
            by_table[prompt.table] = torch.stack(sides).permute(2, 0, 1, 3)
        return (*found, None, *by_table)


def _rows(tensor: Tensor, tokens: slice, num_rows: int) -> Tensor:
    """Some tokens' part of a tensor [tokens, ...] as [n, l, ...]."""
    rows: Tensor = tensor[tokens].unflatten(0, (num_rows, -1))
    return rows


def _of_text(text: Text, query: Tensor, key: Tensor, value: Tensor, repeats: int) -> tuple[Tensor, ...]:
    """Queries, keys and values [n, h, l, D] of some rows; heads that share a key get copies of it."""
    sides = ((query, text.queries, 1), (key, text.tokens, repeats), (value, text.tokens, repeats))
    found = (x[:, some].unflatten(1, (text.num_rows, -1)).transpose(0, 1) for x, some, _ in sides)
    return tuple(x if n == 1 else x.repeat_interleave(n, 1) for x, (_, _, n) in zip(found, sides, strict=True))


def _of_table(table: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Keys and values [1, h, P, D] of a table [P, 2, G, D]."""
    keys, values = table.permute(1, 2, 0, 3)[:, None].unbind()
    if repeats == 1:
        return keys, values
    return keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)


def _sum_heads(tensor: Tensor, heads: int) -> Tensor:
    """A gradient [n, h, ...] of repeated heads, summed to those that were repeated."""
    return tensor if tensor.shape[1] == heads else tensor.unflatten(1, (heads, -1)).sum(2)
