"""Deltas of biases and norms trained over tensor ranks and ZeRO-3 are those of one process."""

from __future__ import annotations

from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone, make_texts, run_json

ALSO = {"also": ["biases", "norms"]}
MEMBERS = [
    {"name": "both", "train": ALSO},
    {"name": "plain", "prompt": {"length": 2}, "train": {"seed": 12}},
    {"name": "upper", "prompt": {"layers": [1, 2]}, "train": {"also": ["norms"], "seed": 13}},
    {"name": "head", "method": "head", "train": {**ALSO, "seed": 14}},
]


def follow_few(grid, raw, parallel):
    return follow(open_fleet({**raw, "parallel": parallel}, grid), 4)


def test_deltas_over_four_ranks_equal_one_process(tmp_path):
    """A budget of so few tokens that ranks have rows of other members at the same time."""
    texts = make_texts(tmp_path / "texts", {"train": 17, "dev": 5})
    backbone = make_backbone(tmp_path / "backbone", "bert")
    raw = run_json(backbone, texts, train={"tokens_per_batch": 60}, fleet={"members": MEMBERS})
    (alone,) = run_ranks(1, follow_few, raw, {})
    for found in run_ranks(4, follow_few, raw, {"tensor": 2, "zero": True}):
        assert_same_course(found, alone, "float64")
