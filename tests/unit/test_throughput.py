"""What a run says of its own speed, and of the memory that it may take."""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np
import pytest
import torch

from model_parallel.grid import Grid
from model_parallel.memory import free_on_host, give_back, process_memory
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.trainer import build_fleet, train
from tests.support.fleets import make_run
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("throughput")
    backbone, texts = make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts", {"train": 17, "dev": 9})
    members = [{"prompt": {"length": 5}}, {"prompt": {"length": 2}, "train": {"batch_size": 4}}]
    train = {"max_steps": 10, "eval_steps": 4, "log_steps": 3, "batch_size": 8}
    return run_json(backbone, texts, train=train, fleet={"members": members})


def lines(folder):
    return [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()]


def test_every_interval_counts_the_examples_and_tokens_of_its_steps(raw, tmp_path):
    run = make_run(raw, tmp_path / "run")
    result = train(run, Grid())
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [3, 4, 6, 8, 9, 10], "at logged steps and evaluations"
    assert sum(line["seconds"] for line in found) == pytest.approx(result["seconds"], abs=0.01)
    start = 0
    for line in found:
        examples = tokens = 0
        for member in build_fleet(run, Grid()).members:
            for step in range(start, line["step"]):
                chosen = member.step_examples(step)
                texts = np.diff(member.splits["train"].offsets)[chosen].sum()
                examples, tokens = examples + len(chosen), tokens + texts + member.prompt.length * len(chosen)
        assert line["examples_per_second"] * line["seconds"] == pytest.approx(examples, rel=1e-3)
        assert line["tokens_per_second"] * line["seconds"] == pytest.approx(tokens, rel=1e-3)
        assert 0 < line["waiting_for_data"] < 1
        start = line["step"]


def test_a_run_that_goes_on_says_nothing_twice(raw, tmp_path):
    asked = []
    train(make_run(raw, tmp_path / "run"), Grid(), lambda: len(asked) > 5 or asked.append(None))
    assert lines(tmp_path / "run")[-1]["step"] < 10
    with (tmp_path / "run" / "throughput.jsonl").open("a") as file:
        file.write('{"step": 9, "seconds": 1}\n{"ste')  # of a process that was killed behind its checkpoint
    train(make_run(raw, tmp_path / "run"), Grid())
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 10 and 9 in steps
    assert all(len(line) == 5 for line in lines(tmp_path / "run"))


def test_evaluations_run_more_tokens_at_once_where_forwards_are_dear():
    for device in (torch.device("cuda"), torch.device("cpu")):
        gathers = device.type == "cpu"
        assert default_budget(device, gathers, with_gradients=False) == 4 * default_budget(device, gathers)
    assert default_budget(torch.device("cpu"), with_gradients=False) == default_budget(torch.device("cpu"))


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        (None, {}, 4096 * 1024),
        ("0::/job/step\n", {"job/memory.max": "max", "job/memory.current": "5", "job/memory.stat": ""}, 4096 * 1024),
        (
            "0::/job/step\n",
            {"job/memory.max": "1000", "job/memory.current": "700", "job/memory.stat": "anon 1\ninactive_file 200\n"},
            500,
        ),
        (
            "4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "1000",
                "memory/job/memory.usage_in_bytes": "1200",
                "memory/job/memory.stat": "total_inactive_file 50\n",
            },
            0,
        ),
        ("0::/job\n", {"job/memory.max": "nonsense"}, 4096 * 1024),
    ],
)
def test_free_memory_is_what_the_kernel_and_control_groups_leave(tmp_path, own, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    4096 kB\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert free_on_host(tmp_path / "meminfo", tmp_path, tmp_path / "own") == free
    assert free_on_host(tmp_path / "none", tmp_path / "nowhere", tmp_path / "own") is None


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot be told so"
)
def test_freed_memory_between_what_is_in_use_is_given_back():
    """Of 128 MiB in pieces all but the last, behind which the library cannot shrink its heap by itself."""
    pieces = [np.ones(64 * 1024, np.uint8) for _ in range(2048)]
    last = pieces.pop()
    del pieces
    before = process_memory()["anonymous"]
    give_back()
    assert before - process_memory()["anonymous"] > 64 * 2**20 and last.all()
