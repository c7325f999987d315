"""Heads alone: without backbone dropout, what a head sees of a text never changes, so it is computed once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model_parallel import rng
from prompt_tuning.fleet.member import Member
from prompt_tuning.forward.loop import Loop
from prompt_tuning.kinds import Targets


class FrozenTexts:
    """The pooled texts of the members whose backbone and prompt never change them."""

    def __init__(self, members: Sequence[Member], loops: Mapping[str, Loop]) -> None:
        self.all, self.loops = members, loops
        self.members = {index for index, member in enumerate(members) if _stays(member)}
        """Fleet indices of those members."""
        self._texts: dict[tuple[int, str], Tensor] = {}

    def of(self, index: int, split: str) -> Tensor:
        """Pooled texts [rows, H] of a split: computed once, by all ranks together, shared by like members."""
        member = self.all[index]
        entry = (id(member.splits[split]), member.prompt.head.pooling)
        if entry not in self._texts:
            self._texts[entry] = self.loops[split].texts(index)
        return self._texts[entry]

    def logits(self, index: int, split: str, examples: np.ndarray, dropout_key: int | None = None) -> Tensor:
        """Logits [examples, outputs] of a member; with ``dropout_key`` its prompt dropout is on."""
        member = self.all[index]
        choices, texts = member.splits[split].rows_per_example, self.of(index, split)
        rows = torch.from_numpy((examples[:, None] * choices + np.arange(choices)).reshape(-1)).to(texts.device)
        keys = None
        if dropout_key is not None and member.prompt.head_dropout:
            keys = rng.fold(torch.tensor(dropout_key, device=texts.device), rows)
        logits: Tensor = member.prompt.head(texts[rows], None, keys, member.prompt.head_dropout)
        return logits.view(len(examples), -1)

    def step(self, index: int, examples: np.ndarray, weight: float, dropout_key: int) -> Tensor | float:
        """Loss and backward of this rank's examples of a training step."""
        device = self.of(index, "train").device  # computed by all ranks, those without an example included
        if not len(examples):
            return 0.0
        member = self.all[index]
        logits = self.logits(index, "train", examples, dropout_key)
        labels = torch.from_numpy(member.splits["train"].labels[examples]).to(device)
        weights = torch.full_like(labels, weight, dtype=torch.float64)
        loss = member.kind.loss(logits, Targets(labels, weights))
        loss.backward()
        return loss.detach()


def _stays(member: Member, limit_bytes: int = 2**30) -> bool:
    """Whether a head sees the same of every text in every step, and all texts are worth keeping in memory."""
    backbone = member.backbone
    if member.prompt.reaches_backbone or backbone.is_trained or backbone.drops or member.kind.per_token:
        return False
    if any(features.tags is not None for features in member.splits.values()):
        return False
    rows = sum(len(features.offsets) for features in member.splits.values())
    return rows * backbone.shape.hidden_size * backbone.prompt_dtype.itemsize <= limit_bytes
