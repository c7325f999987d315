"""Every mistake in a run file ends in one clear message, which names all of them at once."""

from __future__ import annotations

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run
from tests.support.failures import problem, write

MISTAKES = [
    ({"optimiser": {"lr": 1e-3}}, "optimiser: unknown key", "did you mean `optimizer`?"),
    ({"optimizer": {"learning_rate": 1e-3}}, "optimizer.learning_rate: unknown key (value 0.001)", "known keys: lr"),
    ({"prompt": {"lenght": 3}}, "prompt.lenght: unknown key (value 3)", "did you mean `length`?"),
    ({"prompt": {"length": "5"}}, 'prompt.length: "5"', "without quotes"),
    ({"prompt": {"length": 0}}, "prompt.length: 0", "greater than 0"),
    ({"train": {"batch_size": True}}, "train.batch_size: true", "whole number"),
    ({"train": {"backbone_dropout": 1.5}}, "train.backbone_dropout", "a number from 0"),
    ({"task": "bolq"}, 'task="bolq" is unknown', "did you mean 'boolq'?"),
    ({"task": {"kind": "classification", "texts": "t"}}, "task.texts", "did you mean `text`?"),
    ({"task": "classification"}, "describes your own data", '{"kind": "classification"'),
    ({"data": {"template": "nope"}}, "data.template='nope'", "choose plain"),
    ({"parallel": {"tensor": 0}}, "parallel.tensor: 0", "greater than 0"),
    ({"method": "full", "parallel": {"tensor": 2}}, "parallel: method 'full' trains", "use tensor 1 and zero false"),
    ({"method": "full", "parallel": {"zero": True}}, "parallel: method 'full'", "use tensor 1 and zero false"),
    ({"deepspeed": {"offload_param": {"device": "cpu"}}}, "ZeRO-3, which is off", "set parallel.zero to true"),
    (
        {"parallel": {"zero": True}, "deepspeed": {"offload_param": {"device": "nvme"}}},
        "nvme_path is missing",
        "name a folder",
    ),
    ({"deepspeed": {"zero_hpz_partition_sizes": 2}}, "unknown key", "did you mean `zero_hpz_partition_size`?"),
    ({"method": "deep"}, 'method: "deep"', "deep_prompt"),
    (
        {"method": "shallow_prompt", "prompt": {"positions": "from_zero"}},
        "does not fit method 'shallow_prompt'",
        "after_prefix",
    ),
    ({"fleet": {"seeds": []}}, "`seeds` is empty", "leave it out"),
    ({"fleet": {"members": [{"backbone": {"path": "x"}}]}}, "`backbone` is the same for all members", "outer file"),
    ({"fleet": {"grid": {"optimizer.lrr": [1.0]}}}, "optimizer.lrr: unknown key", "did you mean `lr`?"),
    ({"fleet": {"members": [{"method": "full"}, {}]}}, "fleet of exactly one", "its own file"),
    ({"fleet": {"members": [{"train": {"log_steps": 3}}, {}]}}, "train.log_steps", "all members of a fleet share it"),
    ({"fleet": {"members": ["boolq.json"]}}, "fleet.members[0]", "not an object"),
    ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: Infinity", "not a finite number"),
    ({"optimizer": {"lr": "1e-3"}}, 'optimizer.lr: "1e-3"', "write 0.001 without quotes"),
    ({"train": {"activation_checkpointing": "True"}}, '"True" is neither true nor false', "write true without quotes"),
    ({"train": {"seed": 2**63}}, "train.seed: 9223372036854775808 is out of range", "less than 9223372036854775808"),
    ({"train": {"backbone_dropout": "no"}}, 'backbone_dropout: "no" is no rate', "true, false or a number"),
    ({"train": []}, "train: [] is not an object", ""),
    ({"data": None}, "data: null is not an object", ""),
    ({"data": {"path": ""}}, 'data.path: "" is empty', "leave the key out"),
    ({"prompt": {"layers": []}}, "prompt.layers: [] is out of range", "1"),
    ({"prompt": {"layers": [0, "1"]}}, 'prompt.layers[1]: "1"', "write 1 without quotes"),
    ({"head": {"pooling": "firs"}}, 'head.pooling: "firs" is unknown', "did you mean 'first'?"),
    ({"extend": "base.json"}, "extend: unknown key", "did you mean `extends`?"),
    ({"name": "../x"}, 'name: "../x" is no name', "only letters"),
    ({"output": ""}, 'output: "" is empty', "leave the key out"),
    ({"published": True}, "published: true is neither false nor a list", ""),
    (
        {"published": [{"metric": "f1", "value": "x", "by": "paper", "source": ""}]},
        'published[0].value: "x"',
        "not a number",
    ),
    ({"published": [{"metrics": "f1"}]}, "published[0].metrics: unknown key", "did you mean `metric`?"),
    ({"task": 3}, "task: 3 is no task", "give a name, or an object"),
    ({"task": {}}, "task.kind=null is unknown", "known: choice, classification"),
    ({"task": {"kind": "boolq"}}, "task.kind='boolq' is a fixed task", 'write "task": "boolq"'),
    ({"task": {"kind": "classification", "labels": ["a", "a"]}}, "task.labels: 'a' stands twice", "a class of its own"),
    ({"task": {"kind": "classification", "label": 3}}, "task.label: 3 is not a text", ""),
    ({"method": "full", "backbone": {"path": "x", "dtype": "bfloat16"}}, "not 'bfloat16'", "'float32' or 'float64'"),
    ({"method": "full", "prompt": {"init_from": "x"}}, "prompt.init_from does not fit method 'full'", "no prompt"),
    ({"prompt": {"reparameterisation": "mlp", "init": "zero"}}, "prompt.init='zero'", "reparameterisation 'none'"),
    ({"fleet": 3}, "fleet: 3 is not an object", ""),
    ({"fleet": {"sedes": [1]}}, "fleet.sedes: unknown key", "did you mean `seeds`?"),
    ({"fleet": {"seeds": ["a"]}}, 'fleet.seeds[0]: "a" is not a whole number', ""),
    ({"fleet": {"seeds": [3, 4, 3]}}, "`seeds` has 3 twice", "count as several"),
    ({"fleet": {"seeds": [-1]}}, "train.seed: -1 is out of range", "at least 0"),
    ({"fleet": {"members": []}}, "`members` is empty", "leave it out"),
    ({"fleet": {"grid": {}}}, "`grid` is empty", "leave it out"),
    ({"fleet": {"grid": {"optimizer.lr": []}}}, "`grid.optimizer.lr` is an empty list", "at least one value"),
    ({"fleet": {"grid": {"optimizer.lr": 0.1}}}, "fleet.grid.optimizer.lr: 0.1 is not a list", ""),
    ({"fleet": {"grid": {"backbone.path": ["a"]}}}, "fleet.grid: `backbone.path` is the same for all", "outer file"),
    ({"fleet": {"members": [{"name": 3}]}}, "fleet.members[0].name: 3 is not a text", ""),
    ({"fleet": {"members": [{}, {"task": "bolq"}]}}, 'fleet.members[1]: task="bolq"', "did you mean 'boolq'?"),
    ({"fleet": {"members": [{"train": 3}], "seeds": [1]}}, "fleet.members[0]: `train` is 3, not an object", ""),
    ({"fleet": {"members": [{"extends": "x.json"}]}}, "fleet.members[0]: `extends`", "no such file"),
]


@pytest.mark.parametrize(("change", "what", "remedy"), MISTAKES, ids=[what for _, what, _ in MISTAKES])
def test_a_mistake_is_named_with_value_and_remedy(raw, tmp_path, change, what, remedy):
    message = problem(tmp_path, {**raw, **change})
    assert what in message
    assert remedy in message


def test_all_problems_of_a_file_are_reported_at_once(raw, tmp_path):
    """Also those that concern several keys or several members."""
    wrong = {**raw, "optimiser": {}, "prompt": {"length": -1}, "method": "x", "data": {"template": "y"}}
    message = problem(tmp_path, {**wrong, "parallel": {"tensor": 0}})
    assert "5 problems" in message
    for part in ("optimiser", "prompt.length: -1", 'method: "x"', "data.template='y'", "tensor: 0"):
        assert message.count(part) == 1
    fleet = {"members": [{"promt": {}}, {"prompt": {"length": 0}}, {"backbone": {}}, {"extends": "x.json"}]}
    message = problem(tmp_path, {**raw, "fleet": fleet})
    assert "4 problems" in message
    assert all(f"fleet.members[{i}]: " in message for i in range(4))


def test_a_bad_fleet_hides_no_other_problem(raw, tmp_path):
    message = problem(tmp_path, {"fleet": {"seeds": []}, "optimiser": {}})
    assert "`seeds` is empty" in message
    assert "optimiser: unknown key" in message
    assert "task: missing" not in message, "members may bring it"


def test_one_mistake_is_one_problem(raw, tmp_path):
    """Also where a value may be of several types, each of which pydantic complains about."""
    for change in (
        {"published": [{"metric": "f1", "value": "x", "by": "paper", "source": ""}]},
        {"train": {"backbone_dropout": "no"}},
        {"task": 3},
        {"fleet": 3},
    ):
        assert "problems" not in problem(tmp_path, {**raw, **change})


def test_a_grid_meets_an_unknown_key_once(raw, tmp_path):
    assert "problems" not in problem(tmp_path, {**raw, "fleet": {"grid": {"optimizer.lrr": [1.0, 2.0, 3.0]}}})


def test_missing_sections_are_named(tmp_path):
    assert "task: missing; it has no default" in problem(tmp_path, {"backbone": {"path": "x"}})
    assert "backbone.path: missing" in problem(tmp_path, {"task": "boolq", "backbone": {}})


def test_files_that_are_no_run_files(tmp_path):
    assert "no such file; did you mean" in _missing(tmp_path)
    assert ":1:10: not JSON" in problem(tmp_path, '{"task": }')
    assert "the file holds []; it must be a JSON object" in problem(tmp_path, "[]")
    assert "missing; it has no default" in problem(tmp_path, "{}")
    assert "key `task` stands twice" in problem(tmp_path, '{"task": "boolq", "task": "copa"}')
    assert "nested too deeply" in problem(tmp_path, "[" * 100_000)
    assert "nested too deeply" in problem(tmp_path, '{"fleet":' * 700 + "1" + "}" * 700)
    assert "too many digits" in problem(tmp_path, f'{{"train": {{"seed": {"1" * 5000}}}}}')
    (tmp_path / "run.json").write_bytes(b'{"name": "\xff"}')
    for path, expected in ((tmp_path / "run.json", "not UTF-8"), (tmp_path, "Is a directory"), ("a\0b", "no path")):
        with pytest.raises(UserError, match=expected):
            load_run(path)


def _missing(tmp_path):
    write(tmp_path, {}, "boolq.json")
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "bolq.json")
    return str(caught.value)


def test_extends_in_a_circle(tmp_path, raw):
    write(tmp_path, {"extends": "run.json"}, "base.json")
    assert "runs in a circle" in problem(tmp_path, {**raw, "extends": "base.json"})
    assert "no such file" in problem(tmp_path, {**raw, "extends": "other.json"})
    assert "`extends` is 3" in problem(tmp_path, {**raw, "extends": 3})


def test_a_bad_override_is_named(tmp_path, raw):
    for item in ("optimizer.lr", "=3", "a..b=1", ".=1", "prompt.=1"):
        assert "write section.key=value" in problem(tmp_path, raw, item)
    assert "--set optimizer.lr.x: `optimizer.lr` is 0.02, not an object" in problem(tmp_path, raw, "optimizer.lr.x=1")
    assert 'prompt.length: "long" is not a whole number' in problem(tmp_path, raw, "prompt.length=long")
    assert "optimzer: unknown key" in problem(tmp_path, raw, "optimzer.lr=1")
    assert '`task` is "copa", not an object' in problem(tmp_path, {**raw, "task": "copa"}, "task.text=body")
    assert "set its keys one by one" in problem(tmp_path, raw, "extends=base.json")
    assert "too many digits" in problem(tmp_path, raw, "train.seed=" + "1" * 5000)
    assert "nested too deeply" in problem(tmp_path, raw, "name=" + "[" * 100_000)


@pytest.mark.parametrize("hostile", ["../../escape", "/absolute", "a/b", ".", "..", ""])
def test_names_never_leave_the_run_folder(tmp_path, raw, hostile):
    value = {**raw, "fleet": {"members": [{"name": hostile}]}}
    try:
        run = load_run(write(tmp_path, value), output=str(tmp_path / "out"))
    except UserError:
        return
    for member in run.members:
        folder = (run.output / "members" / member.name).resolve()
        assert folder.parent == (run.output / "members").resolve()
