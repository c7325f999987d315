"""The fleet: members trained together over one backbone, and one training step of all of them.

Nothing here is written for one prompt: an ordinary run is a fleet of one. A member's numbers depend on its own settings,
seed and data alone; only rounding depends on who runs beside it and on how many ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_parallel import rng
from model_parallel.collectives import gather_over_data_ranks, sum_gradients
from model_parallel.grid import Grid
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.forward.batch import Batch, Items, Pool
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.plan import default_budget, plan
from prompt_tuning.forward.run import member_logits, pooled_texts
from prompt_tuning.kinds import Targets
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.tokens.features import Features


@dataclass
class StepRecord:
    """Losses and unclipped gradient norms [members] of one step, still on the device."""

    step: int
    members: list[int]
    losses: Tensor
    """This rank's share; the sum over the data axis is the mean loss of the step."""
    norms: Tensor
    tokens: list[int]
    """[members] Tokens that each brought to the step over all ranks: of its texts and prompt, or one a row for a head whose
    texts are kept."""


class Fleet:
    """Members, and the arrays and settings that a step over all of them needs."""

    def __init__(self, backbone: Backbone, members: list[Member], grid: Grid) -> None:
        self.backbone, self.members, self.grid = backbone, members, grid
        shared = members[0].spec.config
        self.budget = shared.train.tokens_per_batch or default_budget(grid.device, backbone.zero is not None)
        self.has_backbone_dropout = backbone.drops
        self.pools = {
            split: Pool([m.splits.get(split, _NOTHING) for m in members])
            for split in dict.fromkeys(name for m in members for name in ("train", "dev", *m.splits))
        }
        self.prompt_lengths = np.array([m.prompt.length for m in members])
        self.reaches_backbone = np.array([m.prompt.reaches_backbone or m.spec.config.method == "full" for m in members])
        # ZeRO-3 gathers a layer's weights for its backward, which all ranks must do together whichever members' rows they
        # have: where members' gradients end in different layers, all go down to the word embeddings.
        depths = {m.prompt.first_layer for m in members if m.prompt.reaches_backbone}
        self.from_input = backbone.zero is not None and len(depths) > 1
        self.pad_token = backbone.description.pad_token
        # Without backbone dropout, what a head alone sees of a text never changes.
        self.frozen = {
            index
            for index, member in enumerate(members)
            if not self.reaches_backbone[index]
            and not self.has_backbone_dropout
            and not member.kind.per_token
            and all(features.tags is None for features in member.splits.values())
            and _texts_fit(member)
        }
        self._frozen_texts: dict[tuple[int, str], Tensor] = {}

    def running(self) -> list[int]:
        return [i for i, member in enumerate(self.members) if member.status == "running"]

    def batches(self, split: str, parts: list[tuple[int, np.ndarray, float]]) -> Iterator[Batch]:
        """This rank's laid-out batches for (member, examples, weight) parts.

        Members that do not reach the backbone run apart from the others, without its gradient.
        """
        pool = self.pools[split]
        for kind in (True, False):
            some = [part for part in parts if self.reaches_backbone[part[0]] == kind]
            if some:
                items = Items.of(some)
                for chosen in plan(pool, items, self.prompt_lengths, self.budget, self.grid.data_rank, self.grid.data):
                    yield lay_out(pool, chosen, self.pad_token, self.grid.device)

    def frozen_texts(self, index: int, split: str) -> Tensor:
        """Pooled texts [rows, H] of a split for a member of ``frozen``: computed once, shared by like members."""
        member = self.members[index]
        entry = (id(member.splits[split]), member.prompt.head.pooling)
        if entry not in self._frozen_texts:
            mine = []
            with torch.no_grad(), self.backbone.at_work():
                for batch in self.batches(split, [(index, np.arange(len(member.splits[split])), 1.0)]):
                    (texts,) = pooled_texts(self.backbone, [member.prompt], batch)
                    if bool(batch.weights[0] > 0):
                        mine.append((batch.row_examples.cpu().numpy(), texts.cpu().numpy()))
            pieces = [piece for part in gather_over_data_ranks(mine, self.grid) for piece in part]
            rows = np.concatenate([piece[0] for piece in pieces])
            whole = np.concatenate([piece[1] for piece in pieces])[np.argsort(rows)]
            self._frozen_texts[entry] = torch.from_numpy(whole).to(self.grid.device)
        return self._frozen_texts[entry]

    def _frozen_step(self, index: int, examples: np.ndarray, weight: float) -> Tensor | float:
        """Loss and backward of this rank's examples of a member whose texts are fixed."""
        self.frozen_texts(index, "train")  # all ranks compute them together, those without an example included
        if not len(examples):
            return 0.0
        member = self.members[index]
        logits = self.frozen_logits(index, "train", examples, dropout=True)
        labels = torch.from_numpy(member.splits["train"].labels[examples]).to(self.grid.device)
        weights = torch.full_like(labels, weight, dtype=torch.float64)
        loss = member.kind.loss(logits, Targets(labels, weights, labels, None))
        loss.backward()
        return loss.detach()

    def frozen_logits(self, index: int, split: str, examples: np.ndarray, dropout: bool = False) -> Tensor:
        """Logits [examples, outputs] of a member of ``frozen``."""
        member = self.members[index]
        choices = member.splits[split].rows_per_example
        rows = torch.from_numpy((examples[:, None] * choices + np.arange(choices)).reshape(-1)).to(self.grid.device)
        keys = None
        if dropout and member.prompt.head_dropout:
            keys = rng.fold(torch.tensor(self._step_key(member), device=self.grid.device), rows)
        texts = self.frozen_texts(index, split)[rows]
        logits: Tensor = member.prompt.head(texts, keys, member.prompt.head_dropout)
        return logits.view(len(examples), -1)

    def train_step(self, active: list[int]) -> StepRecord:
        """One step of the members ``active``: forward and backward of all their rows, then each its own update."""
        step = self.members[active[0]].step
        parts = []
        for index in active:
            examples = self.members[index].step_examples(self.members[index].step)
            parts.append((index, examples, 1 / max(1, self.members[index].splits["train"].terms(examples))))
        place = {index: i for i, index in enumerate(active)}
        losses = torch.zeros(len(active), dtype=torch.float64, device=self.grid.device)
        with self.backbone.at_work():
            for number, batch in enumerate(self.batches("train", [p for p in parts if p[0] not in self.frozen])):
                if self.has_backbone_dropout:
                    seed = rng.key(self.members[0].seed, "backbone dropout", step, number, self.grid.data_rank)
                    torch.manual_seed(seed)
                prompts = [self.members[m].prompt for m in batch.members]
                outputs = member_logits(
                    self.backbone,
                    prompts,
                    batch,
                    self._row_keys(batch),
                    self.from_input and any(p.reaches_backbone for p in prompts),
                )
                total = batch.weights.new_zeros(())
                for place_in_batch, (member, logits) in enumerate(zip(batch.members, outputs, strict=True)):
                    loss = self.members[member].kind.loss(logits, targets(batch, place_in_batch))
                    losses[place[member]] += loss.detach()
                    total = total + loss
                total.backward()
        for index, chosen, weight in parts:
            if index in self.frozen:
                losses[place[index]] += self._frozen_step(index, chosen[self.grid.data_rank :: self.grid.data], weight)
        trained = [(Prompt.is_split(name), p) for index in active for name, p in self.members[index].parameters]
        sum_gradients([p for split, p in trained if split], [p for split, p in trained if not split], self.grid)
        norms = torch.stack([self._update(self.members[index]) for index in active])
        tokens = [self._num_tokens(index, examples) for index, examples, _ in parts]
        return StepRecord(step, active, losses, norms, tokens)

    def _num_tokens(self, index: int, examples: np.ndarray) -> int:
        features = self.members[index].splits["train"]
        rows = len(examples) * features.rows_per_example
        if index in self.frozen:
            return rows
        return features.num_tokens(examples) + rows * int(self.prompt_lengths[index])

    def _update(self, member: Member) -> Tensor:
        """Clip, set the rate, step. Returns the unclipped norm. Touches this member's tensors only."""
        settings = member.spec.config.optimizer
        parameters = [parameter for _, parameter in member.parameters]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
        factor = learning_rate_factor(settings, member.step, member.total_steps, member.steps_per_epoch)
        for group in member.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        member.optimizer.step()
        member.optimizer.zero_grad(set_to_none=True)
        return norm

    @staticmethod
    def _step_key(member: Member) -> int:
        return rng.key(member.seed, "prompt dropout", member.step)

    def _row_keys(self, batch: Batch) -> Tensor | None:
        """One random key for each row, from member seed, step and example; None where no member drops anything."""
        members = [self.members[index] for index in batch.members]
        if not any(member.prompt.dropout for member in members):
            return None
        keys = [self._step_key(member) for member in members]
        return rng.fold(torch.tensor(keys, device=self.grid.device)[batch.member_of_row], batch.row_examples)


def targets(batch: Batch, place: int) -> Targets:
    """What the member at a place of ``batch.members`` should answer."""
    examples, rows = batch.spans[place]
    tags = None if batch.tags is None else batch.tags[rows]
    return Targets(batch.labels[examples], batch.weights[examples], batch.lengths[rows], tags)


def _texts_fit(member: Member, limit_bytes: int = 2**30) -> bool:
    """Whether pooled texts of all splits are worth keeping in memory."""
    rows = sum(len(features.offsets) for features in member.splits.values())
    return rows * member.backbone.shape.hidden_size * member.backbone.prompt_dtype.itemsize <= limit_bytes


_NOTHING = Features(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64), 1, np.zeros(0, np.int64))
