"""metrics.jsonl while a run trains: losses, norms and evaluations, one JSON object a line."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from model_parallel.collectives import sum_over_data_ranks
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.fleet.step import Fleet, StepRecord
from prompt_tuning.settings.members import Run

logger = logging.getLogger(__name__)


class MetricsLog:
    """Losses and norms of the steps: kept on the device, read every ``log_steps``, written one JSON object a line.

    Reading is also where a member whose loss or gradient is no longer finite is found and stopped. On every rank; the
    first one writes.
    """

    def __init__(self, run: Run, fleet: Fleet, step: int) -> None:
        self.run, self.fleet = run, fleet
        self.pending: list[StepRecord] = []
        self.latest: dict[str, float] = {}
        self.board = _tensorboard(run) if fleet.grid.is_first else None
        self.files = [_metrics_file(run, member) for member in fleet.members]
        if fleet.grid.is_first:
            for member, file in zip(fleet.members, self.files, strict=True):
                _cut(file, member.step)

    def add(self, record: StepRecord) -> None:
        """Remember a step without waiting for the device."""
        self.pending.append(record)

    def flush(self) -> None:
        """Read the pending steps and write those that are due."""
        if not self.pending:
            return
        losses = sum_over_data_ranks(torch.cat([record.losses for record in self.pending]), self.fleet.grid).tolist()
        norms = torch.cat([record.norms.double() for record in self.pending]).tolist()
        at = 0
        for record in self.pending:
            for member in record.members:
                self._read(member, record.step + 1, losses[at], norms[at])
                at += 1
        self.pending.clear()

    def _read(self, index: int, step: int, loss: float, norm: float) -> None:
        member = self.fleet.members[index]
        if member.status == "diverged":
            return
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop(index, {"step": step, "event": "diverged", "loss": loss, "gradient_norm": norm})
            return
        self.latest[member.name] = loss
        if step % self.run.shared.train.log_steps == 0 or step == member.total_steps:
            settings = member.spec.config.optimizer
            factor = learning_rate_factor(settings, step - 1, member.total_steps, member.steps_per_epoch)
            epoch = step / member.steps_per_epoch
            values = {"loss": loss, "gradient_norm": norm, "learning_rate": settings.lr * factor}
            self._write(index, {"step": step, "event": "train", "epoch": round(epoch, 4), **values})

    def evaluation(self, index: int, metrics: dict[str, float], loss: float) -> None:
        """Write an evaluation on dev; a loss that is not finite stops the member as one in training does."""
        step = self.fleet.members[index].step
        self._write(index, {"step": step, "event": "dev", "loss": loss, "metrics": metrics})
        if not math.isfinite(loss):
            self._stop(index, {"step": step, "event": "diverged", "loss": loss})

    def _stop(self, index: int, line: dict[str, Any]) -> None:
        member = self.fleet.members[index]
        member.status = "diverged"
        if self.fleet.grid.is_first:
            logger.warning("%s: diverged in step %d and is stopped; the others go on", member.name, line["step"])
        self._write(index, line)

    def _write(self, index: int, line: dict[str, Any]) -> None:
        if not self.fleet.grid.is_first:
            return
        with self.files[index].open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line), sort_keys=True) + "\n")
        if self.board is not None:
            name, event = self.fleet.members[index].name, line["event"]
            numbers = {k: v for k, v in {**line, **line.get("metrics", {})}.items() if isinstance(v, float)}
            for key, value in numbers.items():
                self.board.add_scalar(f"{event}/{key}/{name}", value, line["step"])

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics_file(run: Run, member: Member) -> Path:
    return run.output / "members" / member.name / "metrics.jsonl"


def _cut(file: Path, step: int) -> None:
    """Drop lines that a killed run wrote after the checkpoint it continues from."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # a line half written when the run was killed
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


def _tensorboard(run: Run) -> Any:
    if not run.shared.train.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard needs an extra package: pip install 'promptfleet[tensorboard]'") from None
    return SummaryWriter(str(run.output / "tensorboard"))
