"""`promptfleet tune`: rounds of a search within some time, finalists with several seeds, and the winner's run file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

from launcher import cli
from launcher import run as worker
from launcher.runs import tuning
from launcher.verbs import tune
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run
from tests.support.tiny import make_backbone, make_texts, run_json

SPACE = {"optimizer.lr": {"log_uniform": [0.001, 0.1]}, "prompt.length": {"choice": [2, 3]}}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    return make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts", {"train": 40, "dev": 12, "test": 9})


@pytest.fixture
def config(places, tmp_path):
    raw = run_json(*places, train={"epochs": 2, "batch_size": 8, "seed": 5})
    raw["fleet"] = {"random": {"samples": 1, "distributions": SPACE}}
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    return tmp_path / "mine.json"


@pytest.fixture
def clock(monkeypatch):
    """Runs in this process, each of which takes ten seconds on the clock that tune reads; a rate that makes a round take so long."""
    now, ran = [0.0], []

    def train(options, title, file):
        ran.append(file.stem)
        now[0] += 10
        worker.main(["--config", str(file), "--output", str(file.with_suffix(""))])

    def pace(folder, asked):
        found, rate = tuning_pace(folder, asked)
        assert rate > 0
        return found, found.examples_of_a_round / 10

    tuning_pace = tuning.pace_of
    monkeypatch.setattr(tune, "train", train)
    monkeypatch.setattr(tuning, "pace_of", pace)
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])
    return ran


def call(config, budget, *more):
    return cli.main(
        ["tune", str(config), "--budget", budget, "--seeds", "2", "--output", str(config.parent / "out"), *more]
    )


def test_rounds_are_added_while_there_is_time_and_the_winner_is_a_run_file(config, clock, capsys):
    # A round takes 10 s, and the final, 8 runs to the end beside 8 halved ones, 20 s.
    assert call(config, "45s") == 0
    assert clock == ["pace", "search", "search", "final-2"]
    out = config.parent / "out"
    result = json.loads((out / "search" / "result.json").read_text())
    assert len(result["members"]) == 2 * tuning.ROUND
    assert len({member["steps"] for member in result["members"]}) == 3, "two rungs and the end"
    final = json.loads((out / "final-2" / "result.json").read_text())["members"]
    assert [member["member"] for member in final][:3] == ["given-seed5", "given-seed6", "found1-seed5"]
    assert len(final) == 2 * (1 + len(tuning.finalists(out / "search")))
    ranked = tuning.scores(out / "final-2")
    assert all(set(score.values) >= {"dev", "test"} and len(score.values["dev"]) == 2 for score in ranked)
    assert [score.selected_by for score in ranked] == sorted((score.selected_by for score in ranked), reverse=True)
    (winner,) = load_run(out / "winner.json").members
    assert winner.config.data.held_out == 0, "what selects is the search's, not the winner's"
    best = (
        ranked[0].overrides.get("optimizer", {}).get("lr", tuning.find_tuning(config, [], out).given["optimizer"]["lr"])
    )
    assert winner.config.optimizer.lr == best
    assert winner.config.train.seed == 5
    said = capsys.readouterr()
    assert "round 2: 16 members, 20 s of 45 s" in said.err
    assert "mean and standard deviation of 2 seeds" in said.out and (out / "report.html").exists()


def test_the_same_command_does_nothing_twice_and_more_time_adds_rounds(config, clock):
    assert call(config, "35s") == 0
    assert clock == ["pace", "search", "final-1"]
    first = (config.parent / "out" / "search" / "result.json").read_text()
    clock.clear()
    assert call(config, "35s") == 0
    assert "search" not in clock
    assert call(config, "45s") == 0
    assert clock[-2:] == ["search", "final-2"]
    kept = {m["member"]: m["best"] for m in json.loads(first)["members"]}
    later = {
        m["member"]: m["best"] for m in json.loads((config.parent / "out/search/result.json").read_text())["members"]
    }
    assert kept.items() <= later.items() and len(later) == 2 * len(kept)


def test_too_little_time_is_told_before_the_search(config, clock, capsys):
    assert call(config, "25s") == 1
    assert clock == ["pace"]
    assert "about 10 s for a round of the search and 20 s for the final; give 30 s or more" in capsys.readouterr().err


def test_a_space_without_other_points_ends_the_search(config, clock, capsys):
    raw = json.loads(config.read_text())
    raw["fleet"]["random"]["distributions"] = {"prompt.length": {"choice": [2, 3]}}
    config.write_text(json.dumps(raw))
    assert call(config, "1h") == 0
    assert clock == ["pace", "search", "final-1"]
    assert "every point of the space has been tried" in capsys.readouterr().err


def test_held_out_rows_select_and_a_share_of_ones_own_is_kept(config):
    given = tuning.find_tuning(config, [], config.parent)
    assert given.base["data"]["held_out"] == tuning.HELD_OUT
    own = tuning.find_tuning(config, ["data.held_out=0.5"], config.parent)
    assert own.base["data"]["held_out"] == 0.5


def test_without_a_space_of_ones_own_rates_are_relative(config):
    raw = json.loads(config.read_text())
    del raw["fleet"]
    config.write_text(json.dumps(raw))
    found = tuning.find_tuning(config, [], config.parent)
    assert found.space == tuning.SPACE
    run = load_run(replace(found, total_steps=8).search(1))
    assert len(run.members) == tuning.ROUND and all(spec.config.optimizer.relative for spec in run.members)
    with pytest.raises(
        UserError, match=r"method .head. has no space of its own to search; give fleet\.random\.distributions"
    ):
        tuning.find_tuning(config, ["method=head"], config.parent)


def test_a_file_that_makes_members_of_its_own_is_refused(config):
    raw = json.loads(config.read_text())
    raw["fleet"]["seeds"] = [1, 2]
    config.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"fleet\.seeds makes members of its own; tune draws them"):
        tuning.find_tuning(config, [], config.parent)


def test_times_are_read(capsys):
    assert [tune.duration(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "0m", "half an hour", "-5m"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no time; write 90s, 30m or 2h"):
            tune.duration(text)


def test_a_space_keeps_the_seed_of_its_draws(config):
    raw = json.loads(config.read_text())
    raw["fleet"]["random"]["seed"] = 7
    config.write_text(json.dumps(raw))
    found = replace(tuning.find_tuning(config, [], config.parent), total_steps=8)
    rates = [spec.config.optimizer.lr for spec in load_run(found.search(1)).members]
    raw["fleet"]["random"]["samples"] = tuning.ROUND
    config.write_text(json.dumps(raw))
    assert rates == [spec.config.optimizer.lr for spec in load_run(config).members]


@pytest.mark.parametrize("key", ["train.batch_size", "data.held_out", "train.epochs"])
def test_what_makes_steps_unequal_is_not_searched(config, key):
    raw = json.loads(config.read_text())
    raw["fleet"]["random"]["distributions"][key] = {"choice": [0.5] if key == "data.held_out" else [2, 3]}
    config.write_text(json.dumps(raw))
    with pytest.raises(
        UserError, match=f"distributions has {key}, but members are compared after equal steps on equal rows"
    ):
        tuning.find_tuning(config, [], config.parent)


def test_too_few_steps_to_compare_are_told(config, clock, capsys):
    assert call(config, "1h", "--set", "train.max_steps=3") == 1
    assert clock == ["pace"]
    assert "a member trains 3 steps, too few to be compared with others on the way" in capsys.readouterr().err


def test_an_empty_random_section_is_no_space(config):
    raw = json.loads(config.read_text())
    raw["fleet"] = {"random": None}
    config.write_text(json.dumps(raw))
    assert tuning.find_tuning(config, [], config.parent).space == tuning.SPACE
