"""Who trains: PromptFleet, PEFT's prefix tuning, or transformers with all weights, each as one step to be called again and again."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import ours, theirs
from benchmarks.ours import Step
from benchmarks.work import Work

PROMPTFLEET, PEFT, FULL = "PromptFleet", "PEFT", "full fine-tuning"


@dataclass(frozen=True)
class Contender:
    """One side of a comparison, and how it trains."""

    side: str
    """:data:`PROMPTFLEET`, :data:`PEFT` or :data:`FULL` (transformers, every weight trained)."""
    dtype: str = "float32"
    """Of the backbone."""
    dropout: bool = True
    """Whether the backbone's own dropout is on."""
    to_maximum: bool = False
    """Whether rows are padded to the most tokens of a text, and not to the longest of their batch; ours are never padded."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward; not for :data:`FULL`."""
    layers: tuple[int, ...] | None = None
    """Layers with a prefix; None: all."""
    keeps: bool = False
    """Whether the hidden states under the lowest of them are kept (``data.cache_activations``)."""
    members: int = 1

    @property
    def label(self) -> str:
        """For tables and JSON."""
        parts = [self.side, self.dtype, f"dropout {'on' if self.dropout else 'off'}"]
        parts += ["padded to the maximum"] * self.to_maximum + ["checkpointing"] * self.checkpointing
        parts += [f"layers from {min(self.layers)}"] if self.layers else []
        parts += ["states kept"] * self.keeps
        parts += [f"{self.members} members"] if self.members > 1 else []
        return ", ".join(parts)

    def built(self, work: Work) -> Built:
        """Ready to step, from the same numbers as every other contender."""
        if self.side == PROMPTFLEET:
            changes = {"layers": self.layers, "checkpointing": self.checkpointing, "keeps": self.keeps}
            fleet = ours.build(work, self.dtype, self.dropout, self.members, **changes)
            return Built(ours.fleet_step(fleet), fleet=fleet)
        if self.side == FULL:
            model = theirs.full_model(work, self.dtype, self.dropout)
        else:
            model = theirs.peft_model(work, self.dtype, self.dropout, self.checkpointing)
        batches = theirs.batches(work, work.max_length if self.to_maximum else None)
        return Built(theirs.step(model, batches), model=model, batches=batches)


@dataclass(frozen=True)
class Built:
    """A contender with its model in memory."""

    step: Step
    fleet: ours.Fleet | None = None
    model: theirs.Model = None
    batches: list[theirs.Batch] | None = None


def start_alike(first: Built, second: Built) -> dict[str, float]:
    """Start PEFT (``second``) from the fleet's first member; how far the first batch's loss and prefix gradient are apart."""
    assert first.fleet is not None and second.batches is not None
    theirs.copy_prompt(first.fleet.members[0].prompt, second.model)
    our_loss, our_gradient = ours.first_gradient(first.fleet)
    their_loss, their_gradient = theirs.first_gradient(second.model, second.batches[0])
    difference = (our_gradient - their_gradient).double().norm() / their_gradient.double().norm()
    return {"first_loss": abs(our_loss - their_loss), "first_prefix_gradient": difference.item()}
