"""Learning rates over the steps of a member."""

from __future__ import annotations

from prompt_tuning.settings.sections import OptimizerSection


def learning_rate_factor(settings: OptimizerSection, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Multiple of the peak rate in a step counted from 0: linear warm-up, then the schedule."""
    warmup = round(settings.warmup * total_steps)
    if step < warmup:
        return step / warmup
    if settings.schedule == "linear":
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    if settings.schedule == "exponential":
        return settings.gamma ** (step // steps_per_epoch)
    return 1.0
