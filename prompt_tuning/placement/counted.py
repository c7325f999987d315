"""What is counted of a backbone on one rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One batch forward and backward on one rank."""

    peak_bytes: int
    """The most that activations, gradients and everything else that the batch brings took at once."""
    work: tuple[tuple[int, int, int], ...]
    """Floating-point operations, bytes read and written, and how many operators did as much."""
    sums: int
    """All-reduces over the tensor ranks."""
    summed_bytes: int
    """Bytes of their tensors."""

    def further(self, deeper: Pass, shallow: Pass, times: int) -> Pass:
        """A deeper model's, which has ``times`` as many layers more than this one's as a ``deeper`` one has over a ``shallow`` one."""
        mine, more, less = ({(one, two): number for one, two, number in ran.work} for ran in (self, deeper, shallow))
        # What grows with the depth itself is there under another size in each, once to be added and once to be taken off.
        work = {
            key: mine.get(key, 0) + times * (more.get(key, 0) - less.get(key, 0)) for key in {**mine, **more, **less}
        }
        return Pass(
            self.peak_bytes + times * (deeper.peak_bytes - shallow.peak_bytes),
            tuple((*key, number) for key, number in work.items()),
            self.sums + times * (deeper.sums - shallow.sums),
            self.summed_bytes + times * (deeper.summed_bytes - shallow.summed_bytes),
        )


@dataclass(frozen=True)
class Weights:
    """Bytes of a rank's weights before ZeRO-3 splits them."""

    total: int
    embedded: int
    """Bytes of embeddings, which DeepSpeed keeps from their layer to the end of a pass, as nothing asks for their gradients."""
    largest_layer: int
    """Bytes of the module that is gathered as one with the most of its own, embeddings apart."""
    numel: int
