"""A checkpoint knows nothing of ranks: written on two, it continues on any number."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from prompt_tuning import trainer
from tests.support.fleets import make_run
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone, make_copa, make_texts, run_json

STOP = 7


class Stopped(Exception):
    """Stands for the end of a job in the middle of its run."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file of 20 steps, and the folder of the run that was stopped on two ranks behind its first checkpoint."""
    folder = tmp_path_factory.mktemp("resume")
    members = [
        {"prompt": {"length": 5, "dropout": 0.2}},
        {"task": "copa", "data": {"path": str(make_copa(folder / "copa"))}, "prompt": {"reparameterisation": "mlp"}},
        {"method": "shallow_prompt"},
        {"method": "head", "prompt": {"dropout": 0.2}},
    ]
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 20, "eval_steps": 5, "checkpoint_steps": STOP, "log_steps": 1},
        fleet={"members": members},
    )
    run_ranks(2, stop_at_first_checkpoint, raw, folder / "stopped")
    assert [path.name for path in (folder / "stopped" / "checkpoints").iterdir()] == [f"step-{STOP:06d}"]
    run_ranks(1, train_run, raw, folder / "whole")
    return raw, folder


def stop_at_first_checkpoint(grid, raw, output):
    def stop(grid):
        meet(grid)
        raise Stopped

    meet, trainer.barrier = trainer.barrier, stop  # the process ends with this function
    with pytest.raises(Stopped):
        trainer.train(make_run(raw, output), grid)


def train_run(grid, raw, output):
    trainer.train(make_run(raw, output), grid)


def results(output):
    """Exported tensors and metrics of all members."""
    prompts, lines = {}, {}
    for folder in sorted((output / "members").iterdir()):
        prompts[folder.name] = load_file(folder / "prompt" / "prompt.safetensors")
        lines[folder.name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return prompts, lines


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_run_stopped_on_two_ranks_ends_equal_on_others(job, size):
    raw, folder = job
    output = folder / f"on-{size}"
    shutil.copytree(folder / "stopped", output)
    run_ranks(size, train_run, raw, output)
    (prompts, lines), (expected_prompts, expected_lines) = results(output), results(folder / "whole")
    assert len(prompts) == 4
    for member, tensors in expected_prompts.items():
        assert set(prompts[member]) == set(tensors)
        for name, tensor in tensors.items():
            assert (prompts[member][name] - tensor).abs().max() < 1e-8, f"{member}: {name}"
        assert [line["step"] for line in lines[member]] == [line["step"] for line in expected_lines[member]]
        for line, expected in zip(lines[member], expected_lines[member], strict=True):
            assert abs(line["loss"] - expected["loss"]) < 1e-8
            assert line.get("metrics") == expected.get("metrics")


def test_two_ranks_train_a_member_that_is_added_to_a_finished_run(job):
    """The first rank alone looks for earlier results; both must test the same members then."""
    raw, folder = job
    new = {"name": "new", "prompt": {"length": 4}, "train": {"seed": 21}}
    more = {**raw, "fleet": {"members": [new, *raw["fleet"]["members"]]}}
    run_ranks(1, train_run, {**raw, "fleet": {"members": [new]}}, folder / "alone")
    output = folder / "more"
    shutil.copytree(folder / "whole", output)
    before = {file: file.read_bytes() for file in output.glob("members/*/*.json*")}
    run_ranks(2, train_run, more, output)
    assert before == {file: file.read_bytes() for file in before}
    assert json.loads((output / "result.json").read_text())["members"][0]["member"] == "new"
    (prompts, lines), (expected_prompts, expected_lines) = results(output), results(folder / "alone")
    for name, tensor in expected_prompts["new"].items():
        assert (prompts["new"][name] - tensor).abs().max() < 1e-8, name
    assert [line["step"] for line in lines["new"]] == [line["step"] for line in expected_lines["new"]]
    assert [line.get("metrics") for line in lines["new"]] == [line.get("metrics") for line in expected_lines["new"]]
