"""Run folders and prompts that do not fit what is asked end in one clear message, and nothing in them is lost."""

from __future__ import annotations

import shutil

import pytest

from launcher import run as worker
from tests.support.failures import cli_failure, failure, write
from tests.support.tiny import make_backbone, make_texts, run_json, write_jsonl


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
