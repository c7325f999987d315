"""Profiles of training steps: what is counted is what runs, and nothing is saved."""

from __future__ import annotations

import json

import pytest

from launcher import cli
from prompt_tuning.report.profile import profile_steps
from tests.support.fleets import open_fleet
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture
def raw(tmp_path):
    return run_json(make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts"))


def test_operations_are_those_of_the_step(raw):
    """Of a head alone on one text: projections and feed-forward of three layers, the last one's behind attention for one token."""
    raw["task"]["labels"] = ["class0", "class1", "class2"]
    raw |= {"method": "head", "data": {**raw["data"], "max_train_examples": 2}}
    raw["train"] |= {"batch_size": 1}
    raw["head"] = {"pooling": "first"}
    fleet = open_fleet(raw)
    fleet.frozen.members.clear()  # else the texts are computed once and not in every step
    found = profile_steps(fleet, 2)
    assert found.examples == 1
    features, hidden, inner = fleet.members[0].splits["train"], 32, fleet.backbone.model.config.intermediate_size
    lengths = features.lengths(fleet.members[0].step_examples(0))
    # The step that is counted is the third; both texts are run in turns, and one epoch is two steps.
    third = int(features.lengths(fleet.members[0].step_examples(2))[0])
    whole, behind = 4 * hidden * hidden + 2 * hidden * inner, hidden * hidden + 2 * hidden * inner
    products = 2 * (third * (3 * whole - behind) + behind)
    attention = 2 * 2 * third * hidden * (2 * third + 1)  # of the last layer, the read token alone attends
    head = 2 * 2 * hidden * len(fleet.members[0].labels)
    assert len(lengths) == 1 and found.operations == pytest.approx(products + attention + head, rel=0.01)
    assert found.utilisation > 0 and sum(seconds for _, seconds, _ in found.kinds) > 0


def test_the_verb_prints_shares_and_writes_a_trace(raw, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(raw))
    trace = tmp_path / "trace.json"
    before = sorted(tmp_path.iterdir())
    assert cli.main(["profile", str(tmp_path / "run.json"), "--steps", "1", "--trace", str(trace)]) == 0
    said = capsys.readouterr().out
    assert "matrix products" in said and "MFU" in said and "addmm" in said
    assert json.loads(trace.read_text())["traceEvents"]
    assert sorted(tmp_path.iterdir()) == sorted([*before, trace]), "nothing else is written"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--trace", "/nowhere/here/trace.json"], "there is no folder /nowhere/here"),
        (["--set", "parallel.tensor=2"], "profile runs in one process"),
    ],
)
def test_what_cannot_be_profiled_is_said(raw, tmp_path, capsys, more, message):
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert cli.main(["profile", str(tmp_path / "run.json"), *more]) == 1
    assert message in capsys.readouterr().err
