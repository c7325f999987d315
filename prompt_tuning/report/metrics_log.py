"""metrics.jsonl and throughput.jsonl while a run trains: what members' steps gave, and how fast, one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.fleet.divergence import Reading
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.lines import finite
from prompt_tuning.storage.records import MetricsLine, ThroughputLine


class MetricsLog:
    """Writes what the steps and evaluations of members gave, one JSON object a line; of all ranks the first alone writes."""

    def __init__(self, run: Run, fleet: Fleet, step: int) -> None:
        self.run, self.fleet = run, fleet
        self.latest: dict[str, float] = {}
        """The newest loss by member."""
        self.board = _tensorboard(run) if fleet.grid.is_first else None
        self.files = [_metrics_file(run, member) for member in fleet.members]
        if fleet.grid.is_first:
            for member, file in zip(fleet.members, self.files, strict=True):
                _cut(file, member.step)
            _cut(run.output / "throughput.jsonl", step)

    def steps(self, readings: list[Reading]) -> None:
        """Write the steps that are due, and those that were a member's last because it diverged."""
        for reading in readings:
            member, step = self.fleet.members[reading.member], reading.step
            line: MetricsLine = {"step": step, "loss": reading.loss, "gradient_norm": reading.norm}
            if not reading.is_finite:
                line["event"] = "diverged"
                self._write(reading.member, line)
                continue
            self.latest[member.name] = reading.loss
            if step % self.run.shared.train.log_steps == 0 or step == member.total_steps:
                settings = member.spec.config.optimizer
                factor = learning_rate_factor(settings, step - 1, member.total_steps, member.steps_per_epoch)
                line["event"] = "train"
                line["epoch"] = round(step / member.steps_per_epoch, 4)
                line["learning_rate"] = settings.lr * factor
                self._write(reading.member, line)

    def evaluation(self, index: int, metrics: dict[str, float], loss: float) -> None:
        """Write an evaluation on dev, and that its member diverged where the loss is not finite."""
        step = self.fleet.members[index].step
        self._write(index, {"step": step, "event": "dev", "loss": loss, "metrics": metrics})
        if not math.isfinite(loss):
            self._write(index, {"step": step, "event": "diverged", "loss": loss})

    def throughput(self, line: ThroughputLine | None) -> None:
        """Write how fast the fleet's steps were since the line before."""
        if line is None or not self.fleet.grid.is_first:
            return
        _append(self.run.output / "throughput.jsonl", line)
        if self.board is not None:
            for key, value in line.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"throughput/{key}", value, line["step"])

    def _write(self, index: int, line: MetricsLine) -> None:
        if not self.fleet.grid.is_first:
            return
        _append(self.files[index], line)
        if self.board is not None:
            name, event = self.fleet.members[index].name, line["event"]
            numbers = {k: v for k, v in {**line, **line.get("metrics", {})}.items() if isinstance(v, float)}
            for key, value in numbers.items():
                self.board.add_scalar(f"{event}/{key}/{name}", value, line["step"])

    def close(self) -> None:
        """Close what is open."""
        if self.board is not None:
            self.board.close()


def _append(file: Path, line: MetricsLine | ThroughputLine) -> None:
    with file.open("a", encoding="utf-8") as end:
        end.write(json.dumps(finite(line), sort_keys=True) + "\n")


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
