"""Where the time of training steps goes: measured on the steps themselves, beside the matrix products that the device can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from model_parallel.paper import ATTENTION
from model_parallel.rates import matrix_rate, now
from prompt_tuning.fleet.step import Fleet

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn"),
    "attention": ("scaled_dot_product", "softmax", "flash"),
    "optimizer, clipping": ("adamw", "foreach", "linalg_vector_norm"),
    "copies": ("copy", "cat", "index", "gather", "stack", "clone", "embedding", "zeros", "fill", "scatter"),
    "norms, activations, sums": ("",),
}
"""Parts of operators' names, by what they are; the first that fits counts."""

Line = tuple[str, float, int]
"""A name, seconds a step, calls a step."""


@dataclass(frozen=True)
class Profile:
    """Some steps of a fleet, per step."""

    seconds: float
    examples: int
    tokens: int
    operations: int
    """Floating-point operations in matrix products and attention, counted by torch as they ran."""
    rate: float
    """Floating-point operations a second of a large matrix product in the backbone's type, measured beside the steps."""
    kinds: tuple[Line, ...]
    """By kind of work; what is left of the time is Python and waiting."""
    operators: tuple[Line, ...]
    """The dearest operators."""

    @property
    def utilisation(self) -> float:
        """Share of the device's matrix products that the steps use (MFU)."""
        return self.operations / self.seconds / self.rate


def profile_steps(fleet: Fleet, steps: int, trace: Path | None = None, warm_up: int = 2) -> Profile:
    """Train some steps and say where their time went; ``trace`` gets them for Perfetto or chrome://tracing."""
    device = fleet.grid.device
    examples = tokens = 0

    def step() -> None:
        nonlocal examples, tokens
        active = fleet.active()
        record = fleet.train_step(active)
        tokens += sum(record.tokens)
        for index in active:
            examples += len(fleet.members[index].step_examples(fleet.members[index].step))
            fleet.members[index].step += 1

    for _ in range(warm_up):
        step()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step()
    examples = tokens = 0
    before = _matrix_rate(fleet)
    started = now(device)
    for _ in range(steps):
        step()
    seconds = (now(device) - started) / steps
    rate = max(before, _matrix_rate(fleet))
    counted = examples // steps, tokens // steps
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        for _ in range(steps):
            step()
    if trace is not None:
        profiled.export_chrome_trace(str(trace))
    kinds: dict[str, list[float]] = {name: [0.0, 0] for name in KINDS}
    operators: list[Line] = []
    for event in profiled.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        line = (event.key.removeprefix("aten::"), own / 1e6 / steps, round(event.count / steps))
        operators.append(line)
        kind = next(name for name, parts in KINDS.items() if any(part in line[0].lower() for part in parts))
        kinds[kind][0] += line[1]
        kinds[kind][1] += line[2]
    operators.sort(key=lambda line: -line[1])
    lines = [(name, spent, int(calls)) for name, (spent, calls) in kinds.items()]
    return Profile(seconds, *counted, counter.get_total_flops(), rate, tuple(lines), tuple(operators[:12]))


def _matrix_rate(fleet: Fleet) -> float:
    return matrix_rate(fleet.backbone.shape.hidden_size, fleet.backbone.model.dtype, fleet.grid.device)
