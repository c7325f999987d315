"""The one way from prompts and tokenised examples to logits: plan, lay out, forward; and for whole splits keep and place.

Training, evaluation and prediction go through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from model_parallel.collectives import gather_over_data_ranks
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.forward.batch import Batch, Items, Pool, PromptShapes
from prompt_tuning.forward.depth import Depth, Where, kept_states, put_states
from prompt_tuning.forward.layout import lay_out, ranges
from prompt_tuning.forward.plan import plan
from prompt_tuning.forward.run import member_logits, pooled_texts
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.tokens.features import Features

Part = tuple[int, np.ndarray, float]
"""A member, some of its examples, and the weight of each in the loss."""


class Loop:
    """Members, each a prompt with the kind and the examples of its task, over one backbone; all lists by member."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        kinds: Sequence[Kind],
        features: Sequence[Features],
        budget: int,
        keeps: Sequence[Where] | None = None,
    ) -> None:
        self.backbone, self.prompts, self.kinds, self.features = backbone, prompts, kinds, features
        self.budget = budget
        self.pool = Pool(list(features), PromptShapes.of(prompts))
        self.reaches_backbone = np.array([prompt.reaches_backbone or backbone.is_trained for prompt in prompts])
        self.keeps = list(keeps or [False] * len(prompts))
        """By member: whether and where the hidden states under its prompt are kept."""
        self.layers = np.array(
            [
                max(0, prompt.first_layer) if keep and prompt.reaches_backbone else 0
                for prompt, keep in zip(prompts, self.keeps, strict=True)
            ]
        )
        """By member: where its forwards begin."""
        self._states: dict[tuple[int, Depth], Tensor] = {}

    def batches(self, parts: Sequence[Part]) -> Iterator[Batch]:
        """This rank's laid-out batches.

        Members that do not reach the backbone run apart, without its gradient, and so do those that begin at other layers.
        """
        grid, pad_token = self.backbone.grid, self.backbone.description.pad_token
        alike: dict[tuple[bool, int], list[Part]] = {}
        for part in parts:
            if len(part[1]):
                key = not self.reaches_backbone[part[0]], int(self.layers[part[0]])
                alike.setdefault(key, []).append(part)
        for (_, layer), some in sorted(alike.items(), key=lambda entry: entry[0]):
            states = self._states_at(layer, [member for member, _, _ in some])
            for items in plan(self.pool, Items.of(some), self.budget, grid.data_rank, grid.data):
                batch = lay_out(self.pool, items, pad_token, torch.device("cpu"))
                yield (put_states(batch, self.pool, layer, states) if layer else batch).to(grid.device)

    def _states_at(self, layer: int, members: list[int]) -> dict[tuple[int, int], Tensor]:
        """The kept hidden states that enter a layer, by source and position of the first text token."""
        found = {}
        for member in members if layer else ():
            source, start = int(self.pool.source_of[member]), int(self.pool.shapes.starts[member])
            entry = (source, Depth(layer, start))
            if entry not in self._states:
                features, where = self.pool.sources[source], self.keeps[member]
                self._states[entry] = kept_states(self.backbone, features, entry[1], where, self.budget)
            found[source, start] = self._states[entry]
        return found

    def logits(
        self, batch: Batch, row_keys: Tensor | None = None, from_input: bool = False
    ) -> Iterator[tuple[int, Tensor, Targets]]:
        """Each member of a batch with its logits, as :func:`member_logits` has them, and what they should be."""
        prompts = [self.prompts[member] for member in batch.members]
        found = member_logits(self.backbone, prompts, batch, row_keys, from_input)
        for place, (member, logits) in enumerate(zip(batch.members, found, strict=True)):
            yield member, logits, targets(batch, place)

    @torch.no_grad()
    def outputs(self, members: Sequence[int]) -> dict[int, np.ndarray]:
        """What the kinds of some members keep of the logits of all their examples, the same on every rank.

        float64 [examples, outputs], or [tokens, k] where a kind asks every token.
        """
        kept = []
        with self.backbone.at_work():
            for batch in self.batches([(m, np.arange(len(self.features[m])), 1.0) for m in members]):
                for place, (member, logits, wanted) in enumerate(self.logits(batch)):
                    examples = batch.examples[batch.spans[place].examples]
                    kept.append((member, examples, wanted.weights > 0, self.kinds[member].keep(logits, wanted)))
        # Only now, so that no batch waits for the one before.
        mine = [(m, e.cpu().numpy(), real.cpu().numpy(), x.double().cpu().numpy()) for m, e, real, x in kept]
        result: dict[int, np.ndarray] = {}
        for part in gather_over_data_ranks(mine, self.backbone.grid):
            for member, examples, real, values in part:
                if member not in result:
                    result[member] = _room(self.kinds[member], self.features[member], values.shape[-1])
                _place(result[member], self.features[member], self.kinds[member].per_token, examples, real, values)
        return result

    @torch.no_grad()
    def texts(self, member: int) -> Tensor:
        """The pooled texts [rows, H] that a member's head sees of all its examples, the same on every rank."""
        mine = []
        with self.backbone.at_work():
            for batch in self.batches([(member, np.arange(len(self.features[member])), 1.0)]):
                (texts,) = pooled_texts(self.backbone, [self.prompts[member]], batch)
                if bool(batch.weights[0] > 0):
                    mine.append((batch.row_examples.cpu().numpy(), texts.cpu().numpy()))
        pieces = [piece for part in gather_over_data_ranks(mine, self.backbone.grid) for piece in part]
        rows = np.concatenate([piece[0] for piece in pieces])
        whole = np.concatenate([piece[1] for piece in pieces])[np.argsort(rows)]
        return torch.from_numpy(whole).to(self.backbone.grid.device)


def targets(batch: Batch, place: int) -> Targets:
    """What the member at a place of ``batch.members`` should answer."""
    examples = batch.spans[place].examples
    return Targets(batch.labels[examples], batch.weights[examples], batch.rows_of(place))


def _room(kind: Kind, features: Features, width: int) -> np.ndarray:
    """Room for a split's outputs of ``width`` numbers each, NaN until placed."""
    return np.full((len(features.tokens) if kind.per_token else len(features), width), np.nan)


def _place(
    result: np.ndarray, features: Features, per_token: bool, examples: np.ndarray, real: np.ndarray, kept: np.ndarray
) -> None:
    """Put what was kept of some examples, or of their tokens, where it belongs; ``real``: which are no dummies."""
    if not per_token:
        result[examples[real]] = kept[real]
        return
    lengths = features.lengths(examples)
    result[ranges(features.offsets[examples], lengths)[np.repeat(real, lengths)]] = kept[np.repeat(real, lengths)]
