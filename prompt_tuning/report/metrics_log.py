"""metrics.jsonl and throughput.jsonl while a run trains: what members' steps gave, and how fast, one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prompt_tuning.fleet.divergence import Reading
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.report.boards import Boards
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.lines import finite
from prompt_tuning.storage.records import MetricsLine, ThroughputLine


class MetricsLog:
    """Writes what the steps and evaluations of members gave, one JSON object a line; of all ranks the first alone writes."""

    def __init__(self, run: Run, fleet: Fleet, step: int) -> None:
        self.run, self.fleet = run, fleet
        self.latest: dict[str, float] = {}
        """The newest loss by member."""
        self.files = [_metrics_file(run, member) for member in fleet.members]
        self.boards: Boards | None = None
        self.dropped = set[tuple[Path, str | None, int]]()
        """File, event and step of lines that are to be written again, and that boards have."""
        if fleet.grid.is_first:
            self.boards = Boards(run)
            ends = zip(
                [*self.files, run.output / "throughput.jsonl"], [*(m.step for m in fleet.members), step], strict=True
            )
            for file, end in ends:
                self.dropped |= {(file, line.get("event"), line["step"]) for line in _cut(file, end)}

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
        file = self.run.output / "throughput.jsonl"
        _append(file, line)
        self._show(file, None, line["step"], {f"throughput/{key}": value for key, value in line.items()})

    def _write(self, index: int, line: MetricsLine) -> None:
        if not self.fleet.grid.is_first:
            return
        _append(self.files[index], line)
        name, event = self.fleet.members[index].name, line["event"]
        values = {**line, **line.get("metrics", {})}
        tagged = {f"{event}/{key}/{name}": value for key, value in values.items()}
        self._show(self.files[index], event, line["step"], tagged)

    def _show(self, file: Path, event: str | None, step: int, values: dict[str, Any]) -> None:
        """Let the boards have a line's numbers."""
        assert self.boards is not None, "of all ranks the first alone writes"
        numbers = {tag: value for tag, value in values.items() if isinstance(value, float)}
        self.boards.add(step, numbers, (file, event, step) in self.dropped)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.boards is not None:
            self.boards.close()


def _append(file: Path, line: MetricsLine | ThroughputLine) -> None:
    with file.open("a", encoding="utf-8") as end:
        end.write(json.dumps(finite(line), sort_keys=True) + "\n")


def _metrics_file(run: Run, member: Member) -> Path:
    return run.output / "members" / member.name / "metrics.jsonl"


def _cut(file: Path, step: int) -> list[dict[str, Any]]:
    """Drop lines that a killed run wrote after the checkpoint it continues from. Returns these."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept, dropped = [], []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
                if found["step"] <= step:
                    kept.append(line + "\n")
                else:
                    dropped.append(found)
            except (ValueError, KeyError):
                break  # a line half written when the run was killed
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)
    return dropped
