"""Heads: from the backbone's last hidden states to the logits of one member.

Shape letters: R rows, L tokens, H hidden size, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.prompt.prefix import INIT_STD


class Head(nn.Module):
    """Pooling, dropout and a linear layer with N(0, 0.02) weights and zero bias.

    Pooling ``tokens`` leaves every token to itself.
    With ``own_pooler`` the head brings a random tanh pooler, as RoBERTa's masked-LM checkpoints need;
    it is frozen unless ``train_pooler`` and travels with the prompt.
    """

    def __init__(
        self,
        hidden_size: int,
        num_outputs: int,
        pooling: str,
        seed: int,
        dtype: torch.dtype,
        own_pooler: bool = False,
        train_pooler: bool = False,
        train_bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooling = pooling

        def draw(name: str, *size: int) -> Tensor:
            return rng.normal(rng.key(seed, "init", name), *size, std=INIT_STD).to(dtype)

        self.weight = nn.Parameter(draw("head.weight", num_outputs, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_outputs, dtype=dtype), requires_grad=train_bias)
        self.pooler: nn.Linear | None = None
        if own_pooler:
            self.pooler = nn.Linear(hidden_size, hidden_size, dtype=dtype)
            self.pooler.weight.data = draw("head.pooler.weight", hidden_size, hidden_size)
            self.pooler.bias.data.zero_()
            self.pooler.requires_grad_(train_pooler)

    def pool(self, hidden: Tensor, lengths: Tensor, backbone_pooler: nn.Module | None = None) -> Tensor:
        """What the backbone says of each text [R, H] or token [R, L, H], in the head's type.

        From hidden states [R, L, H] and real lengths [R].
        """
        dtype = self.weight.dtype
        if self.pooling in ("mean", "tokens"):
            real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
            # Padding may hold anything, NaN included, so it is replaced and not multiplied away.
            kept = hidden.to(dtype).masked_fill(~real[..., None], 0)
            return kept if self.pooling == "tokens" else kept.sum(1) / lengths[:, None]
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].to(dtype)
        if self.pooling == "first" or self.pooler is not None:
            return hidden[:, 0].to(dtype)
        assert backbone_pooler is not None, "a head without its own pooler needs the backbone's"
        pooled: Tensor = backbone_pooler(hidden)
        return pooled.to(dtype)

    def forward(
        self, pooled: Tensor, row_keys: Tensor | None = None, dropout: float = 0.0, tags: Tensor | None = None
    ) -> Tensor:
        """Logits [R, C] from texts [R, H], or [R, L, C] from tokens; dropout only where ``row_keys`` [R] are given."""
        features = pooled if self.pooler is None else torch.tanh(self.pooler(pooled))
        if row_keys is not None and dropout > 0:
            rates = torch.full_like(row_keys, dropout, dtype=torch.float64)
            keep = rng.keep_mask(rng.fold(row_keys, HEAD_DROPOUT), features[0].numel(), rates)
            features = features * keep.view(features.shape) / (1 - dropout)
        return nn.functional.linear(features, self.weight, self.bias)


HEAD_DROPOUT = 1 << 20
"""Folded into row keys for the head, apart from every layer's number."""
