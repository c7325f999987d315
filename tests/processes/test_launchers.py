"""Two ranks under real launchers give what one process gives, and say clearly what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal

import psutil
import pytest
from safetensors.torch import load_file

from tests.support.processes import (
    ROOT,
    WORKER,
    deepspeed,
    finish,
    member_files,
    python,
    start,
    torchrun,
    wait_for,
    write_run,
)
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run file, and the folder of its run in one process."""
    folder = tmp_path_factory.mktemp("launchers")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts", {"train": 17, "dev": 10, "test": 5}),
        train={"max_steps": 20, "log_steps": 1, "checkpoint_steps": 3},
        fleet={"members": [{"name": "deep", "prompt": {"dropout": 0.2}}, {"name": "head", "method": "head"}]},
    )
    config = write_run(folder / "run.json", raw)
    code, output = finish(*python("--config", config, "--output", folder / "one"))
    assert code == 0, output
    return config, folder / "one"


def assert_equal_results(found, expected):
    for member in ("deep", "head"):
        folders = [run / "members" / member for run in (found, expected)]
        ours, theirs = (load_file(folder / "prompt" / "prompt.safetensors") for folder in folders)
        assert set(ours) == set(theirs)
        assert all((ours[name] - tensor).abs().max() < 1e-8 for name, tensor in theirs.items())
        lines, others = (
            [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders
        )
        assert [line["step"] for line in lines] == [line["step"] for line in others]
        assert all(abs(a["loss"] - b["loss"]) < 1e-8 for a, b in zip(lines, others, strict=True))
        results = [json.loads((folder / "result.json").read_text()) for folder in folders]
        assert results[0]["best"] == results[1]["best"]
        assert results[0]["test"] == results[1]["test"]


def assert_one_clear_message(output, message):
    """The message once, from all ranks together, and no traceback through a file of ours."""
    assert output.count(message) == 1, output
    assert f'File "{ROOT / "launcher"}' not in output, output
    assert f'File "{ROOT / "prompt_tuning"}' not in output, output


@pytest.mark.parametrize("launch", [torchrun, deepspeed])
def test_two_ranks_equal_one_process(job, tmp_path, launch):
    config, one = job
    code, output = finish(*launch("--config", config, "--output", tmp_path / "two"))
    assert code == 0, output
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    assert output.count("trained parameters, ") == 2, "only the first rank tells what is no warning"
    assert_equal_results(tmp_path / "two", one)


def test_a_rank_that_dies_takes_the_job_down_and_one_process_ends_it(job, tmp_path):
    config, one = job
    output_folder = tmp_path / "two"
    process = start(*torchrun("--config", config, "--output", output_folder))
    checkpoints = output_folder / "checkpoints"
    assert wait_for(process, lambda: (checkpoints / "step-000006").exists())
    ranks = [child for child in psutil.Process(process.pid).children() if WORKER in " ".join(child.cmdline())]
    victim = next(rank for rank in ranks if rank.environ()["RANK"] == "1")
    victim.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f'File "{ROOT / "launcher"}' not in output, output
    assert not (output_folder / "result.json").exists()
    code, output = finish(*python("--config", config, "--output", output_folder, "--resume"))
    assert code == 0, output
    assert_equal_results(output_folder, one)


@pytest.mark.parametrize("launch", [torchrun, deepspeed])
def test_a_mistake_in_the_run_file_is_told_once(job, tmp_path, launch):
    config, _ = job
    command = launch("--config", config, "--output", tmp_path / "bad", "--set", "optimizer.learning_rate=1")
    code, output = finish(*command)
    assert code != 0
    assert_one_clear_message(output, f"error: {config}: ")
    assert "optimizer.learning_rate: unknown key" in output
    assert not (tmp_path / "bad").exists()


def test_what_the_first_rank_alone_finds_is_told_once(job, tmp_path):
    """The others wait for its verdict and must end without a word of their own."""
    config, one = job
    shutil.copytree(one, tmp_path / "one")
    code, output = finish(*torchrun("--config", config, "--output", tmp_path / "one", "--set", "optimizer.lr=0.5"))
    assert code != 0
    difference = "members[0].config.optimizer.lr: 0.02 there, 0.5 now"
    assert_one_clear_message(output, f"holds a run with other settings ({difference})")


def test_a_finished_run_is_left_alone_and_fresh_keeps_it(job, tmp_path):
    config, one = job
    folder = tmp_path / "run"
    shutil.copytree(one, folder)

    def contents():
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = contents()
    code, output = finish(*python("--config", config, "--output", folder))
    assert code == 0
    assert_one_clear_message(output, f"{folder} has finished already; use --fresh to run it anew")
    assert contents() == before

    code, output = finish(*python("--config", config, "--output", folder, "--fresh"))
    assert code == 0, output
    assert member_files(folder) == member_files(one), "the same run again"
    assert member_files(tmp_path / "run.old-1") == member_files(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1"]


@pytest.mark.parametrize("left", ["nothing", "a damaged checkpoint"])
def test_resume_needs_a_checkpoint(job, tmp_path, left):
    config, one = job
    folder = tmp_path / "run"
    if left == "a damaged checkpoint":
        shutil.copytree(one, folder)
        (folder / "result.json").unlink()
        for file in folder.glob("checkpoints/*/member-*.safetensors"):
            os.truncate(file, 50)
    code, output = finish(*python("--config", config, "--output", folder, "--resume"))
    assert code == 1
    assert_one_clear_message(output, "--resume: ")
    assert "has no checkpoint" in output


@pytest.mark.parametrize("launch", [torchrun, deepspeed])
def test_tensor_and_zero_ranks_equal_one_process(job, tmp_path, launch):
    config, one = job
    options = ("--set", "parallel.tensor=2", "--set", "parallel.zero=true")
    code, output = finish(*launch("--config", config, "--output", tmp_path / "four", *options, ranks=4))
    assert code == 0, output
    assert output.count("bytes per rank (tensor 2 x data 2, ZeRO-3): backbone") == 1
    assert_equal_results(tmp_path / "four", one)


def test_zero_on_one_process_is_allowed(job, tmp_path):
    """There is nothing to split, but there may be a CPU or a disk to keep the backbone on."""
    config, one = job
    offload = ("--set", "parallel.zero=true", "--set", 'deepspeed.offload_param={"device": "cpu"}')
    code, output = finish(*python("--config", config, "--output", tmp_path / "one", *offload))
    assert code == 0, output
    assert_equal_results(tmp_path / "one", one)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (3, "parallel.tensor=3 needs a multiple of 3 ranks, but the job has 2; start 3"),
        (2, "parallel.tensor=2 does not divide the 3 heads of"),
    ],
)
def test_a_bad_topology_is_one_sentence(tmp_path, tensor, message):
    backbone = make_backbone(tmp_path / "backbone", "bert", num_attention_heads=3, hidden_size=48)
    raw = run_json(backbone, make_texts(tmp_path / "texts"), parallel={"tensor": tensor})
    config = write_run(tmp_path / "run.json", raw)
    code, output = finish(*torchrun("--config", config, "--output", tmp_path / "out"))
    assert code != 0
    assert_one_clear_message(output, message)
