"""Training over tensor ranks and ZeRO-3 is the same training as on one process (DESIGN, section 6), resumed ones too."""

from __future__ import annotations

import shutil

import pytest
import torch

from model_parallel.grid import Grid, make_grid
from prompt_tuning import trainer
from prompt_tuning.backbone.attention import own_dropout
from tests.ranks.test_resume import Stopped, results
from tests.support.fleets import assert_same_course, follow, make_run, open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone, make_copa, make_texts, run_json
from tests.support.topologies import exact_norms

TOPOLOGIES = {"tensor 2 x zero 2": {"tensor": 2, "zero": True}, "tensor 4": {"tensor": 4}, "zero 4": {"zero": True}}
IN_FLOAT32 = ("bert", "glm")
"""Run files that train in float32 too; it adds rounding to what float64 shows."""
SHARDED = TOPOLOGIES["tensor 2 x zero 2"]


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Run files by name. 17 texts in eights and 13 questions in fours leave one example for an epoch's last step."""
    folder = tmp_path_factory.mktemp("sharded")
    texts = make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5})
    copa = {"task": "copa", "data": {"path": str(make_copa(folder / "copa"))}, "train": {"batch_size": 4, "seed": 12}}
    members = [
        {"name": "deep", "prompt": {"length": 5, "dropout": 0.3}},
        {"name": "mlp", "prompt": {"length": 3, "reparameterisation": "mlp", "projection_width": 8}},
        {"name": "shallow", "method": "shallow_prompt", "prompt": {"length": 4, "dropout": 0.1}},
        {"name": "choice", **copa},
    ]
    # Gradients that end at different places of the decoder, and such that never enter the encoder.
    sites = {"t5": (["encoder", "decoder", "cross"], ["encoder", "cross"]), "bart": (["cross"], ["cross"])}
    passages = make_passages(folder / "passages", {"train": 17, "dev": 7})
    sided = {
        name: writing_run(
            make_writer(folder / name, name, vocab_size=83),
            passages,
            fleet={
                "members": [
                    {"name": "five", "prompt": {"length": 5, "dropout": 0.3, "sites": own[0]}},
                    {"name": "two", "prompt": {"length": 2, "sites": own[1]}, "train": {"seed": 12, "batch_size": 3}},
                ]
            },
        )
        for name, own in sites.items()
    }
    bert, glm = (make_backbone(folder / name, name, vocab_size=83) for name in ("bert", "glm4"))
    return {
        "bert": run_json(bert, texts, fleet={"members": members}),
        "copa": run_json(bert, texts, **copa),
        "glm": run_json(glm, texts, prompt={"init": "text"}, optimizer={"relative": True}),
        "checkpointing": run_json(bert, texts, train={"activation_checkpointing": True}),
        "head": run_json(bert, texts, method="head"),
        **sided,
    }


def with_parallel(raw, parallel, dtype):
    return {**raw, "parallel": parallel, "backbone": {**raw["backbone"], "dtype": dtype}}


def courses_of(raws):
    """Run files and the types they train in."""
    return [
        (name, dtype) for name in raws for dtype in ("float64", "float32") if dtype == "float64" or name in IN_FLOAT32
    ]


def follow_all(grid, raws, parallel):
    courses = {}
    for name, dtype in courses_of(raws):
        fleet = open_fleet(with_parallel(raws[name], parallel, dtype), grid)
        if dtype == "float64":
            exact_norms(fleet.backbone.model)
        courses[name, dtype] = follow(fleet)
    return courses


@pytest.fixture(scope="module")
def alone(raws):
    (courses,) = run_ranks(1, follow_all, raws, {})
    return courses


@pytest.mark.parametrize("label", TOPOLOGIES)
def test_training_over_four_ranks_equals_one_process(raws, alone, label):
    ranks = run_ranks(4, follow_all, raws, TOPOLOGIES[label])
    for name, dtype in courses_of(raws):
        for rank in ranks:
            assert_same_course(rank[name, dtype], alone[name, dtype], dtype)


def follow_with_dropout(grid, raw):
    """Courses with the backbone's own dropout, plain and checkpointed, and the first step's keep masks of attention."""
    courses = []
    for checkpointing in (False, True):
        train = {**raw["train"], "backbone_dropout": True, "activation_checkpointing": checkpointing}
        courses.append(follow(open_fleet({**raw, "train": train}, grid), steps=3))
    return courses


def test_dropout_keeps_tensor_ranks_together_and_recomputation_exact(raws):
    """Hidden dropout must be equal over the tensor axis, or the ranks' hidden states, and with them the heads, part."""
    raw = with_parallel(raws["copa"], {"tensor": 2}, "float64")
    ranks = run_ranks(2, follow_with_dropout, raw)
    plain, checkpointed = ranks[0]
    assert plain.losses == ranks[1][0].losses == checkpointed.losses
    for name, tensors in plain.end.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, ranks[1][0].end[name][key])
            assert torch.equal(tensor, checkpointed.end[name][key])


def dropped(grid):
    """What attention dropout and hidden dropout each make of ones, under one seed."""
    torch.manual_seed(5)
    ones = torch.ones(1000)
    with own_dropout(grid.tensor_rank, 0.5, grid.device):
        attention = torch.nn.functional.dropout(ones, 0.5)
    return attention, torch.nn.functional.dropout(ones, 0.5)


def test_attention_dropout_differs_over_tensor_ranks_and_hidden_dropout_does_not():
    (first, hidden), (second, same) = (dropped(Grid(rank, 2, tensor=2)) for rank in range(2))
    assert torch.equal(hidden, same)
    assert 0.4 < (first == second).double().mean() < 0.6


def train_run(grid, raw, output, stop):
    """Train a run on this grid; ``stop`` ends the job behind its first checkpoint."""

    def leave(grid):
        meet(grid)
        raise Stopped

    run = make_run(raw, output)
    shared = make_grid(grid.rank, grid.size, grid.device, run.shared.parallel.tensor)
    meet = trainer.barrier
    if not stop:
        trainer.train(run, shared)
        return
    trainer.barrier = leave
    with pytest.raises(Stopped):
        trainer.train(run, shared)


@pytest.mark.parametrize(("first", "second"), [(4, 1), (1, 4)])
def test_a_run_goes_on_over_other_ranks(raws, tmp_path, first, second):
    """From tensor 2 x ZeRO 2 to one process, and back."""
    plain = {**raws["bert"], "train": {"max_steps": 12, "eval_steps": 4, "checkpoint_steps": 5, "batch_size": 8}}
    plain["train"]["backbone_dropout"] = False
    files = {1: plain, 4: {**plain, "parallel": SHARDED}}
    run_ranks(1, train_run, plain, tmp_path / "whole", False)
    run_ranks(first, train_run, files[first], tmp_path / "stopped", True)
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-000005"]
    shutil.copytree(tmp_path / "stopped", tmp_path / "resumed")
    run_ranks(second, train_run, files[second], tmp_path / "resumed", False)
    (prompts, lines), (expected_prompts, expected_lines) = results(tmp_path / "resumed"), results(tmp_path / "whole")
    assert len(prompts) == 4
    for member, tensors in expected_prompts.items():
        for name, tensor in tensors.items():
            assert (prompts[member][name] - tensor).abs().max() < 1e-8, f"{member}: {name}"
        for line, expected in zip(lines[member], expected_lines[member], strict=True):
            assert abs(line["loss"] - expected["loss"]) < 1e-8
            assert line.get("metrics") == expected.get("metrics")
