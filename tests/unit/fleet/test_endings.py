"""Members that end before the others, by patience, divergence or numbers that are not finite, do them no harm."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning import trainer
from prompt_tuning.report import rates
from prompt_tuning.trainer import build_fleet, train
from tests.support.fleets import five_members, follow, make_run, open_fleet
from tests.support.tiny import run_json


def read_lines(output, name):
    return [json.loads(line) for line in (output / "members" / name / "metrics.jsonl").read_text().splitlines()]


def test_patience_stops_a_member_that_does_not_improve(places, tmp_path):
    raw = five_members(places, max_steps=None, epochs=6)
    raw["fleet"]["members"][0]["optimizer"] = {"lr": 1e-12}
    raw["fleet"]["members"][0]["train"] = {"patience": 2}
    run = make_run(raw, tmp_path / "run")
    result = train(run, Grid())
    stopped, *others = result["members"]
    assert stopped["status"] == "stopped"
    assert stopped["steps"] == 3 * 3, "the first of three epochs' evaluations was the best"
    assert stopped["best"]["step"] == 3
    assert [line["step"] for line in read_lines(tmp_path / "run", "deep") if line["event"] == "dev"] == [3, 6, 9]
    assert {other["status"] for other in others} == {"finished"}
    assert result["status"] == "finished"


def poison(monkeypatch, name):
    """Put a NaN into a member's prefix before training."""

    def build_poisoned(*args):
        fleet = build_fleet(*args)
        for member in fleet.members:
            if member.name == name:
                member.prompt.prefix.embedding.data[0, 0] = float("nan")
        return fleet

    monkeypatch.setattr(trainer, "build_fleet", build_poisoned)


def keep_last_tensors(monkeypatch):
    """Members' tensors at the latest checkpoint, by name: results hold the best ones only."""
    last, save = {}, trainer.checkpoint.save

    def save_and_keep(folder, fleet, *rest):
        last.update({member.name: member.tensors() for member in fleet.members})
        save(folder, fleet, *rest)

    monkeypatch.setattr(trainer.checkpoint, "save", save_and_keep)
    return last


@pytest.fixture(scope="module")
def without_the_sick(places, tmp_path_factory):
    """The course of the four other members where the first does not exist, by dtype."""
    courses = {}
    for dtype in ("float64", "float32"):
        raw = five_members(places, dtype)
        del raw["fleet"]["members"][0]
        courses[dtype] = follow(open_fleet(raw))
    return courses


@pytest.mark.parametrize(("dtype", "cause"), [("float64", "nan"), ("float32", "rate"), ("float32", "nan")])
@pytest.mark.parametrize("eval_steps", [1, 4])
def test_a_diverging_member_is_stopped_without_harm_to_others(
    places, tmp_path, monkeypatch, without_the_sick, dtype, cause, eval_steps
):
    raw = five_members(places, dtype, eval_steps=eval_steps, log_steps=3)
    if cause == "rate":
        raw["fleet"]["members"][0]["optimizer"] = {"lr": 1e30}
    else:
        poison(monkeypatch, "deep")
    last = keep_last_tensors(monkeypatch)
    result = train(make_run(raw, tmp_path / "run"), Grid())
    sick, *others = result["members"]
    assert result["status"] == "diverged"
    assert sick["status"] == "diverged"
    assert sick["steps"] <= 4
    assert json.loads((tmp_path / "run" / "result.json").read_text())["members"][0]["status"] == "diverged"
    assert read_lines(tmp_path / "run", "deep")[-1]["event"] == "diverged"
    expected = without_the_sick[dtype]
    for other in others:
        assert other["status"] == "finished"
        name = other["member"]
        for key, end in expected.end[name].items():
            moved = (end - expected.start[name][key]).norm()
            assert (last[name][key] - end).norm() < (1e-7 if dtype == "float64" else 1e-3) * moved, f"{name}: {key}"


def test_members_share_the_time_of_a_step_by_their_tokens(places, tmp_path, monkeypatch):
    """On a clock that a second passes on at each look; the run's own rate is that of all its members together."""
    ticks = itertools.count()
    monkeypatch.setattr(rates.time, "perf_counter", lambda: float(next(ticks)))
    members = [
        {"name": "deep", "prompt": {"length": 5}},
        {"name": "short", "prompt": {"length": 1}, "train": {"batch_size": 4}},
        {"name": "head", "method": "head"},
    ]
    raw = run_json(
        places["backbone"],
        places["texts"],
        train={"max_steps": 6, "log_steps": 3, "batch_size": 8, "backbone_dropout": False},
        fleet={"members": members},
    )
    run = make_run(raw, tmp_path / "run")
    fleet = build_fleet(run, Grid())
    expected, count = np.zeros(3), 0
    for step in range(6):
        for index, member in enumerate(fleet.members):
            features, examples = member.splits["train"], member.step_examples(step)
            count += len(examples)
            texts = sum(int(np.diff(features.offsets)[example]) for example in examples)
            expected[index] += [texts + 5 * len(examples), texts + len(examples), len(examples)][index]
    expected *= 2 / expected.sum()  # two looks of a second each: steps 1 to 3, and 4 to 6
    result = train(run, Grid())
    found = [member["seconds"] for member in result["members"]]
    assert result["seconds"] == 2.0 and sum(found) == pytest.approx(2, abs=0.002)
    assert found == pytest.approx(expected.tolist(), rel=0.2)  # shares of each three steps
    assert result["examples_per_second"] == count / 2 and found[2] < found[0] / 5


def test_a_checkpoint_waits_until_all_running_members_were_evaluated(places, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(trainer.checkpoint, "save", lambda folder, fleet, step, *_: saved.append(step))
    members = [
        {"name": "often", "train": {"eval_steps": 2}},
        {"name": "seldom", "train": {"eval_steps": 5}},
        {"name": "short", "train": {"max_steps": 3, "eval_steps": 3}},
    ]
    raw = run_json(places["backbone"], places["texts"], train={"max_steps": 12}, fleet={"members": members})
    train(make_run(raw, tmp_path / "run"), Grid())
    assert saved == [5, 10, 12]  # not 2, 3, 4, 5, 6, 8, 10, 12


def plant(fleet, where, monkeypatch):
    """Let the first member meet a NaN in its third step alone: in a value of its prompt, a gradient, or its loss."""
    member = fleet.members[0]
    if where == "gradient":
        member.prompt.head.bias.register_hook(lambda g: g * float("nan") if member.step == 2 else g)
    elif where == "loss":
        loss = member.kind.loss

        def planted(logits, wanted):
            return loss(logits, wanted) * (float("inf") if member.step == 2 else 1)

        monkeypatch.setattr(member, "kind", replace(member.kind, loss=planted))
    else:
        head = member.prompt.head.forward

        def forward(pooled, *rest):
            return head(pooled * (float("nan") if member.step == 2 else 1), *rest)

        monkeypatch.setattr(member.prompt.head, "forward", forward)


@pytest.mark.parametrize("where", ["value", "gradient", "loss"])
def test_a_member_takes_no_step_from_the_first_number_that_is_not_finite(places, monkeypatch, where):
    """It keeps the tensors of its last good step though later ones are finite; the others have the bits they would have had."""
    raw = five_members(places, "float32")
    healthy, fleet = open_fleet(raw), open_fleet(raw)
    plant(fleet, where, monkeypatch)
    courses = []
    for one in (healthy, fleet):
        courses.append([])
        for _ in range(5):
            one.train_step(list(range(len(one.members))))
            for member in one.members:
                member.step += 1
            courses[-1].append([member.tensors() for member in one.members])
    for step, (expected, found) in enumerate(zip(*courses, strict=True)):
        wanted = [courses[0][min(step, 1)][0], *expected[1:]]
        for own, other in zip(found, wanted, strict=True):
            assert all(torch.equal(own[name], other[name]) for name in other), step
    assert fleet.updater.sick.tolist() == [1, 0, 0, 0, 0]
