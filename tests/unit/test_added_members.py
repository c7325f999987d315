"""A run to which members are added runs what is missing, whether it has finished or was stopped."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher import cli
from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning.trainer import train
from tests.support.fleets import make_run
from tests.support.tiny import make_backbone, make_texts, run_json

NEW = {"name": "new", "prompt": {"length": 2}, "train": {"seed": 13, "max_steps": 5}}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file of two members and 12 steps, the folder of its finished run, and of one with a third member from the start."""
    folder = tmp_path_factory.mktemp("added")
    members = [{"name": "deep"}, {"name": "head", "method": "head"}]
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts"),
        train={"max_steps": 12, "eval_steps": 3, "log_steps": 1},
        fleet={"members": members},
    )
    assert start(folder, raw, folder / "two") == 0
    assert start(folder, added(raw), folder / "three") == 0
    return raw, folder


def added(raw, *members):
    raw = copy.deepcopy(raw)
    raw["fleet"]["members"] = [*(members or (NEW,)), *raw["fleet"]["members"]]
    return raw


def start(folder, raw, output, *options):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(raw))
    return worker.main(["--config", str(folder / "run.json"), "--output", str(output), *options])


def written(output, *names):
    """Content and identity of what a member's folder holds."""
    files = [file for name in names for file in sorted((output / "members" / name).rglob("*")) if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_ino) for file in files}


def assert_equal_members(found, expected, *names):
    """Equal to rounding, at the same steps."""
    for name in names:
        one, other = (folder / "members" / name for folder in (found, expected))
        tensors = load_file(other / "prompt" / "prompt.safetensors")
        for key, tensor in load_file(one / "prompt" / "prompt.safetensors").items():
            assert (tensor - tensors[key]).abs().max() < 1e-8, f"{name}: {key}"
        lines, others = (
            [json.loads(text) for text in (m / "metrics.jsonl").read_text().splitlines()] for m in (one, other)
        )
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        for line, wanted in zip(lines, others, strict=True):
            assert (
                line == pytest.approx(wanted, abs=1e-8)
                if "metrics" not in line
                else line["metrics"] == wanted["metrics"]
            )


def test_a_finished_run_trains_the_added_members_alone(job, tmp_path):
    raw, folder = job
    out = tmp_path / "out"
    shutil.copytree(folder / "two", out)
    before = written(out, "deep")
    metrics = (out / "members" / "head" / "metrics.jsonl").read_bytes()
    assert start(tmp_path, added(raw), out) == 0
    after = written(out, "deep")
    kept = {"prompt.json", "prompt.safetensors", "result.json"}
    assert {file.name for file in before} > kept
    assert all(after[file] == value for file, value in before.items() if file.name in kept), "not even written again"
    assert (out / "members" / "head" / "metrics.jsonl").read_bytes() == metrics
    result = json.loads((out / "result.json").read_text())
    assert [member["member"] for member in result["members"]] == ["new", "deep", "head"], "as in the run file"
    assert [member["steps"] for member in result["members"]] == [5, 12, 12]
    assert result["members"][1] == json.loads((folder / "two" / "members" / "deep" / "result.json").read_text())
    assert_equal_members(out, folder / "three", "new", "deep", "head")
    assert sorted(path.name for path in (out / "checkpoints").iterdir())[-1] == "step-000017"
    again = (out / "result.json").read_bytes()
    assert start(tmp_path, added(raw), out) == 0
    assert (out / "result.json").read_bytes() == again


def stopped(raw, output, after):
    """Train until ``after`` steps are done, as a job that is asked to make room."""
    answers = itertools.chain([False] * after, itertools.repeat(True))  # the first comes before the first step
    run = make_run(raw, output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").write_text(json.dumps(run.to_json()))
    (output / "environment.json").write_text('{"world_size": 1}')
    assert train(run, Grid(), lambda: next(answers)) is None
    return output


def test_a_stopped_run_goes_on_with_added_members_at_their_own_steps(job, tmp_path):
    raw, folder = job
    out = stopped(raw, tmp_path / "out", 7)
    assert sorted(path.name for path in (out / "checkpoints").iterdir())[-1] == "step-000007"
    # Stopped again in the midst of it, and given yet another order.
    stopped(added(raw), out, 3)
    state = json.loads((out / "checkpoints" / "step-000010" / "state.json").read_text())
    assert [(saved["name"], saved["step"]) for saved in state["members"]] == [("deep", 10), ("head", 10), ("new", 3)]
    turned = added(raw)
    turned["fleet"]["members"].reverse()
    assert start(tmp_path, turned, out) == 0
    assert_equal_members(out, folder / "three", "new", "deep", "head")
    result = json.loads((out / "result.json").read_text())
    assert [member["member"] for member in result["members"]] == ["head", "deep", "new"]


def test_seeds_added_to_a_named_member_keep_the_first_under_its_new_name(job, tmp_path):
    raw, _ = job
    raw = {**copy.deepcopy(raw), "fleet": {"members": [{"name": "deep"}], "seeds": [11]}}
    out = stopped(raw, tmp_path / "out", 4)
    raw["fleet"]["seeds"] = [12, 11]
    assert start(tmp_path, raw, out) == 0
    assert sorted(path.name for path in (out / "members").iterdir()) == ["deep-seed11", "deep-seed12"]
    for name in ("deep-seed11", "deep-seed12"):
        lines = [json.loads(line) for line in (out / "members" / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "train"] == list(range(1, 13))
    assert "deep-seed11" in (out / "log.txt").read_text()


def test_a_mistake_in_an_added_member_can_be_mended(job, tmp_path, capsys):
    raw, folder = job
    out = tmp_path / "out"
    shutil.copytree(folder / "two", out)
    assert start(tmp_path, added(raw, {**NEW, "prompt": {"init_from": str(tmp_path / "nowhere")}}), out) == 1
    assert not (out / "result.json").exists(), "it goes on, but not with this"
    assert start(tmp_path, added(raw), out) == 0
    assert_equal_members(out, folder / "three", "new", "deep", "head")
    capsys.readouterr()
    assert start(tmp_path, raw, out) == 1
    assert "it has members that are missing now: new" in capsys.readouterr().err
    assert (out / "result.json").exists()


def test_members_are_not_added_to_a_finished_run_without_checkpoints(job, tmp_path, capsys):
    raw, folder = job
    out = tmp_path / "out"
    shutil.copytree(folder / "two", out)
    shutil.rmtree(out / "checkpoints")
    capsys.readouterr()
    assert start(tmp_path, added(raw), out) == 1
    assert "has finished and has no checkpoint that new could be added to" in capsys.readouterr().err
    assert (out / "result.json").exists()


def test_what_an_added_member_has_not_reached_is_not_exported(job, tmp_path, capsys):
    """Between its start and the first checkpoint that holds it."""
    raw, _ = job
    out = stopped(raw, tmp_path / "out", 7)
    (out / "run.json").write_text(json.dumps(make_run(added(raw), out).to_json()))
    assert cli.main(["export", str(out), "--output", str(tmp_path / "exported")]) == 0
    assert "new: not evaluated yet, nothing to export" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == ["deep", "head"]
    for name in ("deep", "head"):
        best = json.loads((tmp_path / "exported" / name / "prompt.json").read_text())
        assert best["method"] == {"deep": "deep_prompt", "head": "head"}[name]


def test_members_are_added_to_a_run_of_version_0_1_0(tmp_path, monkeypatch):
    frozen = Path(__file__).parents[1] / "frozen" / "v0.1.0"
    shutil.copytree(frozen, tmp_path / "frozen")
    monkeypatch.chdir(tmp_path / "frozen")
    raw = json.loads(Path("config.json").read_text())
    Path("more.json").write_text(json.dumps(added(raw, {"name": "new", "train": {"seed": 3, "max_steps": 2}})))
    for output, steps in (("unfinished", 24), ("finished", 24)):
        assert worker.main(["--config", "more.json", "--output", output]) == 0
        result = json.loads(Path(output, "result.json").read_text())
        assert [(m["member"], m["steps"]) for m in result["members"]] == [("new", 2), ("deep", steps), ("head", steps)]
        wanted = json.loads((frozen / "finished" / "members" / "deep" / "result.json").read_text())
        assert result["members"][1]["test"] == pytest.approx(wanted["test"], abs=1e-9)
