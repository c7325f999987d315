"""Successive halving: who goes on is decided by scores at the rungs alone, and those who do have the numbers of a whole run."""

from __future__ import annotations

import json

import pytest

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint
from prompt_tuning.fleet.halving import halve
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.search import HalvingSection
from prompt_tuning.trainer import train
from tests.support.fleets import assert_same_course, follow, make_run, open_fleet
from tests.support.tiny import make_backbone, make_texts, run_json

RUNGS = {"rungs": [2, 4], "keep": 0.5}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halving")
    return make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts", {"train": 32, "dev": 24, "test": 8})


def raw_of(places, rates=(0.05, 0.02, 0.01, 0.001, 0.03, 0.002, 0.04, 0.0001), halving=RUNGS):
    fleet = {"grid": {"optimizer.lr": list(rates)}}
    if halving is not None:
        fleet["halving"] = halving
    return run_json(*places, train={"max_steps": 12, "batch_size": 8, "eval_steps": 3}, fleet=fleet)


def scores(run_folder, member):
    lines = (run_folder / "members" / member / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {line["step"]: line["metrics"]["accuracy"] for line in found if line["event"] == "dev"}


@pytest.fixture(scope="module")
def search(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    return folder, train(make_run(raw_of(places), folder), Grid())


def test_the_better_half_goes_on_at_every_rung(search):
    folder, result = search
    steps = {member["member"]: member["steps"] for member in result["members"]}
    assert sorted(steps.values()) == [2, 2, 2, 2, 4, 4, 12, 12]
    for rung, count in ((2, 8), (4, 4)):
        at = {name: scores(folder, name)[rung] for name in steps if rung in scores(folder, name)}
        assert len(at) == count
        out = [score for name, score in at.items() if steps[name] == rung]
        assert max(out) <= min(score for name, score in at.items() if steps[name] > rung)
    statuses = {member["steps"]: member["status"] for member in result["members"]}
    assert statuses == {2: "stopped", 4: "stopped", 12: "finished"} and result["status"] == "finished"
    assert all(member["test"] is not None for member in result["members"])


def test_who_goes_on_has_the_numbers_and_the_schedule_of_a_whole_run(search, places, tmp_path):
    folder, result = search
    train(make_run(raw_of(places, halving=None), tmp_path / "run"), Grid())
    for halved in result["members"]:
        if halved["status"] == "finished":
            ours, theirs = (scores(run, halved["member"]) for run in (folder, tmp_path / "run"))
            assert sorted(theirs) == [3, 6, 9, 12] and all(ours[step] == theirs[step] for step in theirs)


def test_a_search_that_is_stopped_goes_on_to_the_same_bits(search, places, tmp_path):
    folder, _ = search
    for after in (1, 2, 3, 5):
        output, asked = tmp_path / str(after), []

        def stop(asked=asked, after=after):
            asked.append(None)
            return len(asked) > after

        assert train(make_run(raw_of(places), output), Grid(), stop) is None
        train(make_run(raw_of(places), output), Grid())
        for prompt in folder.glob("members/*/prompt/prompt.safetensors"):
            assert prompt.read_bytes() == (output / prompt.relative_to(folder)).read_bytes(), after


def test_members_that_are_added_meet_the_scores_of_those_before(search, places, tmp_path):
    few = raw_of(places, rates=(0.05, 0.02, 0.04, 0.03))
    train(make_run(few, tmp_path / "run"), Grid())
    more = train(make_run(raw_of(places, rates=(0.05, 0.02, 0.04, 0.03, 1e-9)), tmp_path / "run"), Grid())
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "run" / "checkpoints"))
    assert [sorted(member["rungs"]) for member in state["members"]][:4] != [[], [], [], []]
    late = more["members"][-1]
    assert late["steps"] == 2 and late["status"] == "stopped", (
        "one that learns nothing is none of the best three of five"
    )


def test_equal_scores_keep_the_order_of_the_run_file_and_tasks_are_apart(places):
    members = open_fleet(raw_of(places)).members
    for member in members:
        member.step, member.rungs = 2, {2: 0.5}
    for member in members[6:]:
        member.task = type(member.task)(**{**vars(member.task), "name": "another"})
    members[1].rungs = {2: 0.7}
    members[3].status = "diverged"
    halve(members, range(8), HalvingSection(**RUNGS), says=True)
    assert [m.status for m in members] == [
        "running",
        "running",
        "running",
        "diverged",
        "stopped",
        "stopped",
        "running",
        "stopped",
    ]


@pytest.mark.parametrize(
    ("halving", "message"),
    [
        ({"rungs": []}, r"fleet\.halving\.rungs"),
        ({"rungs": [4, 2]}, "do not ascend"),
        ({"rungs": [0, 2]}, "do not ascend"),
        ({"rungs": [2], "keep": 1.0}, r"fleet\.halving\.keep"),
        ({"rungs": [2], "metric": "f1"}, "metric"),
    ],
)
def test_what_is_no_ladder_is_said(places, tmp_path, halving, message):
    with pytest.raises(UserError, match=message):
        resolve(raw_of(places, halving=halving), tmp_path / "run.json")


def test_another_ladder_is_another_experiment(search, places):
    folder, _ = search
    changed = make_run(raw_of(places, halving={"rungs": [2, 6], "keep": 0.5}), folder)
    recorded = checkpoint.newest(folder / "checkpoints")
    with pytest.raises(UserError, match=r"fleet\.halving"):
        checkpoint.in_order(recorded, changed)


def test_halving_finds_the_winner_of_the_whole_search_in_a_third_of_its_steps(tmp_path):
    """On curves that part early: good rates are ahead after 8 of 64 steps."""
    places = (
        make_backbone(tmp_path / "backbone", "bert"),
        make_texts(tmp_path / "texts", {"train": 64, "dev": 120, "test": 8}),
    )
    results = []
    for name, halving in (("halved", {"rungs": [8, 16, 32], "keep": 0.5}), ("whole", None)):
        raw = raw_of(places, halving=halving)
        raw["train"] |= {"max_steps": 64, "eval_steps": 8}
        results.append(train(make_run(raw, tmp_path / name), Grid())["members"])
    steps = [sum(member["steps"] for member in members) for members in results]
    winners = [max(members, key=lambda member: member["best"]["metrics"]["accuracy"]) for members in results]
    assert steps == [160, 512]
    assert winners[0]["member"] == winners[1]["member"] and winners[0]["best"] == winners[1]["best"]


def test_a_search_of_sixteen_gives_the_predictions_of_sixteen_runs(places):
    distributions = {"optimizer.lr": {"log_uniform": [0.003, 0.1]}, "prompt.length": {"integer": [2, 9]}}
    raw = run_json(*places, fleet={"random": {"samples": 16, "distributions": distributions}})
    together = follow(open_fleet(raw), 8)
    assert len(together.dev_logits) == 16
    for name, logits in together.dev_logits.items():
        alone = follow(open_fleet(raw, only=name), 8)
        assert_same_course(together, alone, "float64", [name])
        assert (alone.dev_logits[name].argmax(1) == logits.argmax(1)).all()


def test_rungs_that_nobody_reaches_are_said(places, tmp_path):
    with pytest.raises(
        UserError, match=r"fleet\.halving\.rungs=\[2, 12\]: members end after 12 steps; give lower rungs"
    ):
        train(make_run(raw_of(places, halving={"rungs": [2, 12]}), tmp_path / "run"), Grid())
