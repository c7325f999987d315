"""What one placement of a run takes on each rank: memory by kind, what goes over the wire, and the time of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prompt_tuning.forward.plan import default_budget
from prompt_tuning.placement.counted import Pass
from prompt_tuning.placement.outline import Outline


@dataclass(frozen=True)
class Placement:
    """A way to lay out a backbone over ranks."""

    tensor: int = 1
    zero: bool = False
    checkpointing: bool = False
    quantize: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        ways = [f"tensor {self.tensor}"] if self.tensor > 1 else []
        ways += ["ZeRO-3"] if self.zero else []
        ways = ways or ["replicate"]
        ways += [self.quantize] if self.quantize else []
        return ", ".join([*ways, *(["checkpointing"] if self.checkpointing else [])])

    @property
    def settings(self) -> str:
        """As options of the worker."""
        found = [f"parallel.tensor={self.tensor}", f"parallel.zero={str(self.zero).lower()}"]
        found.append(f"train.activation_checkpointing={str(self.checkpointing).lower()}")
        found += [f"backbone.quantize={self.quantize}"] if self.quantize else []
        return " ".join(f"--set {one}" for one in found)


@dataclass(frozen=True)
class Machine:
    """What ranks run on: rates of one rank's device, in operations and bytes a second."""

    ranks: int
    matrix_rate: float
    bandwidth: float
    interconnect: float
    """Between the ranks of a host."""
    network: float
    """Between hosts."""
    host_ranks: int
    latency: float
    """Seconds of a collective that moves nothing."""
    memory: int
    """Bytes that a rank may take."""
    base: int
    """Bytes that a process takes before it loads anything."""
    device: str = "cpu"


@dataclass(frozen=True)
class Cost:
    """What a placement takes: bytes of the rank with the most, and what a step does."""

    placement: Placement
    base: int
    weights: int
    """Kept between steps."""
    gathered: int
    """The most that ZeRO-3 adds to them while layers run."""
    arriving: int
    """A gather under way holds so much beside: parameters come in one flat buffer and are copied out of it."""
    trained: int
    """Prompts, heads, their gradients and AdamW's moments, of all members at work."""
    activations: int
    """The most that a batch takes, its gradients included."""
    batches: int
    """Batches of a step on one rank."""
    tensor_wire: float
    """Bytes that a rank sends in a step: sums over tensor ranks,"""
    gather_wire: float
    """ZeRO-3's weights,"""
    gradient_wire: float
    """and sums of the prompts' gradients."""
    seconds: float
    """Of a step, nothing overlapping."""
    examples: int
    """Of a step, over all ranks."""

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step."""
        # What is gathered ahead arrives before the layers that need it have made activations.
        return self.base + self.weights + self.gathered + self.trained + max(self.arriving, self.activations)

    @property
    def wire(self) -> float:
        """Bytes that a rank sends in a step."""
        return self.tensor_wire + self.gather_wire + self.gradient_wire


def count(outline: Outline, placement: Placement, machine: Machine) -> Cost:
    """What a placement takes on ``machine``; the ranks are a multiple of its tensor ranks."""
    data = machine.ranks // placement.tensor
    weights = outline.weights(placement.tensor, placement.quantize)
    whole = weights.total
    gathers = placement.zero
    held = (math.ceil(whole / data) if gathers else whole) + outline.head_bytes(placement.tensor, gathers)
    element = weights.total / weights.numel
    ahead = int(outline.config.deepspeed.stage3_prefetch_bucket_size * element)
    # Fetching ahead ends with the parameter that fills the bucket.
    gathered = min(whole, weights.embedded + 2 * weights.largest_layer + ahead) if gathers else 0
    arriving = min(gathered, max(weights.embedded, weights.largest_layer, ahead))
    size, batches = batches_of(outline, machine.device, data, gathers)
    ran = outline.run_batch(size, placement.tensor, placement.checkpointing, gathers, placement.quantize)
    trained = outline.trained_bytes
    members = outline.num_members
    # Of one member the batch itself has counted the gradient.
    held_for_members = 3 * trained * members + trained * (members - 1)
    tensor_wire = 2 * (placement.tensor - 1) / placement.tensor * ran.summed_bytes * batches
    # A layer's weights are needed forward and backward, and once more where it is run anew; at most, as layers may stay gathered.
    passes = 3 if placement.checkpointing else 2
    gather_wire = (data - 1) / data * whole * passes * batches if gathers else 0.0
    ranks = machine.ranks
    gradient_wire = 2 * (ranks - 1) / ranks * trained * members
    return Cost(
        placement,
        machine.base,
        held,
        gathered,
        arriving,
        held_for_members,
        ran.peak_bytes,
        batches,
        tensor_wire,
        gather_wire,
        gradient_wire,
        _seconds(ran, batches, placement, machine, tensor_wire, gather_wire, gradient_wire),
        outline.examples,
    )


def batches_of(outline: Outline, device: str, data: int, gathers: bool) -> tuple[int, int]:
    """Examples of the largest batch of a step on a rank, and how many batches it has."""
    budget = outline.config.train.tokens_per_batch or default_budget(torch.device(device), gathers)
    mine = math.ceil(outline.examples / data)
    size = max(1, min(mine, budget // outline.tokens_per_example))
    return size, math.ceil(mine / size)


def _seconds(
    ran: Pass, batches: int, placement: Placement, machine: Machine, tensor: float, gather: float, gradient: float
) -> float:
    """A roofline (Williams et al. 2009) of every operator, and the wire behind it."""
    compute = sum(
        number * max(operations / machine.matrix_rate, size / machine.bandwidth)
        for operations, size, number in ran.work
    )
    is_within = placement.tensor <= machine.host_ranks
    tensor_speed = machine.interconnect if is_within else machine.network
    data_speed = machine.interconnect if machine.ranks <= machine.host_ranks else machine.network
    calls = ran.sums * batches
    return batches * compute + tensor / tensor_speed + (gather + gradient) / data_speed + machine.latency * calls
