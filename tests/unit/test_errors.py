"""Every mistake of a user ends in one clear message and a failing exit code; nothing is lost, no traceback is shown."""

from __future__ import annotations

import json

import pytest

from launcher import cli
from launcher import run as worker
from prompt_tuning.errors import UserError
from prompt_tuning.runfile import load_run
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
    ({"parallel": {"tensor": 2}}, "tensor=2", "use 1"),
    ({"parallel": {"zero": True}}, "zero=true", "use false"),
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
]


@pytest.mark.parametrize(("change", "what", "remedy"), MISTAKES, ids=[what for _, what, _ in MISTAKES])
def test_a_mistake_is_named_with_value_and_remedy(raw, tmp_path, change, what, remedy):
    message = problem(tmp_path, {**raw, **change})
    assert what in message
    assert remedy in message


def test_all_problems_of_a_file_are_reported_at_once(raw, tmp_path):
    message = problem(tmp_path, {**raw, "optimiser": {}, "prompt": {"length": -1}, "method": "x"})
    assert "3 problems" in message
    for part in ("optimiser", "prompt.length: -1", 'method: "x"'):
        assert part in message


def test_files_that_are_no_run_files(tmp_path):
    assert "no such file; did you mean" in _missing(tmp_path)
    assert ":1:10: not JSON" in problem(tmp_path, '{"task": }')
    assert "the file holds []; it must be a JSON object" in problem(tmp_path, "[]")
    assert "missing; it has no default" in problem(tmp_path, "{}")


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


def test_set_without_a_value(tmp_path, raw):
    assert "write section.key=value" in problem(tmp_path, raw, "optimizer.lr")
    assert "`optimizer.lr` is 0.02, not an object" in problem(tmp_path, raw, "optimizer.lr.x=1")


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


DATA_MISTAKES = [
    ("train.jsonl", '{"text": "w1", "label": "a"}\n{"text": \n', "train.jsonl:2: not JSON"),
    ("train.jsonl", '["w1"]\n', "train.jsonl:1: the line holds [\"w1\"]"),
    ("train.jsonl", '{"txt": "w1", "label": "a"}\n', "train.jsonl:1: no column `text`"),
    ("train.jsonl", '{"text": "w1", "label": "a"}\n{"text": null, "label": "b"}\n', "train.jsonl:2: column `text`"),
    ("train.jsonl", '{"text": "w1", "label": "a"}\n', "at least two are needed"),
    ("train.jsonl", '{"text": "w1", "label": "a"}\n{"text": "w1", "label": null}\n', "train.jsonl:2: column `label`"),
    ("train.jsonl", "", "train split"),
    ("dev.jsonl", '{"text": "w1", "label": "other"}\n', "dev.jsonl:1: label 'other' is none of class0, class1, class2"),
    ("dev.csv", "text,label\nw1,class0\n", "both look like the dev split"),
]


@pytest.mark.parametrize(("name", "content", "expected"), DATA_MISTAKES, ids=[e for _, _, e in DATA_MISTAKES])
def test_bad_data_is_named_by_file_and_line(raw, tmp_path, capsys, name, content, expected):
    (tmp_path / "data" / name).write_text(content)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


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
    assert "not UTF-8" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


def test_ragged_csv(raw, tmp_path, capsys):
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "data" / "train.csv").write_text("text,label\nw1,class0\nw2, and more,class1\n")
    assert "train.csv:3: not 2 fields" in failure(
        capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out"
    )


def test_missing_data_folder(raw, tmp_path, capsys):
    raw["data"]["path"] = str(tmp_path / "nowhere")
    assert "no such folder" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


BACKBONES = [
    ("/nowhere/at/all", "no such folder"),
    ("package://no_such_package/model", "no package 'no_such_package'"),
    ("package://json/model", "no config.json"),
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
    assert "cannot be loaded" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


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


def test_layers_out_of_range(raw, tmp_path, capsys):
    raw["prompt"]["layers"] = [1, 7]
    assert "prompt.layers=[1, 7]" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_output_that_is_a_file(raw, tmp_path, capsys):
    (tmp_path / "out").write_text("precious")
    assert "out" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(raw, tmp_path, capsys):
    config, out = write(tmp_path, raw), tmp_path / "out"
    assert worker.main(["--config", str(config), "--output", str(out)]) == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert worker.main(["--config", str(config), "--output", str(out)]) == 0
    assert "has finished already" in capsys.readouterr().err
    message = failure(capsys, "--config", config, "--output", out, "--set", "optimizer.lr=0.5")
    assert "other settings" in message
    assert "optimizer.lr: 0.02 there, 0.5 now" in message
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
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
    for name, content in (("prompt.json", b"{}"), ("prompt.safetensors", b"\x00" * 40)):
        copy = tmp_path / name.replace(".", "_")
        copy.mkdir()
        for file in prompt.iterdir():
            (copy / file.name).write_bytes(content if file.name == name else file.read_bytes())
        assert "damaged" in cli_failure(capsys, *arguments, copy)


def test_predict_with_a_missing_column_or_file(trained, tmp_path, capsys):
    _, prompt = trained
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"txt": "w1"}])
    assert "did you mean `txt`?" in cli_failure(capsys, "predict", "--prompt", prompt, "--input", rows)
    assert "no such file" in cli_failure(capsys, "predict", "--prompt", prompt, "--input", tmp_path / "x.jsonl")


def test_init_from_of_another_length(trained, raw, tmp_path, capsys):
    raw["prompt"] = {"length": 3, "init_from": str(trained[1])}
    assert "set prompt.length and method to match" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
