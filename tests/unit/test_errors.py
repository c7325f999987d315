"""Every mistake of a user ends in one clear message and a failing exit code; nothing is lost, no traceback is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from launcher import cli
from launcher import run as worker
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run
from tests.support.tiny import make_backbone, make_texts, run_json, write_jsonl


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture
def raw(backbone, tmp_path):
    return run_json(backbone, make_texts(tmp_path / "data"), train={"max_steps": 2})


def write(tmp_path, value, name="run.json"):
    file = tmp_path / name
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def problem(tmp_path, value, *sets):
    with pytest.raises(UserError) as caught:
        load_run(write(tmp_path, value), list(sets))
    return str(caught.value)


def failure(capsys, *arguments):
    """The worker's message; fails unless it ends with an error code and without a traceback."""
    assert worker.main([str(a) for a in arguments]) != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text


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


GOOD = '{"text": "w1", "label": "class0"}\n{"text": "w2", "label": "class1"}\n'
DATA_MISTAKES = [
    ("train.jsonl", GOOD + '{"text": \n', "train.jsonl:3: not JSON"),
    ("train.jsonl", GOOD + '["w1"]\n', 'train.jsonl:3: the line holds ["w1"]'),
    ("train.jsonl", "3\n", "train.jsonl:1: the line holds 3"),
    ("train.jsonl", GOOD + "[" * 100_000, "train.jsonl:3: JSON nested too deeply"),
    (
        "train.jsonl",
        GOOD + '{"text": "w1", "label": ' + "1" * 5000 + "}",
        "train.jsonl:3: a number has too many digits",
    ),
    (
        "train.jsonl",
        '{"txt": "w1", "label": "a"}\n',
        "train.jsonl:1: no column `text`, which task 'texts' needs; did you",
    ),
    ("train.jsonl", '{"x": "w1", "label": "a"}\n', "it has: x, label"),
    ("train.jsonl", GOOD + '{"text": null, "label": "b"}\n', "train.jsonl:3: column `text` of task 'texts' is null"),
    (
        "train.jsonl",
        GOOD + '{"text": 3, "label": "class0"}\n',
        "train.jsonl:3: column `text` of task 'texts' is 3, not",
    ),
    ("train.jsonl", GOOD + '{"text": ["w"], "label": "class0"}\n', 'is ["w"], not a text'),
    (
        "train.jsonl",
        GOOD + '{"text": "w1 \\ud800", "label": "class0"}\n',
        "train.jsonl:3: character 4 of a text is half",
    ),
    ("train.jsonl", '{"text": "w1", "label": "a"}\n', "1 label(s) (a); at least two are needed"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": null}\n', "train.jsonl:3: column `label` of task 'texts' is null"),
    ("train.jsonl", GOOD + '{"text": "w1"}\n', "train.jsonl:3: no column `label`"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": -1}\n', "train.jsonl:3: no label in column `label`; to use -1"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": 0.5}\n', "train.jsonl:3: label 0.5 is neither"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": {"a": 1}}\n', 'train.jsonl:3: label {"a": 1} is neither'),
    ("train.jsonl", "", "the train split of"),
    ("dev.jsonl", "\n \n", "is empty; give it rows"),
    ("dev.jsonl", GOOD + '{"text": "w1", "label": "other"}\n', "dev.jsonl:3: label 'other' is none of class0, class1"),
    ("dev.jsonl", GOOD + '{"text": "w1"}\n', "dev.jsonl:3: no label in column `label`; every row of the dev split"),
    ("test.jsonl", GOOD + '{"text": "w1"}\n', "test.jsonl:3: no label in column `label`; every row of the test split"),
    ("dev.csv", "text,label\nw1,class0\n", "dev.jsonl and dev.csv both look like the dev split; keep one"),
    ("val.csv", "text,label\nw1,class0\n", "dev.jsonl and val.csv both look like the dev split; keep one"),
]


@pytest.mark.parametrize(("name", "content", "expected"), DATA_MISTAKES, ids=[e for _, _, e in DATA_MISTAKES])
def test_bad_data_is_named_by_file_and_line(raw, tmp_path, capsys, name, content, expected):
    (tmp_path / "data" / name).write_text(content)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("step-*"))


def test_odd_but_right_files_are_read(raw, tmp_path):
    """A byte-order mark, Windows line ends, empty lines and a line of a megabyte are no mistakes."""
    rows = [{"text": f"w{i}", "label": f"class{i % 3}"} for i in range(5)] + [
        {"text": "w1 " * 350_000, "label": "class0"}
    ]
    text = "\r\n\r\n".join(json.dumps(row) for row in rows)
    (tmp_path / "data" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert worker.main(["--config", str(write(tmp_path, raw)), "--output", str(tmp_path / "out"), "--dry-run"]) == 0


def test_files_that_are_not_text(raw, tmp_path, capsys):
    (tmp_path / "data" / "train.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert "train.jsonl:1: not UTF-8" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


TABLES = [
    ("train.csv", b"text,label\nw1,class0\nw2, and more,class1\n", "train.csv:3: not 2 fields, as the header has"),
    ("train.csv", b"text,label\nw1,class0\nw2\n", "train.csv:3: not 2 fields"),
    ("train.csv", b'text,label\nw1,class0\n"w2,class1\n', "train.csv:3: not CSV"),
    (
        "train.csv",
        b"text;label\nw1;class0\n",
        "train.csv:2: no column `text`, which task 'texts' needs; it has: text;label",
    ),
    ("train.csv", b"text,label,text\nw1,class0,w2\n", 'train.csv:1: two columns are called "text"'),
    ("train.csv", b"text,label\nw1,\nw2,class0\n", "train.csv:2: no label in column `label`"),
    ("train.csv", b"text,label\n", "the train split of"),
    ("train.csv", b"text,label\nw1,class0\ncaf\xe9,class1\n", "train.csv:3: not UTF-8"),
    ("train.parquet", b"PAR1 but nothing more", "train.parquet: not Parquet"),
    ("train.parquet", b"", "train.parquet: not Parquet"),
]


@pytest.mark.parametrize(("name", "content", "expected"), TABLES, ids=[e for _, _, e in TABLES])
def test_bad_tables_are_named(raw, tmp_path, capsys, name, content, expected):
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "data" / name).write_bytes(content)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


def test_missing_splits(raw, tmp_path, capsys):
    (tmp_path / "data" / "dev.jsonl").unlink()
    message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert (
        "the dev split of" in message
        and "is missing; give dev.jsonl, dev.json, dev.ndjson, dev.csv, dev.tsv or dev.parquet" in message
    )


def test_missing_data_folder(raw, tmp_path, capsys):
    for path, expected in ((tmp_path / "nowhere", "no such folder"), (__file__, "a file"), ("~nobody/x", "no such")):
        raw["data"]["path"] = str(path)
        message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
        assert f"data.path={path}: {expected}" in message


BACKBONES = [
    ("/nowhere/at/all", "no such folder"),
    ("package://no_such_package/model", "no package 'no_such_package'"),
    ("package://json/model", "no package 'json' is installed"),
    ("package://", "no package ''"),
    ("~no_such_user/model", "no such folder"),
    (__file__, "a file; give the folder"),
    (str(Path(__file__).parent), "holds no config.json"),
]


@pytest.mark.parametrize(("path", "expected"), BACKBONES)
def test_missing_backbones(raw, tmp_path, capsys, path, expected):
    raw["backbone"]["path"] = path
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


def test_pickled_weights_are_not_loaded(raw, tmp_path, capsys, backbone):
    copy = tmp_path / "pickled"
    copy.mkdir()
    for file in backbone.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    raw["backbone"]["path"] = str(copy)
    message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert "no model.safetensors there (pytorch_model.bin is a pickle" in message


def _edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _remove_tokenizer(folder):
    for file in folder.glob("token*"):
        file.unlink()


DAMAGES = [
    ("config is no JSON", lambda f: (f / "config.json").write_text("{"), "its config.json cannot be used"),
    ("config without type", lambda f: (f / "config.json").write_text("{}"), "its config.json cannot be used"),
    ("config of bad type", lambda f: _edit_config(f, hidden_size="x"), "expected int, got str"),
    ("config of another size", lambda f: _edit_config(f, hidden_size=16), "the weights do not fit config.json"),
    ("config of odd heads", lambda f: _edit_config(f, num_attention_heads=5), "not a multiple of the number"),
    ("truncated weights", lambda f: _halve(f / "model.safetensors"), "the weights cannot be loaded"),
    ("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "the weights cannot be loaded"),
    ("garbled weights", lambda f: (f / "model.safetensors").write_bytes(b"?" * 99), "the weights cannot be loaded"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "no model.safetensors there; save the model"),
    ("lacking a tensor", _drop_tensor, "lack 1 of the model's tensors (encoder.layer.1.output.dense.weight)"),
    ("no tokenizer", _remove_tokenizer, "no tokenizer there (tokenizer.json"),
    ("empty tokenizer", lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
    (
        "smaller model",
        lambda f: make_backbone(f, "bert", vocab_size=40),
        "the tokenizer has 68 tokens, the word embedding 40 rows",
    ),
]


@pytest.mark.parametrize(("name", "damage", "expected"), DAMAGES, ids=[name for name, _, _ in DAMAGES])
def test_a_damaged_backbone_is_named(raw, tmp_path, capsys, backbone, name, damage, expected):
    copy = shutil.copytree(backbone, tmp_path / "copy")
    damage(copy)
    raw["backbone"]["path"] = str(copy)
    message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out", "--dry-run")
    assert f"backbone.path={copy}" in message
    assert expected in message


def test_hub_ids_without_a_network(raw, tmp_path, capsys, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    good = raw["backbone"]["path"]
    raw["backbone"]["path"] = "no-such-org/no-such-model"
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "no such folder, and not to be had from the hub" in message
    assert "check the id and the network" in message
    raw["backbone"]["path"] = good
    for data, expected in (("no-such-org/no-such-data", "data.path=no-such-org"), (None, "data set 'aps/super_glue'")):
        raw["data"]["path"] = data
        raw["task"] = "boolq"
        assert expected in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    raw["task"] = {"kind": "classification"}
    assert "has no data set of its own" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_unknown_family(raw, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    raw["backbone"]["path"] = str(other)
    assert "'gpt2' is not supported; choose one of bert" in failure(
        capsys, "--config", write(tmp_path, raw), "--dry-run"
    )


def test_prompt_and_text_beyond_the_position_table(raw, tmp_path, capsys):
    raw["data"]["max_length"] = 60
    assert "set data.max_length to 59 or less" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    raw["prompt"]["length"] = 70
    assert "leave room for the text, shorten the prompt" in failure(
        capsys, "--config", write(tmp_path, raw), "--dry-run"
    )


def test_no_room_for_text(raw, tmp_path, capsys):
    raw["data"]["max_length"] = 2
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "data.max_length=2 leaves no room for text beside 2 special tokens; give 3 or more" in message


def test_a_pooler_that_the_family_lacks(raw, tmp_path, capsys):
    raw["backbone"]["path"] = str(make_backbone(tmp_path / "llama", "llama"))
    raw["head"] = {"pooling": "pooler"}
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "(llama) has no pooler; choose 'last', 'mean' or 'first'" in message


def test_layers_out_of_range(raw, tmp_path, capsys):
    raw["prompt"]["layers"] = [1, 7]
    assert "prompt.layers=[1, 7]" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_outputs_that_cannot_be_written(raw, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    config = write(tmp_path, raw)
    for output in (tmp_path / "file", tmp_path / "file" / "under", "/proc/nowhere", "a\0b", tmp_path / ("x" * 300)):
        message = failure(capsys, "--config", config, "--output", output)
        assert "output folder" in message and "choose another with --output" in message
    assert (tmp_path / "file").read_text() == "precious"


def test_a_mended_run_file_goes_into_the_same_folder(raw, tmp_path, capsys):
    """A start that failed before anything was trained is no run that other settings could spoil."""
    good = raw["data"]["path"]
    raw["data"]["path"] = str(tmp_path / "mistyped")
    failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    raw["data"]["path"] = good
    assert worker.main(["--config", str(write(tmp_path, raw)), "--output", str(tmp_path / "out")]) == 0


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(raw, tmp_path, capsys):
    config, out = write(tmp_path, raw), tmp_path / "out"
    assert worker.main(["--config", str(config), "--output", str(out)]) == 0

    def contents():
        """All but the lock, which says since when it is held."""
        return {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.name != ".lock"}

    before = contents()
    assert worker.main(["--config", str(config), "--output", str(out)]) == 0
    assert "has finished already" in capsys.readouterr().err
    message = failure(capsys, "--config", config, "--output", out, "--set", "optimizer.lr=0.5")
    assert "other settings" in message
    assert "optimizer.lr: 0.02 there, 0.5 now" in message
    assert contents() == before
    for content in ("{", "{}", "[]", '{"members": 3}'):
        (out / "run.json").write_text(content)
        assert "its run.json is damaged" in failure(capsys, "--config", config, "--output", out)
    assert worker.main(["--config", str(config), "--output", str(out), "--fresh", "--set", "optimizer.lr=0.5"]) == 0
    assert (tmp_path / "out.old-1" / "result.json").is_file()


def test_resume_without_a_checkpoint(raw, tmp_path, capsys):
    assert "has no checkpoint" in failure(
        capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "new", "--resume"
    )


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    """A finished run and its prompt folder."""
    folder = tmp_path_factory.mktemp("trained")
    config = write(folder, run_json(backbone, make_texts(folder / "data"), train={"max_steps": 2}))
    assert worker.main(["--config", str(config), "--output", str(folder / "out")]) == 0
    return folder, next((folder / "out" / "members").iterdir()) / "prompt"


def cli_failure(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text


def test_a_prompt_refuses_another_backbone(trained, tmp_path, capsys):
    folder, prompt = trained
    other = make_backbone(tmp_path / "other", "bert", seed=1)
    message = cli_failure(
        capsys, "predict", "--prompt", prompt, "--input", folder / "data/test.jsonl", "--backbone", other
    )
    assert "was trained on" in message


def test_damaged_prompts_are_refused(trained, tmp_path, capsys):
    folder, prompt = trained
    arguments = ("predict", "--input", folder / "data/test.jsonl", "--prompt")
    assert "no prompt.json" in cli_failure(capsys, *arguments, tmp_path)
    for name, content in (("prompt.json", b"{}"), ("prompt.json", b"["), ("prompt.safetensors", b"\x00" * 40)):
        copy = shutil.copytree(prompt, tmp_path / "copy", dirs_exist_ok=True)
        (copy / name).write_bytes(content)
        assert "damaged" in cli_failure(capsys, *arguments, copy)


def test_predict_with_a_missing_column_or_file(trained, tmp_path, capsys):
    _, prompt = trained
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"txt": "w1"}])
    assert "did you mean `txt`?" in cli_failure(capsys, "predict", "--prompt", prompt, "--input", rows)
    assert "no such file" in cli_failure(capsys, "predict", "--prompt", prompt, "--input", tmp_path / "x.jsonl")


def test_init_from_of_another_kind(trained, raw, tmp_path, capsys):
    _, prompt = trained
    for changes, kind in (
        ({"prompt": {"length": 3, "init_from": str(prompt)}}, "prefix of length 3"),
        ({"method": "shallow_prompt", "prompt": {"length": 5, "init_from": str(prompt)}}, "input prompt of length 5"),
        ({"method": "head", "prompt": {"init_from": str(prompt)}}, "head alone"),
    ):
        message = failure(capsys, "--config", write(tmp_path, {**raw, **changes}), "--dry-run")
        assert f"it is a prefix of length 5, but this run trains a {kind}" in message
    raw["prompt"] = {"length": 5, "init_from": str(prompt), "reparameterisation": "mlp"}
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "set prompt.reparameterisation 'none'" in message
    raw["prompt"] = {"length": 5, "init_from": str(tmp_path)}
    assert "no prompt.json" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_init_from_of_another_backbone(trained, raw, tmp_path, capsys):
    raw["backbone"]["path"] = str(make_backbone(tmp_path / "other", "bert", seed=1))
    raw["prompt"] = {"length": 5, "init_from": str(trained[1])}
    assert "was trained on" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_ranks_that_no_launcher_set(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE='two' is not a number" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
