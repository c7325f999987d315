"""Boards get the numbers of the metrics lines, as their own libraries read them back, once each, also where a run was killed."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.report import boards
from prompt_tuning.trainer import train
from tests.support.fleets import make_run
from tests.support.tiny import make_backbone, make_texts, run_json

ROOT = Path(__file__).parents[2]
NAMES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "sqlalchemy"}


@pytest.fixture(params=NAMES)
def board(request, tmp_path, monkeypatch):
    """The name of one; what it writes lies below a temporary folder, and nothing leaves this machine."""
    pytest.importorskip(NAMES[request.param], reason=f"pip install 'promptfleet[{request.param}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return request.param


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boards")
    backbone, texts = make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts", {"train": 17, "dev": 9})
    members = [{"prompt": {"length": 5}}, {"name": "a=1+2", "train": {"max_steps": 4}}]
    settings = {"max_steps": 6, "eval_steps": 3, "checkpoint_steps": 3, "log_steps": 1}
    return run_json(backbone, texts, train=settings, fleet={"members": members})


def with_board(raw, name):
    return {**raw, "train": {**raw["train"], name: True}}


def written(folder):
    """Tag, step and number of all lines that the run has left."""
    found = Counter()
    for file in [*folder.glob("members/*/metrics.jsonl"), folder / "throughput.jsonl"]:
        for line in map(json.loads, file.read_text().splitlines()):
            event = line.get("event", "throughput")
            name = f"/{file.parent.name}" if "event" in line else ""
            for key, value in {**line, **line.get("metrics", {})}.items():
                if isinstance(value, float):
                    found[f"{event}/{key}{name}", line["step"], value] += 1
    return found


def from_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return Counter((tag, one.step, one.value) for tag in events.Tags()["scalars"] for one in events.Scalars(tag))


def from_mlflow(folder):
    from mlflow import MlflowClient

    client, number = MlflowClient(), json.loads((folder / boards.IDS).read_text())["mlflow"]
    run = client.get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.02" and run.data.params["a:1 2/train.max_steps"] == "4"
    return Counter(
        (tag.replace(":", "=").replace(" ", "+"), one.step, one.value)
        for tag in run.data.metrics
        for one in client.get_metric_history(number, tag)
    )


def wandb_records(file):
    """What a run's file holds: records in blocks of 32 KiB, each piece behind checksum, size and whether it is the last."""
    from wandb.proto import wandb_internal_pb2

    data, place, part = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def from_wandb(folder):
    found, number = Counter(), json.loads((folder / boards.IDS).read_text())["wandb"]
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert files and {file.stem for file in files} == {f"run-{number}"}
    for record in (record for file in files for record in wandb_records(file)):
        kind = record.WhichOneof("record_type")
        assert kind in ("header", "run", "config", "telemetry", "metric", "summary", "history", "exit", "files"), kind
        if kind == "config":
            config = {item.key: json.loads(item.value_json) for item in record.config.update}
            assert config.get("a=1+2/train.max_steps", 4) == 4 and config.get("optimizer.lr", 0.02) == 0.02
        if kind == "history":
            line = {"".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = line.pop("step")
            found.update((tag, step, value) for tag, value in line.items() if not tag.startswith("_"))
    return found


def shown(board, folder):
    return {"tensorboard": from_tensorboard, "wandb": from_wandb, "mlflow": from_mlflow}[board](folder)


def as_kept(numbers, board):
    """TensorBoard keeps float32."""
    kind = np.float32 if board == "tensorboard" else np.float64
    return Counter({(tag, step, float(kind(value))): count for (tag, step, value), count in numbers.items()})


def test_a_board_gets_every_number_of_the_lines_once(board, raw, tmp_path):
    train(make_run(with_board(raw, board), tmp_path / "run"), Grid())
    found, wanted = shown(board, tmp_path / "run"), written(tmp_path / "run")
    assert {tag.partition("/")[0] for tag, _, _ in wanted} == {"train", "dev", "throughput"}
    assert len({step for tag, step, _ in wanted if "a=1+2" in tag}) == 4
    assert found == as_kept(wanted, board)


END = """
import json, os, signal, sys
from pathlib import Path
from model_parallel.grid import Grid
from prompt_tuning.trainer import train
from tests.support.fleets import make_run

calls = []

def end():
    calls.append(None)
    if len(calls) > 5:
        if sys.argv[3] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
    return False

train(make_run(json.loads(sys.argv[1]), Path(sys.argv[2])), Grid(), end)
"""


def train_until(how, settings, folder):
    """Killed or interrupted two steps behind its checkpoint."""
    # With W&B's service, a process of its own, apart from that of this one.
    variables = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", END, json.dumps(settings), str(folder), how]
    done = subprocess.run(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL if how == "killed" else done.returncode != 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000003"]
    assert max(step for _, step, _ in written(folder)) == 5


def test_a_run_that_was_cut_off_goes_on_in_the_same_run_and_doubles_nothing(board, raw, tmp_path):
    """The steps behind its checkpoint are trained and written again. Killed, W&B's process loses what it has not written yet."""
    settings, folder = with_board(raw, board), tmp_path / "run"
    train_until("interrupted" if board == "wandb" else "killed", settings, folder)
    before = (folder / boards.IDS).read_text()
    train(make_run(settings, folder), Grid())
    assert (folder / boards.IDS).read_text() == before
    found, wanted = shown(board, folder), written(folder)
    assert set(Counter((tag, step) for tag, step, _ in found.elements()).values()) == {1}
    speeds = {step for tag, step, _ in found if tag.startswith("throughput/")}  # measured anew
    assert speeds == {1, 2, 3, 4, 5, 6}
    found, wanted = (
        Counter({key: count for key, count in own.items() if not key[0].startswith("throughput/")})
        for own in (found, as_kept(wanted, board))
    )
    assert found == wanted


def test_a_board_that_is_asked_for_later_has_the_steps_that_are_trained_again(raw, tmp_path):
    pytest.importorskip("tensorboard")
    train_until("killed", raw, tmp_path / "run")
    train(make_run(with_board(raw, "tensorboard"), tmp_path / "run"), Grid())
    assert {step for _, step, _ in from_tensorboard(tmp_path / "run")} == {4, 5, 6}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_before_anything_is_read(name, raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    run = make_run({**with_board(raw, name), "backbone": {"path": str(tmp_path / "none")}}, tmp_path / "run")
    with pytest.raises(UserError, match=rf"train.{name} needs extra packages: pip install 'promptfleet\[{name}\]'"):
        train(run, Grid())


class Broken:
    """A board that takes a line, and no more."""

    def __init__(self, run, ids):
        self.count = 0

    def add(self, step, values):
        self.count += 1
        if self.count > 1:
            raise ConnectionError("https://ada:secret@board.example/api is away")

    def close(self):
        raise AssertionError("closed, though it was left")


def test_a_board_that_fails_is_left_and_the_run_ends_well(raw, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(boards, "TensorBoard", Broken)
    pytest.importorskip("tensorboard")
    result = train(make_run(with_board(raw, "tensorboard"), tmp_path / "run"), Grid())
    assert result["status"] == "finished"
    (message,) = [record.message for record in caplog.records if "tensorboard" in record.message]
    assert "train.tensorboard: https://board.example/api is away; the board gets no more of this run" in message
    assert "secret" not in caplog.text and math.isfinite(result["members"][0]["best_loss"])


def test_a_board_that_takes_no_run_ends_in_a_sentence(raw, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://ada:secret@nowhere")
    with pytest.raises(
        UserError, match=r"train\.mlflow: the board takes no run \(.*\); mend it or leave it out"
    ) as caught:
        train(make_run(with_board(raw, "mlflow"), tmp_path / "run"), Grid())
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
