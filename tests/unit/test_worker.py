"""What the worker says when it is not the run file that is wrong."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

from launcher import run as worker
from prompt_tuning import trainer
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps(run_json(make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts")))
    )
    return ["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "run")]


def test_memory_that_is_not_there_is_a_sentence_with_remedies(config, monkeypatch, capsys):
    def train_in_folder(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(worker, "train_in_folder", train_in_folder)
    assert worker.main(config) == 1
    said = capsys.readouterr().err
    assert (
        "has not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB.); lower train.tokens_per_batch, "
        "set train.activation_checkpointing, or" in said
    )
    assert "Traceback" not in said


def test_a_mistake_of_ours_is_told_whole(config, monkeypatch, capsys):
    monkeypatch.setattr(worker, "train_in_folder", lambda *_: 1 / 0)
    assert worker.main(config) == 1
    said = capsys.readouterr().err
    assert "failed; the same command continues from the last checkpoint" in said and "ZeroDivisionError" in said


def test_a_run_that_is_continued_elsewhere_is_told_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("launcher"), "propagate", True)
    here = {"versions": {"torch": "2.13.0"}, "world_size": 2, "threads": 1, "hosts": ["a", "a"]}

    def said(old):
        caplog.clear()
        (tmp_path / "environment.json").write_text(old if isinstance(old, str) else json.dumps(old))
        worker.say_what_changed(tmp_path, here)
        return caplog.text

    assert not said({**here, "world_size": 4}), "nothing is continued"
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    assert "(world_size: 4 there, 2 now): equal to rounding, not to the bit" in said({**here, "world_size": 4})
    assert '(versions.torch: "2.12.0" there, "2.13.0" now)' in said({**here, "versions": {"torch": "2.12.0"}})
    assert not said({**here, "hosts": ["b", "c"]}) and not said("{damaged")


@pytest.mark.parametrize("name", ["run.json", "environment.json"])
def test_a_file_of_ones_own_in_the_output_folder_is_not_overwritten(config, tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"task": "boolq", "conda": "my notes"}')
    assert worker.main(config) == 1
    assert (
        f"{tmp_path / 'run' / name} is no record of a run, and the run would write its own there"
        in capsys.readouterr().err
    )
    assert "my notes" in (tmp_path / "run" / name).read_text()


@pytest.mark.parametrize("moment", ["log", "save"])
def test_a_run_folder_that_is_deleted_under_a_job_is_a_sentence(config, tmp_path, capsys, monkeypatch, moment):
    place, name = {"log": (trainer.MetricsLog, "steps"), "save": (trainer.checkpoint, "save")}[moment]
    stock = getattr(place, name)

    def delete_first(*arguments):
        shutil.rmtree(tmp_path / "run")
        return stock(*arguments)

    monkeypatch.setattr(place, name, delete_first)
    code, said = worker.main(config), capsys.readouterr().err
    assert code == 1 and f"the run folder {tmp_path / 'run'} is gone" in said and "Traceback" not in said, said


def test_a_file_that_a_dry_run_misses_is_named_and_not_the_run_folder(config, monkeypatch, capsys):
    def build(*_):
        raise FileNotFoundError(2, "No such file or directory", "weights.bin")

    monkeypatch.setattr(trainer, "build_fleet", build)
    assert worker.main([*config, "--dry-run"]) == 1
    assert "error: weights.bin: No such file or directory" in capsys.readouterr().err
