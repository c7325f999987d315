"""The fleet: members trained together over one backbone, and one training step of all of them.

Nothing here is written for one prompt: an ordinary run is a fleet of one. A member's numbers depend on its own settings,
seed and data alone; only rounding depends on who runs beside it and on how many ranks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_parallel import rng
from model_parallel.collectives import sum_over_data_ranks
from model_parallel.grid import Grid
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.fleet.frozen_texts import FrozenTexts
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.room import places
from prompt_tuning.fleet.update import Updater
from prompt_tuning.forward.batch import Batch, moved
from prompt_tuning.forward.loop import Loop
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.settings.search import HalvingSection
from prompt_tuning.tokens.features import Features

logger = logging.getLogger(__name__)


@dataclass
class StepRecord:
    """Losses and unclipped gradient norms [members] of one step, still on the device."""

    members: list[int]
    losses: Tensor
    """Of the whole step, over all ranks."""
    norms: Tensor
    tokens: list[int]
    """[members] Tokens that each brought to the step over all ranks: of its texts and prompt, or one a row for a head whose
    texts are kept."""
    examples: int
    """Of all members, over all ranks."""
    waiting: float
    """Seconds in which this rank laid out batches and launched nothing."""


class Fleet:
    """Members, and the arrays and settings that a step over all of them needs."""

    def __init__(
        self,
        backbone: Backbone,
        members: list[Member],
        grid: Grid,
        halving: HalvingSection | None = None,
        concurrent: int | None = None,
    ) -> None:
        self.backbone, self.members, self.grid, self.halving = backbone, members, grid, halving
        self.concurrent = concurrent or places(members, grid)
        self.is_concurrency_given = concurrent is not None
        self.number = 0
        """Steps of the fleet done, whoever took part in them."""
        shared = members[0].spec.config
        gathers, given = backbone.zero is not None, shared.train.tokens_per_batch
        prompts, kinds = [member.prompt for member in members], [member.kind for member in members]
        keeps = [member.spec.config.data.cache_activations for member in members]
        self.loops = {
            # A test split is gone through once, for which nothing need be kept.
            split: Loop(
                backbone,
                prompts,
                kinds,
                [m.splits.get(split, _NOTHING) for m in members],
                given or default_budget(grid.device, gathers, split == "train"),
                None if split.startswith("test") else keeps,
            )
            for split in dict.fromkeys(name for m in members for name in ("train", "dev", *m.splits))
        }
        """By split."""
        for member, keep, layer in zip(members, keeps, self.loops["train"].layers, strict=True):
            if keep and not layer and grid.is_first:
                logger.info(
                    "%s: no layer lies under its prompts alone, so data.cache_activations keeps nothing", member.name
                )
        self.frozen = FrozenTexts(members, self.loops)
        self.updater = Updater(members, grid)
        # ZeRO-3 gathers a layer's weights for its backward, which all ranks must do together whichever members' rows they
        # have: where members' gradients end in different layers, all go down to the word embeddings. An encoder-decoder's end
        # on both sides.
        has_encoder = backbone.description.has_encoder
        depths = {
            (
                prompt.levels if has_encoder else prompt.first_layer,
                None if prompt.beside is None else frozenset(prompt.beside.lengths),
            )
            for prompt in prompts
            if prompt.reaches_backbone
        }
        self.from_input = backbone.zero is not None and len(depths) > 1

    def running(self) -> list[int]:
        """Fleet indices of the members that still train."""
        return [i for i, member in enumerate(self.members) if member.status == "running"]

    def active(self) -> list[int]:
        """Those of them that have a place now; the others wait until one is free."""
        return self.running()[: self.concurrent]

    def is_at_rung(self, member: Member) -> bool:
        """Whether a search compares the member with others after the step that it has just done."""
        return self.halving is not None and member.step in self.halving.rungs

    def free_ended(self) -> None:
        """Give back what members that have ended need no more: their optimizers' moments."""
        for member in self.members:
            if member.status != "running":
                member.optimizer.state.clear()

    def train_step(self, active: list[int]) -> StepRecord:
        """One step of the members ``active``: forward and backward of all their rows, then each its own update."""
        parts = []
        for index in active:
            examples = self.members[index].step_examples(self.members[index].step)
            parts.append((index, examples, 1 / max(1, self.members[index].splits["train"].terms(examples))))
        place = {index: i for i, index in enumerate(active)}
        losses = torch.zeros(len(active), dtype=torch.float64, device=self.grid.device)
        loop = self.loops["train"]
        with self.backbone.at_work():
            batches = _Watched(loop.batches([p for p in parts if p[0] not in self.frozen.members]))
            for number, batch in enumerate(batches):
                if self.backbone.drops:
                    seed = rng.key(self.members[0].seed, "backbone dropout", self.number, number, self.grid.data_rank)
                    torch.manual_seed(seed)
                from_input = self.from_input and any(loop.prompts[m].reaches_backbone for m in batch.members)
                total = batch.weights.new_zeros(())
                for member, logits, wanted in loop.logits(batch, self._row_keys(batch), from_input):
                    loss = self.members[member].kind.loss(logits, wanted)
                    losses[place[member]] += loss.detach()
                    total = total + loss
                total.backward()
        for index, examples, weight in parts:
            if index in self.frozen.members:
                mine = examples[self.grid.data_rank :: self.grid.data]
                losses[place[index]] += self.frozen.step(index, mine, weight, self._step_key(self.members[index]))
        sum_over_data_ranks(losses, self.grid)
        norms = self.updater.step(active, losses)
        tokens = [self._num_tokens(index, examples) for index, examples, _ in parts]
        self.number += 1
        return StepRecord(active, losses, norms, tokens, sum(len(own) for _, own, _ in parts), batches.seconds)

    def _num_tokens(self, index: int, examples: np.ndarray) -> int:
        features = self.members[index].splits["train"]
        rows = len(examples) * features.rows_per_example
        if index in self.frozen.members:
            return rows
        return features.num_tokens(examples) + rows * self.members[index].prompt.length

    @staticmethod
    def _step_key(member: Member) -> int:
        return rng.key(member.seed, "prompt dropout", member.step)

    def _row_keys(self, batch: Batch) -> Tensor | None:
        """One random key for each row, from member seed, step and example; None where no member drops anything."""
        members = [self.members[index] for index in batch.members]
        if not any(member.prompt.dropout for member in members):
            return None
        keys = [self._step_key(member) for member in members]
        return rng.fold(moved(torch.tensor(keys), self.grid.device)[batch.member_of_row], batch.row_examples)


class _Watched:
    """Batches, and how long one waited for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.monotonic()
            batch = next(self.batches, None)
            self.seconds += time.monotonic() - started
            if batch is None:
                return
            yield batch


_NOTHING = Features(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64), 1, np.zeros(0, np.int64))
