"""Random search: samples that stay when more are drawn, from the distributions that were asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launcher import cli
from launcher import run as worker
from launcher.pages.scores import Group, read_groups
from launcher.pages.search import searches
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.search import Distribution, RandomSection
from tests.support.tiny import make_backbone, make_texts, run_json

LR = {"log_uniform": [0.001, 0.1]}


def members(tmp_path, *sets, **fleet):
    return resolve(run_json("b", tmp_path, fleet=fleet), tmp_path / "run.json", list(sets)).members


def test_more_samples_keep_the_first_ones(tmp_path):
    random = {"samples": 6, "distributions": {"optimizer.lr": LR, "prompt.length": {"integer": [2, 40]}}}
    few = members(tmp_path, random=random)
    many = members(tmp_path, random={**random, "samples": 20})
    assert len(few) == 6 and len(many) == 20
    assert [(m.name, m.config) for m in few] == [(m.name, m.config) for m in many[:6]]
    assert len({m.config.optimizer.lr for m in many}) == 20
    other = members(tmp_path, random={**random, "seed": 1})
    assert not {m.config.optimizer.lr for m in other} & {m.config.optimizer.lr for m in few}


def test_a_key_more_leaves_the_others_as_they_were(tmp_path):
    one = members(tmp_path, random={"samples": 5, "distributions": {"optimizer.lr": LR}})
    keys = {"prompt.dropout": {"uniform": [0, 0.5]}, "optimizer.lr": LR}
    two = members(tmp_path, random={"samples": 5, "distributions": keys})
    assert [m.config.optimizer.lr for m in one] == [m.config.optimizer.lr for m in two]


def test_samples_times_grid_times_members_times_seeds(tmp_path):
    found = members(
        tmp_path,
        random={"samples": 3, "distributions": {"optimizer.lr": LR}},
        grid={"prompt.length": [3, 4]},
        members=[{"name": "a"}, {"name": "b"}],
        seeds=[1, 2],
    )
    assert len(found) == 3 * 2 * 2 * 2 == len({m.name for m in found})
    assert found[0].overrides["optimizer"] == {"lr": found[0].config.optimizer.lr}


def test_equal_samples_are_one_member(tmp_path):
    random = {"samples": 50, "distributions": {"prompt.length": {"choice": [3, 4]}}}
    assert sorted(m.config.prompt.length for m in members(tmp_path, random=random)) == [3, 4]


@pytest.mark.parametrize(
    ("given", "of_uniform"),
    [
        ({"uniform": [2, 6]}, lambda values: (values - 2) / 4),
        ({"log_uniform": [0.001, 10]}, lambda values: np.log10(values / 0.001) / 4),
        ({"integer": [3, 12]}, lambda values: (values - 2.5) / 10),
        ({"choice": [0, 1, 2, 3, 4]}, lambda values: (values + 0.5) / 5),
    ],
)
def test_values_are_spread_as_the_distribution_says(given, of_uniform):
    section = RandomSection.model_validate({"samples": 1, "distributions": {"k": given}})
    own = section.distributions["k"]
    values = np.array([own.value(share) for share in (np.arange(1000) + 0.5) / 1000], float)
    shares = of_uniform(values)
    assert abs(shares.mean() - 0.5) < 0.01 and shares.min() >= 0 and shares.max() <= 1
    assert np.quantile(shares, 0.25) == pytest.approx(0.25, abs=0.06)


def test_draws_are_even():
    section = RandomSection.model_validate({"samples": 2000, "distributions": {"k": {"uniform": [0, 1]}}})
    values = np.array([point["k"] for point in section.points()])
    assert np.histogram(values, 10, (0, 1))[0].min() > 150


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ({"random": {"samples": 0, "distributions": {"optimizer.lr": LR}}}, r"fleet\.random\.samples"),
        ({"random": {"samples": 2, "distributions": {}}}, r"fleet\.random\.distributions"),
        ({"random": {"samples": 2, "distributions": {"optimizer.lr": {}}}}, "has nothing; give one of uniform"),
        (
            {"random": {"samples": 2, "distributions": {"optimizer.lr": {"uniform": [1, 2], "choice": [1]}}}},
            "has uniform and choice; give one",
        ),
        ({"random": {"samples": 2, "distributions": {"optimizer.lr": {"uniform": [2, 1]}}}}, "2.0 is not below 1.0"),
        ({"random": {"samples": 2, "distributions": {"optimizer.lr": {"log_uniform": [0, 1]}}}}, "has no logarithm"),
        ({"random": {"samples": 2, "distributions": {"optimizer.rate": LR}}}, "rate"),
        (
            {"random": {"samples": 2, "distributions": {"backbone.path": {"choice": ["a"]}}}},
            "is the same for all members",
        ),
        (
            {"random": {"samples": 2, "distributions": {"optimizer.lr": LR}}, "grid": {"optimizer.lr": [0.1]}},
            r"fleet\.grid and fleet\.random both vary `optimizer\.lr`",
        ),
        (
            {"random": {"samples": 2, "distributions": {"train.seed": {"integer": [1, 9]}}}, "seeds": [1, 2]},
            r"fleet\.seeds and fleet\.random both vary `train\.seed`",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, fleet, message):
    with pytest.raises(UserError, match=message):
        members(tmp_path, **fleet)


def test_an_override_of_what_is_drawn_is_a_contradiction(tmp_path):
    random = {"samples": 2, "distributions": {"optimizer.lr": LR}}
    with pytest.raises(UserError, match=r"--set optimizer\.lr: fleet\.random varies `optimizer\.lr`"):
        members(tmp_path, ("optimizer.lr", 0.1), random=random)


def test_the_share_picks_every_value_of_a_choice():
    own = Distribution(choice=["x", "y", "z"])
    assert [own.value(share) for share in (0.0, 0.34, 0.99)] == ["x", "y", "z"]


# ---- The report of a search


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of five samples, two seeds each, and one of a single seed, trained."""
    folder = tmp_path_factory.mktemp("searched")
    backbone, texts = make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts")
    random = {
        "samples": 5,
        "distributions": {"optimizer.lr": {"log_uniform": [0.003, 0.1]}, "prompt.length": {"choice": [2, 5]}},
    }
    for name, seeds in (("two", [1, 2]), ("one", [1])):
        raw = run_json(backbone, texts, fleet={"random": random, "seeds": seeds}, train={"epochs": 4})
        (folder / f"{name}.json").write_text(json.dumps(raw))
        assert worker.main(["--config", str(folder / f"{name}.json"), "--output", str(folder / name)]) == 0
    return folder


def test_a_search_is_ranked_and_its_best_is_judged_by_seeds(searched, capsys):
    assert cli.main(["report", str(searched / "two")]) == 0
    said = capsys.readouterr().out
    (search,) = searches(read_groups([searched / "two"]))
    assert search.keys == ("optimizer.lr", "prompt.length") and len(search.groups) == 5
    means = [search.score(group) for group in search.groups]
    assert means == sorted(means, reverse=True) and f"{means[0]:.4f} on dev" in said
    assert all(len(group.finished) == 2 for group in search.groups)
    assert "the best of 5 recipes" in said and search.verdict in said
    page = (searched / "two" / "report.html").read_text()
    assert "<h2>Search: texts</h2>" in page and "optimizer.lr" in page


def test_a_single_seed_says_nothing_of_chance(searched, capsys):
    assert cli.main(["report", str(searched / "one")]) == 0
    assert "several seeds of the first few would say" in capsys.readouterr().out


def verdict(first, second):
    def group(scores, rate):
        best = [{"step": 1, "metrics": {"accuracy": score}} for score in scores]
        results = [
            {"best": b, "overrides": {"optimizer": {"lr": rate}}, "selects_by": "accuracy", "steps": 3} for b in best
        ]
        return Group("t", f"lr={rate}", "deep_prompt", "b", results=results)

    (search,) = searches([group(second, 0.2), group(first, 0.1), group([0.1, 0.1], 0.3)])
    return search.verdict


def test_the_two_best_are_told_apart_by_one_standard_error():
    """Means 0.8 and 0.7 with variances of 0.02 over two seeds each: the error of their difference is sqrt(0.02)."""
    assert verdict([0.7, 0.9], [0.6, 0.8]).endswith(
        "the two best differ by 0.1000, less than one standard error (0.1414)"
    )
    assert verdict([0.79, 0.81], [0.69, 0.71]).endswith("the second is 0.1000 behind, 7.1 standard errors")
    assert "best: optimizer.lr=0.1, accuracy 0.8000 on dev" in verdict([0.8, 0.8], [0.6, 0.8])
    assert verdict([0.8, 0.8], [0.8, 0.8]).endswith("the second best has the same score")
    assert verdict([0.8, 0.8], [0.7, 0.7]).endswith("the second is 0.1000 behind, with every seed")


def test_keys_are_drawn_apart():
    keys = {"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}
    points = RandomSection.model_validate({"samples": 500, "distributions": keys}).points()
    assert abs(np.corrcoef([[point["a"] for point in points], [point["b"] for point in points]])[0, 1]) < 0.15
