"""How extended files, fleets and overrides resolve; any input gives a run or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_tuning.config import RunFile
from prompt_tuning.errors import UserError
from prompt_tuning.runfile import load_run, resolve

BASE = {"task": "copa", "backbone": {"path": "tiny"}}
HERE = Path("run.json")


def values(run, dotted):
    found = []
    for member in run.members:
        value = member.config
        for part in dotted.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


def test_strength_of_sources(tmp_path):
    """Extended file < file < member's extended file < grid and seed and own keys < --set."""
    (tmp_path / "base.json").write_text(
        json.dumps({"optimizer": {"lr": 1.0, "eps": 1.0, "beta1": 0.1}, "prompt": {"length": 1}})
    )
    (tmp_path / "other.json").write_text(
        json.dumps({**BASE, "task": "boolq", "optimizer": {"lr": 3.0, "eps": 3.0}, "name": "x"})
    )
    raw = {
        **BASE,
        "extends": "base.json",
        "optimizer": {"lr": 2.0},
        "fleet": {"members": [{}, {"extends": "other.json", "optimizer": {"eps": 4.0}}], "seeds": [5, 6]},
    }
    run = resolve(raw, tmp_path / "run.json", [("prompt.length", 9), ("optimizer.beta2", 0.5)])
    assert values(run, "task") == ["copa", "copa", "boolq", "boolq"]
    assert values(run, "optimizer.lr") == [2.0, 2.0, 3.0, 3.0]
    assert values(run, "optimizer.eps") == [1.0, 1.0, 4.0, 4.0]
    assert values(run, "optimizer.beta1") == [0.1] * 4
    assert values(run, "optimizer.beta2") == [0.5] * 4
    assert values(run, "prompt.length") == [9] * 4
    assert values(run, "train.seed") == [5, 6, 5, 6]
    assert run.name == "run"
    assert len({member.name for member in run.members}) == 4


def test_members_times_grid_times_seeds():
    fleet = {
        "members": [{"method": "head"}, {}],
        "grid": {"optimizer.lr": [0.1, 0.2], "prompt.length": [3, 4]},
        "seeds": [1, 2],
    }
    run = resolve({**BASE, "fleet": fleet}, HERE)
    combinations = {
        (m.config.method, m.config.optimizer.lr, m.config.prompt.length, m.config.train.seed) for m in run.members
    }
    assert len(combinations) == len(run.members) == 16
    assert len({member.name for member in run.members}) == 16
    assert run.members[0].name == "copa-head-lr=0.1-length=3-seed1"


def test_a_fleet_keeps_the_outer_backbone_and_may_bring_the_task(tmp_path):
    (tmp_path / "copa.json").write_text(json.dumps({"task": "copa", "backbone": {"path": "large"}}))
    raw = {"backbone": {"path": "tiny"}, "fleet": {"members": [{"extends": "copa.json"}]}}
    run = resolve(raw, tmp_path / "run.json")
    assert values(run, "backbone.path") == ["tiny"]


def test_an_ordinary_run_is_a_fleet_of_one():
    run = resolve(BASE, HERE)
    assert [member.name for member in run.members] == ["copa-deep_prompt-seed11"]
    assert str(run.output) == "runs/run"


def test_bookkeeping_is_no_part_of_the_experiment():
    plain = resolve(BASE, HERE).experiment()
    same = [
        ("train.log_steps", 3),
        ("train.checkpoint_steps", 7),
        ("train.keep_checkpoints", 9),
        ("output", "x"),
        ("name", "y"),
    ]
    assert resolve(BASE, HERE, same).experiment() == plain
    assert resolve(BASE, HERE, [("train.seed", 3)]).experiment() != plain


def test_the_record_reads_back():
    run = resolve({**BASE, "fleet": {"seeds": [1, 2]}}, HERE)
    for member, record in zip(run.members, run.to_json()["members"], strict=True):
        assert RunFile.model_validate(record["config"]) == member.config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *RunFile.model_fields,
    "extends",
    "optimizer.lr",
    "train.seed",
    "prompt.layers",
    "fleet.members",
    "fleet.grid",
    "fleet.seeds",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_value_anywhere_is_a_run_or_one_error(tmp_path, key, value):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(BASE))
    try:
        run = load_run(file, [f"{key}={json.dumps(value)}"])
    except UserError as error:
        assert str(error)
    else:
        assert run.members


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_run_or_one_error(tmp_path, data):
    file = tmp_path / "run.json"
    file.write_bytes(data)
    with pytest.raises(UserError):
        load_run(file)
