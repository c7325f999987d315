"""How extended files, fleets and overrides resolve; any input gives a run or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_tuning.errors import UserError
from prompt_tuning.section import Section
from prompt_tuning.settings.identity import experiment, load_recorded_run
from prompt_tuning.settings.members import load_run, resolve
from prompt_tuning.settings.schema import RunFile

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
    plain = experiment(resolve(BASE, HERE))
    same = [
        ("train.log_steps", 3),
        ("train.checkpoint_steps", 7),
        ("train.keep_checkpoints", 9),
        ("output", "x"),
        ("name", "y"),
    ]
    assert experiment(resolve(BASE, HERE, same)) == plain
    assert experiment(resolve(BASE, HERE, [("train.seed", 3)])) != plain


def test_the_record_reads_back():
    run = resolve({**BASE, "fleet": {"seeds": [1, 2]}}, HERE)
    for member, record in zip(run.members, run.to_json()["members"], strict=True):
        assert RunFile.model_validate(record["config"]) == member.config


def test_an_override_reaches_every_member_and_beats_its_own_keys():
    fleet = {"members": [{"optimizer": {"lr": 1.0}}, {}], "grid": {"prompt.length": [3, 4]}, "seeds": [1]}
    run = resolve({**BASE, "fleet": fleet}, HERE, [("optimizer.lr", 7.0)])
    assert values(run, "optimizer.lr") == [7.0] * 4
    assert values(run, "prompt.length") == [3, 4, 3, 4]


@pytest.mark.parametrize("dotted", ["prompt.length", "prompt", "train.seed"])
def test_an_override_of_what_the_fleet_varies_is_a_contradiction(dotted):
    fleet = {"grid": {"prompt.length": [3, 4]}, "seeds": [1, 2]}
    with pytest.raises(UserError, match=f"--set {dotted}: fleet.* which it would undo"):
        resolve({**BASE, "fleet": fleet}, HERE, [(dotted, {"length": 9} if dotted == "prompt" else 9)])


def test_seeds_and_a_grid_of_seeds_are_a_contradiction():
    with pytest.raises(UserError, match=r"both vary `train\.seed`"):
        resolve({**BASE, "fleet": {"grid": {"train.seed": [3, 4]}, "seeds": [1]}}, HERE)


def test_an_override_may_make_a_fleet():
    run = resolve(BASE, HERE, [("fleet.seeds", [3, 4])])
    assert values(run, "train.seed") == [3, 4]


def test_a_task_object_is_replaced_and_not_mixed():
    own = {"kind": "classification", "text": "body"}
    run = resolve({**BASE, "task": own, "fleet": {"members": [{"task": {"kind": "classification"}}, {}]}}, HERE)
    assert values(run, "task") == [{"kind": "classification"}, own]


def test_shared_sections_come_from_the_outer_file(tmp_path):
    shared = {"name": "inner", "output": "inner", "description": "inner", "published": False, "parallel": {"tensor": 2}}
    (tmp_path / "inner.json").write_text(json.dumps({**BASE, **shared, "backbone": {"path": "inner"}, "fleet": {}}))
    outer = {**BASE, "name": "outer", "output": "there", "fleet": {"members": [{"extends": "inner.json"}]}}
    run = resolve(outer, tmp_path / "run.json")
    assert (run.name, run.output) == ("outer", Path("there"))
    assert values(run, "backbone.path") == ["tiny"]
    assert values(run, "parallel.tensor") == [1]


def test_extends_is_relative_to_the_file_that_says_it(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "one.json").write_text(json.dumps({"extends": "two.json", "prompt": {"length": 1}}))
    (tmp_path / "base" / "two.json").write_text(json.dumps({**BASE, "prompt": {"length": 2, "init": "zero"}}))
    run = resolve({"extends": "base/one.json"}, tmp_path / "run.json")
    assert values(run, "prompt.length") == [1]
    assert values(run, "prompt.init") == ["zero"]


def test_names_differ_even_where_case_does_not_count():
    members = [{"name": name} for name in ("x", "x", "x-2", "X", "x-2-2")]
    names = [member.name for member in resolve({**BASE, "fleet": {"members": members}}, HERE).members]
    assert len({name.lower() for name in names}) == len(members)
    assert names[0] == "x"


@pytest.mark.parametrize(
    "text", ["../../x", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\0b", "\n", "é", "-x", "x" * 500]
)
def test_no_name_leads_out_of_its_folder(tmp_path, text):
    """Whatever stands in a member's name, a grid value, a task's name or the file's name."""
    fleets = [
        {"members": [{"name": text}]},
        {"grid": {"prompt.init_from": [text, "other"]}},
        {"grid": {"data.path": [text, "other"]}},
    ]
    for fleet in fleets:
        run = resolve({**BASE, "fleet": fleet}, tmp_path / "run.json", output=str(tmp_path / "out"))
        for member in run.members:
            folder = run.output / "members" / member.name
            assert folder.resolve().parent == run.output / "members"
            assert len(member.name) < 200 and member.name.isprintable()
    for refused in ({"name": text}, {"task": {"kind": "classification", "name": text}}):
        with pytest.raises(UserError):
            resolve({**BASE, **refused}, HERE)
    if "\0" not in text and "/" not in text:
        run = resolve(BASE, Path(f"{text}.json"))
        assert run.output.resolve().parent == Path("runs").resolve()


def test_topology_is_no_part_of_the_experiment():
    plain = resolve(BASE, HERE)
    assert "parallel" in plain.to_json()["members"][0]["config"]
    assert "parallel" not in experiment(plain)["members"][0]["config"]
    described = resolve({**BASE, "description": "x", "published": False, "$schema": "y"}, HERE)
    assert experiment(described) == experiment(plain)
    for change in (("train.batch_size", 3), ("data.max_length", 9), ("backbone.path", "z"), ("prompt.layers", [0])):
        assert experiment(resolve(BASE, HERE, [change])) != experiment(plain)


def test_a_recorded_run_is_read_back_or_named_as_damaged(tmp_path):
    run = resolve({**BASE, "fleet": {"seeds": [1, 2]}}, HERE)
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()))
    found = load_recorded_run(tmp_path)
    assert found.members == run.members
    assert found.output == tmp_path
    for content in ("{}", "[]", '{"name": "x", "members": []}', '{"name": "x", "members": [3]}', '{"members": 3}', "{"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(UserError, match=r"run\.json"):
            load_recorded_run(tmp_path)


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


def _with(value, dotted, inner):
    first, _, rest = dotted.partition(".")
    if not rest:
        return {**value, first: inner}
    section = value.get(first)
    return {**value, first: _with(section if isinstance(section, dict) else {}, rest, inner)}


SECTIONS = {name: field.default for name, field in RunFile.model_fields.items() if isinstance(field.default, Section)}
LEAVES = [f"{name}.{key}" for name, section in SECTIONS.items() for key in type(section).model_fields]
PLACES = [*KEYS, *LEAVES, "$schema", "task.kind", "task.labels", "fleet.grid.optimizer.lr", "unknown.deep.key"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3), is_member=st.booleans())
def test_any_values_in_a_file_or_a_member_are_a_run_or_one_error(tmp_path, changes, is_member):
    raw = {"task": {"kind": "classification"}} if is_member else {**BASE}
    for place, value in changes:
        raw = _with(raw, place, value)
    if is_member:
        raw = {**BASE, "fleet": {"members": [raw, {}]}}
    (tmp_path / "run.json").write_text(json.dumps(raw))
    try:
        run = load_run(tmp_path / "run.json")
    except UserError as error:
        assert str(error)
        return
    for member in run.members:
        assert RunFile.model_validate(member.config.model_dump(mode="json", by_alias=True)) == member.config


@pytest.mark.parametrize(
    ("change", "stays"),
    [(("data.path", "x"), True), (("train.seed", 3), True), (("fleet.seeds", [1, 2]), True), (("parallel.zero", True), True),
     (("train.log_steps", 3), True), (("backbone.path", "x"), False), (("train.epochs", 1), False)],
)  # fmt: skip
def test_published_results_are_of_unchanged_settings(change, stays):
    number = {"metric": "accuracy", "value": 50.0, "by": "paper", "source": "x"}
    found = values(resolve({**BASE, "published": [number]}, HERE, [change]), "published")
    assert all((published not in (None, False)) == stays for published in found)
