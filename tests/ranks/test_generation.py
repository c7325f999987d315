"""Texts over several data ranks: the same training, and the same texts on every rank."""

from __future__ import annotations

import pytest

from prompt_tuning.fleet.evaluate import evaluate, split_outputs, write_split
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    members = [
        {"name": "five", "prompt": {"length": 5}},
        {"name": "two", "prompt": {"length": 2, "dropout": 0.2}, "train": {"seed": 12, "batch_size": 3}},
    ]
    # Few tokens a forward, so that a step takes several and ranks may need a dummy.
    return writing_run(
        make_writer(folder / "backbone", "llama"),
        make_passages(folder / "data"),
        train={"tokens_per_batch": 60},
        fleet={"members": members},
    )


def train_and_write(grid, raw):
    fleet = open_fleet(raw, grid)
    course = follow(fleet, 5)
    texts = write_split(fleet, split_outputs(fleet, [0, 1], "dev"), "dev")
    return course, [[own.text for own in texts[index]] for index in (0, 1)], evaluate(fleet, [0, 1], "dev")


def test_data_ranks_train_and_write_as_one(raw):
    ((course, texts, scores),) = run_ranks(1, train_and_write, raw)
    for ranks in (2, 3):
        for found, written, own in run_ranks(ranks, train_and_write, raw):
            assert_same_course(found, course, "float64")
            assert written == texts and len({*texts[0], *texts[1]}) > 4
            for index in (0, 1):
                assert own[index][0] == pytest.approx(scores[index][0], abs=1e-9)
