"""Heads: from the backbone's last hidden states to the logits of one member.

Shape letters: T tokens of a batch, r rows of a member and t text tokens in them, H hidden size, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.prompt.prefix import INIT_STD
from prompt_tuning.tokens.packed import MemberRows


class Head(nn.Module):
    """Pooling, dropout and a linear layer with N(0, 0.02) weights and zero bias.

    Pooling ``tokens`` leaves every token to itself.
    With ``own_pooler`` the head brings a random tanh pooler, as RoBERTa's masked-LM checkpoints need;
    it is frozen unless ``train_pooler`` and travels with the prompt. Pooling ``context`` brings one with GELU, as DeBERTa's
    classifiers have, which is always trained. ``seed`` None: nothing is drawn, and whoever asks fills it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_outputs: int,
        pooling: str,
        seed: int | None,
        dtype: torch.dtype,
        own_pooler: bool = False,
        train_pooler: bool = False,
        train_bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooling = pooling

        def draw(name: str, *size: int) -> Tensor:
            if seed is None:
                return torch.empty(size, dtype=dtype)
            return rng.normal(rng.key(seed, "init", name), *size, std=INIT_STD).to(dtype)

        self.weight = nn.Parameter(draw("head.weight", num_outputs, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_outputs, dtype=dtype), requires_grad=train_bias)
        self.pooler: nn.Linear | None = None
        if own_pooler or pooling == "context":
            self.pooler = nn.Linear(hidden_size, hidden_size, dtype=dtype)
            self.pooler.weight.data = draw("head.pooler.weight", hidden_size, hidden_size)
            self.pooler.bias.data.zero_()
            self.pooler.requires_grad_(train_pooler or pooling == "context")

    def pool(self, hidden: Tensor, rows: MemberRows, backbone_pooler: nn.Module | None = None) -> Tensor:
        """What the backbone says of each text [r, H] or token [t, H], in the head's type, from hidden states [T, H]."""
        dtype = self.weight.dtype
        if self.pooling == "tokens":
            return hidden[rows.tokens].to(dtype)
        if self.pooling == "mean":
            return rows.sum_rows(hidden[rows.tokens].to(dtype)) / rows.lengths[:, None]
        if self.pooling == "last":
            return hidden[rows.first + rows.lengths - 1].to(dtype)
        first = hidden[rows.first]
        if self.pooling == "first" or self.pooler is not None:
            return first.to(dtype)
        assert backbone_pooler is not None, "a head without its own pooler needs the backbone's"
        pooled: Tensor = backbone_pooler(first[:, None])
        return pooled.to(dtype)

    def forward(
        self, pooled: Tensor, rows: MemberRows | None = None, row_keys: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        """Logits [r, C] from texts [r, H], or [t, C] from tokens [t, H] of ``rows``; dropout only where ``row_keys`` [r]
        are given."""
        features = pooled
        if self.pooler is not None:
            features = (nn.functional.gelu if self.pooling == "context" else torch.tanh)(self.pooler(pooled))
        if row_keys is not None and dropout > 0:
            features = features * self._keep(features, rows, rng.fold(row_keys, HEAD_DROPOUT), dropout) / (1 - dropout)
        return nn.functional.linear(features, self.weight, self.bias)

    def _keep(self, features: Tensor, rows: MemberRows | None, keys: Tensor, dropout: float) -> Tensor:
        """Which of the features stay, by their row, their place in it and nothing else."""
        rates = torch.full_like(keys, dropout, dtype=torch.float64)
        if self.pooling != "tokens":
            return rng.keep_mask(keys, features.shape[1], rates)
        assert rows is not None
        keep = rng.keep_mask(keys, rows.longest * features.shape[1], rates).view(len(keys), rows.longest, -1)
        return keep[rows.row_of_token, rows.tokens - rows.first[rows.row_of_token]]


HEAD_DROPOUT = 1 << 20
"""Folded into row keys for the head, apart from every layer's number."""
