"""Disentangled attention (He et al. 2021, section 3.1) over [prefix ; text]: for families that attend in a way of their own.

The score of a token for a text token at distance d is q k + q K(d) + Q(d) k, with keys K and queries Q of relative positions;
for a prompt token, which has no position, it is q k alone, divided like the others. Distances are those of tokens in their
row, so that packed tokens see what they would see alone.

Shape letters: T tokens, L tokens of the longest row, n rows of a group, l tokens of each of them, P prompt tokens, h heads, D
head size, S relative positions that are looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_tuning.backbone.attention import INDEX, TENSOR_RANK, own_dropout
from prompt_tuning.backbone.kernels import Look, grouped, padded
from prompt_tuning.backbone.rows import PackedRows


@dataclass(frozen=True)
class Relative:
    """Relative positions of rows of up to L tokens."""

    vectors: Tensor
    """[S, H] Of the positions that such rows have."""
    place: Tensor
    """[2L - 1] Which of them is that of two tokens L - 1 - i apart, counted from the key to the query."""

    @staticmethod
    def look_up(table: Callable[[Tensor], Tensor], index: Tensor, device: torch.device) -> Relative:
        """From a ``table`` of int64 positions [S], and the ``index`` [2L - 1] into it by falling distance, on the CPU."""
        first, last = int(index[-1]), int(index[0])
        vectors = table(torch.arange(first, last + 1, device=device))
        return Relative(vectors, (index - first).to(device))

    def spread(self, found: Tensor) -> Tensor:
        """What was made [S, h * D] of the vectors, for each distance [2L - 1, h * D]."""
        return found.index_select(0, self.place)


class DisentangledAttention(nn.Module):
    """What the versions of DeBERTa share. Swapped in for transformers' module, whose parameters and sizes it uses."""

    num_attention_heads: int
    attention_head_size: int
    pos_att_type: list[str]
    relative_attention: bool
    pos_dropout: nn.Dropout
    dropout: nn.Dropout
    is_padded = False
    """Whether rows are padded and attended to at once, or group by group."""

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [1, h, T, D] of tokens [1, T, H]."""
        raise NotImplementedError

    def project_positions(self, vectors: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keys and queries [S, h * D] of relative positions [S, H]; None where the model has no such term."""
        raise NotImplementedError

    def num_terms(self) -> int:
        """How many terms a score has, by which it is scaled."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        rows: PackedRows,
        relative: Relative | None = None,
        captured: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Attention of every token [1, T, H] over [prefix ; text] of its row, [1, T, h * D].

        ``captured`` collects every layer's own keys and values [2, 1, h, T, D].
        """
        layer = getattr(self, INDEX)
        query, key, value = self.project(hidden_states)
        if captured is not None:
            captured[layer] = torch.stack([key, value])
        scale = (self.attention_head_size * self.num_terms()) ** -0.5
        terms = self._terms(relative, scale)
        rate = self.dropout.p if self.training else 0.0
        run = padded if self.is_padded or query.device.type != "cpu" else grouped
        with own_dropout(getattr(self, TENSOR_RANK), rate, query.device):
            attend = functools.partial(_attend, terms)
            found = run(attend, query, key, value, rows, layer, Look(False), scale, rate)
        return found.flatten(2)

    def _terms(self, relative: Relative | None, scale: float) -> tuple[Tensor | None, Tensor | None]:
        """Keys by falling and queries by rising distance of a query from a key, [h, D, 2L - 1]; of the two the queries scaled."""
        if relative is None:
            return None, None
        keys, queries = self.project_positions(self.pos_dropout(relative.vectors))
        return (
            None if keys is None else self._heads(relative.spread(keys)),
            None if queries is None else self._heads(relative.spread(queries).flip(0) * scale),
        )

    def _heads(self, positions: Tensor) -> Tensor:
        heads: Tensor = positions.unflatten(1, (self.num_attention_heads, -1))
        return heads.permute(1, 2, 0)


def _attend(
    terms: tuple[Tensor | None, Tensor | None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Softmax attention [n, h, l, D] of q [n, h, l, D] over k and v [n, h, P + l, D], with relative positions on the text."""
    q, length = q * scale, q.shape[2]
    scores = q @ k.transpose(2, 3)
    position_keys, position_queries = (None if x is None else nearest(x, length).to(q.dtype) for x in terms)
    text = None
    if position_keys is not None:
        text = by_distance(q @ position_keys)
    if position_queries is not None:
        own = by_distance(k[:, :, -length:] @ position_queries).transpose(2, 3)
        text = own if text is None else text + own
    return attend_by(scores, text, v, mask, dropout)


def attend_by(scores: Tensor, text: Tensor | None, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention [n, h, l, D] over v [n, h, P + l, D] by scores [n, h, l, P + l], to which the ``text``'s own [..., l, l] are
    added: a prompt token, which has no position, keeps its score. The softmax of half types is in float32."""
    if text is not None:
        scores = scores + nn.functional.pad(text, (v.shape[2] - text.shape[-1], 0))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = nn.functional.softmax(scores, -1, dtype=torch.promote_types(v.dtype, torch.float32)).to(v.dtype)
    return nn.functional.dropout(weights, dropout) @ v


def nearest(terms: Tensor, length: int) -> Tensor:
    """The middle [h, D, 2l - 1] of terms by distance [h, D, 2L - 1]."""
    middle = terms.shape[2] // 2
    return terms[:, :, middle - length + 1 : middle + length]


def by_distance(products: Tensor) -> Tensor:
    """[..., l, l] from products [..., l, 2l - 1]: at (i, j) that of i with distance j - i, counted from -(l - 1)."""
    products = products.contiguous()
    length = products.shape[2]
    *outer, row, column = products.stride()
    return products.as_strided(
        (*products.shape[:3], length), (*outer, row - column, column), products.storage_offset() + length - 1
    )
