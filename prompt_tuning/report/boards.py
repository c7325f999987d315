"""Boards on which people watch runs: TensorBoard, Weights & Biases, MLflow, each asked for by the key of its name in `train`.

A board gets the numbers of the metrics lines and the settings of run.json, and nothing else. Where it lies, and who may write to it,
is its own library's to know, from that library's own variables and files.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.run import Run
from prompt_tuning.settings.sections import TrainSection
from prompt_tuning.storage.atomic import write_json

IDS = "boards.json"
"""File in the run folder: under which number each board knows the run."""
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
logger = logging.getLogger(__name__)


class Board(Protocol):
    """One of them, open."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by tags such as ``train/loss/<member>``."""

    def close(self) -> None:
        """Hand over what is still on the way."""


def check_boards(train: TrainSection, grid: Grid) -> None:
    """Raise :class:`UserError` where a board's package is missing, on the rank that writes."""
    for name, module in _MODULES.items():
        if grid.is_first and getattr(train, name):
            try:
                importlib.import_module(module)
            except ImportError:
                raise UserError(f"train.{name} needs extra packages: pip install 'promptfleet[{name}]'") from None


class Boards:
    """Those that a run asks for. One that fails later is left alone, with a warning: metrics.jsonl has all."""

    def __init__(self, run: Run) -> None:
        run.output.mkdir(parents=True, exist_ok=True)
        self.ids = _ids(run)
        self.known = set(self.ids)
        """Boards that have had lines of this run before."""
        self.open: dict[str, Board] = {}
        for name, kind in (("tensorboard", TensorBoard), ("wandb", WandB), ("mlflow", MLflow)):
            if getattr(run.shared.train, name):
                try:
                    self.open[name] = kind(run, self.ids)
                except Exception as error:
                    raise UserError(
                        f"train.{name}: the board takes no run ({_why(error)}); mend it or leave it out"
                    ) from error
                write_json(run.output / IDS, self.ids)

    def add(self, step: int, values: Mapping[str, float], is_again: bool) -> None:
        """Send numbers; ``is_again``: a killed run has sent those of this step before."""
        for name, board in list(self.open.items()):
            if not (is_again and name in self.known):
                try:
                    board.add(step, values)
                except Exception as error:
                    logger.warning(
                        "train.%s: %s; the board gets no more of this run, metrics.jsonl has all", name, _why(error)
                    )
                    del self.open[name]

    def close(self) -> None:
        """Close what is open."""
        for name, board in self.open.items():
            try:
                board.close()
            except Exception as error:
                logger.warning("train.%s: %s; metrics.jsonl has all", name, _why(error))


def _why(error: Exception) -> str:
    """What a library says of an error, without the password of an address."""
    return re.sub(r"//[^/@\s]+@", "//", reason(error))


def _ids(run: Run) -> dict[str, str]:
    file = run.output / IDS
    if not file.exists():
        return {}
    try:
        return {str(name): str(number) for name, number in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError):
        raise UserError(f"{file}: not what a run has left; remove it, and boards begin anew") from None


def settings_of(run: Run) -> dict[str, Any]:
    """Settings by dotted key; those in which members differ stand behind a member's name and a slash."""
    members = {spec.name: dict(_flat(spec.config.model_dump(mode="json", by_alias=True))) for spec in run.members}
    first, *others = members.values()
    common = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}
    own = {f"{name}/{key}": v for name, found in members.items() for key, v in found.items() if key not in common}
    return {**common, **own}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, run: Run, ids: dict[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        ids["tensorboard"] = "tensorboard"
        self.writer = SummaryWriter(str(run.output / "tensorboard"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """As scalars, at once in the file: a kill loses none."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases; its files lie in ``wandb`` of the run folder."""

    def __init__(self, run: Run, ids: dict[str, str]) -> None:
        import wandb

        number = ids.setdefault("wandb", secrets.token_hex(8))
        # No console, code, commit, command line, package list or load of the machine.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            id=number,
            resume="allow",
            reinit="create_new",
            name=run.name,
            dir=str(run.output),
            settings=settings,
        )
        self.run.config.update(settings_of(run), allow_val_change=True)
        # W&B counts lines; members of a fleet are at steps of their own.
        self.run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A line of its history."""
        self.run.log({"step": step, **values})

    def close(self) -> None:
        """End the run there, which a later start goes on with."""
        self.run.finish()


class MLflow:
    """A run of MLflow, at the tracking server and in the experiment that its own variables name."""

    def __init__(self, run: Run, ids: dict[str, str]) -> None:
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient()
        if "mlflow" in ids:
            self.number = ids["mlflow"]
            self.client.update_run(self.number, status="RUNNING")
            return
        experiment = mlflow.tracking.fluent._get_experiment_id()
        self.number = ids["mlflow"] = self.client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(_mlflow_name(key), str(value)[:6000]) for key, value in settings_of(run).items()]
        for first in range(0, len(params), 100):  # the most that a server takes at once
            self.client.log_batch(self.number, params=params[first : first + 100])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """As metrics."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(_mlflow_name(tag), value, now, step) for tag, value in values.items()]
        self.client.log_batch(self.number, metrics=metrics)

    def close(self) -> None:
        """Say that the run has ended, which a later start takes back."""
        self.client.set_terminated(self.number)


def _mlflow_name(text: str) -> str:
    """A name that MLflow takes; members' names have = and + where a grid has made them, but neither colon nor blank."""
    return re.sub(r"[^\w.\-/: ]", "_", text.replace("=", ":").replace("+", " "))
