"""What follows a backward: all members' gradients are checked and clipped at once, on the device, and each takes its step.

Nothing here waits for the device. A member whose loss or gradient is not finite takes no step, now or later: its numbers
stay those of its last good step, and no other member notices. The program learns of it where it reads the device
(:mod:`prompt_tuning.fleet.divergence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_parallel.collectives import sum_gradients
from model_parallel.grid import Grid
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.prompt.prompt import Prompt


@dataclass(frozen=True)
class _Table:
    """The trained tensors of some members, one member's behind another's; made anew only when the members change."""

    active: tuple[int, ...]
    parameters: list[nn.Parameter]
    split: list[nn.Parameter]
    """Of which a tensor rank sees only its own heads' part of the gradient."""
    whole: list[nn.Parameter]
    owners: Tensor
    """[parameters] Which of the active members each belongs to."""
    places: Tensor
    """[active] Their places in the fleet."""
    limits: Tensor | None
    """[active] Largest norm of a gradient; None where no member has one."""


class Updater:
    """Steps of a fleet's members, which are given by their places in it."""

    def __init__(self, members: Sequence[Member], grid: Grid) -> None:
        self.members, self.grid = members, grid
        self.sick = torch.zeros(len(members), device=grid.device)
        """[members] 1 from the step on in which a loss or gradient was not finite."""
        self._latest: _Table | None = None

    def step(self, active: Sequence[int], losses: Tensor) -> Tensor:
        """Sum the gradients of the members ``active`` over the grid, clip, step; the unclipped norms [active].

        ``losses`` [active] are those of the step over all ranks.
        """
        table = self._table(tuple(active))
        sum_gradients(table.split, table.whole, self.grid)
        gradients: list[Tensor] = [p.grad for p in table.parameters if p.grad is not None]
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        norms = squares.new_zeros(len(active)).index_add(0, table.owners, squares).sqrt()
        is_bad = ~(norms.isfinite() & losses.isfinite())
        self.sick[table.places] = torch.maximum(self.sick[table.places], is_bad.to(self.sick.dtype))
        if table.limits is not None:
            scales = (table.limits.to(norms.dtype) / (norms + 1e-6)).clamp(max=1)[table.owners]
            torch._foreach_mul_(gradients, list(scales.unbind()))
        flags = self.sick.unbind()
        for index in active:
            self._step(self.members[index], flags[index])
        return norms

    def _step(self, member: Member, is_sick: Tensor) -> None:
        """One fused AdamW step at the schedule's rate, unless the device finds the member sick."""
        settings, optimizer = member.spec.config.optimizer, member.optimizer
        factor = learning_rate_factor(settings, member.step, member.total_steps, member.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.found_inf = is_sick  # type: ignore[attr-defined]  # as torch.amp.GradScaler tells it
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _table(self, active: tuple[int, ...]) -> _Table:
        if self._latest is None or self._latest.active != active:
            named = [(place, *own) for place, index in enumerate(active) for own in self.members[index].parameters]
            limits = [self.members[index].spec.config.optimizer.clip_norm or float("inf") for index in active]
            device = self.grid.device
            self._latest = _Table(
                active,
                [p for _, _, p in named],
                [p for _, name, p in named if Prompt.is_split(name)],
                [p for _, name, p in named if not Prompt.is_split(name)],
                torch.tensor([place for place, _, _ in named], device=device),
                torch.tensor(active, device=device),
                torch.tensor(limits, dtype=torch.float64, device=device) if min(limits) < float("inf") else None,
            )
        return self._latest
