"""What a run was trained on belongs to it: labels, examples, backbone; where they lie does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher import cli
from launcher import run as worker
from prompt_tuning.settings.identity import compare
from prompt_tuning.settings.members import resolve
from tests.support.tiny import make_backbone, make_texts, run_json


def unfinished(folder: Path) -> Path:
    """A run with a checkpoint that its results were taken from, and its run file."""
    backbone, data = make_backbone(folder / "backbone", "bert"), make_texts(folder / "data")
    raw = run_json(backbone, data, train={"max_steps": 4, "eval_steps": 2})
    (folder / "run.json").write_text(json.dumps(raw))
    assert start(folder) == 0
    (folder / "out" / "result.json").unlink()
    return folder


def start(folder: Path, *sets: str) -> int:
    options = [word for item in sets for word in ("--set", item)]
    return worker.main(["--config", str(folder / "run.json"), "--output", str(folder / "out"), *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return unfinished(tmp_path_factory.mktemp("run"))


def relabel(folder: Path, change) -> None:
    for file in (folder / "data").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in change(rows, file.stem)))


def copy(run, target):
    for name in ("data", "out"):
        shutil.copytree(run / name, target / name)
    raw = json.loads((run / "run.json").read_text())
    raw["data"]["path"] = str(target / "data")
    (target / "run.json").write_text(json.dumps(raw))
    return target


def test_a_run_whose_data_lie_elsewhere_goes_on(run, tmp_path):
    assert start(copy(run, tmp_path)) == 0


def test_a_renamed_class_ends_the_run_in_a_sentence(run, tmp_path, capsys):
    folder = copy(run, tmp_path)
    first = sorted({json.loads(line)["label"] for line in (folder / "data" / "train.jsonl").read_text().splitlines()})[
        0
    ]
    new = {first: "zzz"}
    relabel(folder, lambda rows, _: [{**row, "label": new.get(row["label"], row["label"])} for row in rows])
    assert start(folder) == 1
    message = capsys.readouterr().err
    assert "was trained on the labels" in message and "the data now have" in message and "Traceback" not in message


def test_fewer_examples_end_the_run_in_a_sentence(run, tmp_path, capsys):
    folder = copy(run, tmp_path)
    relabel(folder, lambda rows, split: rows[:-1] if split == "train" else rows)
    assert start(folder) == 1
    assert "the train split of" in capsys.readouterr().err


def test_another_text_ends_the_run_in_a_sentence(run, tmp_path, capsys):
    folder = copy(run, tmp_path)
    relabel(folder, lambda rows, split: [{**rows[0], "text": "w1 w1"}, *rows[1:]] if split == "dev" else rows)
    assert start(folder) == 1
    assert "the dev split of" in capsys.readouterr().err


def test_export_needs_the_checkpoint_alone(run, tmp_path, capsys):
    """The same bytes, with neither data nor backbone in reach."""
    shutil.copytree(run / "out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    for member in record["members"]:
        member["config"]["backbone"]["path"] = member["config"]["data"]["path"] = "/nowhere"
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert cli.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "exported")]) == 0
    (found,) = (tmp_path / "exported").iterdir()
    for name in ("prompt.json", "prompt.safetensors"):
        whole = next((run / "out" / "members").iterdir()) / "prompt" / name
        assert (found / name).read_bytes() == whole.read_bytes()


def experiment(**more):
    from prompt_tuning.settings import identity

    raw = {"task": "boolq", "backbone": {"path": "x"}, **more}
    return identity.experiment(resolve(raw, Path("run.json")))


def test_a_key_that_came_later_orphans_no_run():
    old = experiment()
    del old["members"][0]["config"]["optimizer"]["gamma"]
    assert compare(old, experiment(), may_move=False).difference is None


def test_a_key_of_a_newer_version_is_named():
    new = experiment()
    new["members"][0]["config"]["optimizer"]["gamma2"] = 1
    assert "optimizer.gamma2: unknown to this version" in compare(new, experiment(), may_move=False).difference


def test_paths_count_only_where_nothing_else_tells():
    other = experiment(data={"path": "y"})
    assert compare(other, experiment(), may_move=True).difference is None
    assert "data.path" in compare(other, experiment(), may_move=False).difference


def test_a_run_file_in_its_own_run_folder_is_not_overwritten(run, tmp_path, capsys):
    folder = copy(run, tmp_path)
    shutil.rmtree(folder / "out")
    text = (folder / "run.json").read_text()
    assert worker.main(["--config", str(folder / "run.json"), "--output", str(folder)]) == 1
    assert "is no record of a run" in capsys.readouterr().err
    assert (folder / "run.json").read_text() == text
