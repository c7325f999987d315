"""Every shipped run file is valid, has the published hyper-parameters, and trains two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli
from launcher import run as worker
from prompt_tuning.settings.members import load_run
from prompt_tuning.tasks.find import find_task
from tests.contracts.test_tasks import FIXED
from tests.support.documents import make_reader
from tests.support.generation import make_passages, make_writer
from tests.support.rows import write_rows
from tests.support.tiny import make_backbone, make_texts

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.json"))
NAMES = [path.stem for path in CONFIGS]

# The published run scripts: task, backbone, batch size, learning rate, dropout, prompt length, epochs, seed, template,
# reparameterisation width, schedule; and of the released code's README, per cent.
ROBERTA, CASED, UNCASED = "FacebookAI/roberta-large", "google-bert/bert-large-cased", "google-bert/bert-large-uncased"
PUBLISHED = {
    "boolq_bert": ("boolq", CASED, 32, 5e-3, 0.1, 40, 100, 11, "pair", None, "linear", [74.3]),
    "boolq": ("boolq", ROBERTA, 32, 7e-3, 0.1, 8, 100, 11, "pair", None, "linear", [84.0]),
    "conll03": ("conll03", ROBERTA, 16, 3e-2, 0.1, 11, 30, 11, "words", None, "exponential", [91.8]),
    "conll04_bert": ("conll04", UNCASED, 32, 2e-2, 0.2, 128, 40, 11, "words", None, "exponential", [84.5]),
    "conll04": ("conll04", ROBERTA, 32, 6e-2, 0.1, 144, 80, 11, "words", None, "exponential", [88.4]),
    "conll05": ("conll05", ROBERTA, 16, 6e-3, 0.1, 224, 15, 11, "predicate", None, "exponential", [89.4, 83.9]),
    "conll12_roberta_p128": ("conll12", ROBERTA, 16, 5e-3, 0.1, 128, 45, 11, "predicate", None, "exponential", [85.3]),
    "conll12": ("conll12", ROBERTA, 32, 5e-3, 0.1, 64, 45, 11, "predicate", None, "exponential", [84.7]),
    "copa_bert": ("copa", CASED, 16, 1e-2, 0.1, 16, 80, 44, "connective", None, "linear", [77.0]),
    "copa": ("copa", ROBERTA, 16, 9e-3, 0.1, 8, 120, 11, "connective", None, "linear", [92.0]),
    "ontonotes_bert": ("ontonotes", UNCASED, 16, 1e-2, 0.1, 16, 30, 11, "words", None, "exponential", [86.4]),
    "ontonotes": ("ontonotes", ROBERTA, 16, 7e-3, 0.1, 48, 60, 14, "words", None, "exponential", [90.1]),
    "rte_bert": ("rte", CASED, 32, 1e-2, 0.1, 20, 60, 11, "pair", None, "linear", [80.1]),
    "rte": ("rte", ROBERTA, 32, 5e-3, 0.1, 128, 100, 11, "pair", None, "linear", [86.6]),
    "squad": ("squad", ROBERTA, 8, 5e-3, 0.2, 16, 30, 11, "pair", None, "exponential", [94.2, 88.1]),
    "squad2": ("squad2", ROBERTA, 8, 5e-3, 0.2, 8, 10, 11, "pair", None, "exponential", [84.7, 81.3]),
    "wic_bert": ("wic", CASED, 16, 1e-4, 0.1, 20, 80, 44, "word_pair", 512, "linear", [75.1]),
    "wic": ("wic", ROBERTA, 32, 1e-2, 0.1, 8, 50, 11, "question", None, "linear", [73.7]),
    "wsc_bert": ("wsc", CASED, 16, 5e-3, 0.1, 20, 80, 44, "prefixed", None, "linear", [68.3]),
    "wsc": ("wsc", ROBERTA, 16, 1e-2, 0.1, 8, 10, 44, "prefixed", None, "linear", [64.4]),
}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_is_valid_and_says_whether_it_is_published(path):
    run = load_run(path)
    assert run.name == path.stem
    assert (run.shared.published is False) != (path.stem in PUBLISHED)
    for number in run.shared.published or []:
        assert number.metric in find_task(run.shared.task).metrics and 1 < number.value <= 100


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_hyper_parameters(name):
    config = load_run(ROOT / "configs" / f"{name}.json").shared
    task = find_task(config.task)
    width = config.prompt.projection_width if config.prompt.reparameterisation == "mlp" else None
    rate = config.prompt.dropout
    found = (
        config.task,
        config.backbone.path,
        config.train.batch_size,
        config.optimizer.lr,
        rate,
        config.prompt.length,
        config.train.epochs,
        config.train.seed,
        config.data.template or next(iter(task.templates)),
        width,
        config.optimizer.schedule,
        [number.value for number in config.published if number.by == "rerun"],
    )
    assert found == PUBLISHED[name]
    assert config.train.backbone_dropout is True if rate == 0.1 else config.train.backbone_dropout == rate
    # Tagging has no limit of its own there: all that 512 positions leave. Questions have windows of 384 tokens.
    lengths = {"tagging": 512 - config.prompt.length, "span": 384}
    assert config.data.max_length == lengths.get(task.kind, 128)
    assert task.kind != "span" or config.data.stride == 128
    assert (config.prompt.init, config.prompt.positions, config.head.pooling) == ("normal", "after_prefix", None)
    optimizer = config.optimizer
    assert (optimizer.warmup, optimizer.weight_decay, optimizer.clip_norm, optimizer.gamma) == (0, 0, 1.0, 0.95)
    assert (optimizer.head_lr, optimizer.beta1, optimizer.beta2, optimizer.eps) == (None, 0.9, 0.999, 1e-8)


def test_every_published_row_has_a_file_and_every_task_another():
    assert set(PUBLISHED) <= set(NAMES) and len(PUBLISHED) == 20
    tasks = [load_run(path).shared.task for path in CONFIGS]
    assert {task for task in tasks if isinstance(task, str)} == set(FIXED)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "base").glob("*.json")), ids=lambda path: path.stem)
def test_a_base_is_valid_where_a_run_file_extends_it(path, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"extends": str(path), "task": "rte"}))
    backbone = json.loads(path.read_text()).get("backbone", {})
    run = load_run(file, [] if "path" in backbone else ["backbone.path=."])
    assert run.shared.parallel.tensor * 4 == 8 or not run.shared.parallel.zero


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_trains_two_steps_on_a_tiny_backbone_of_its_family(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = load_run(path)
    if path.stem == "quickstart":
        make_texts(tmp_path / "data")
    elif isinstance(run.shared.task, dict) and run.shared.task["kind"] != "document":
        make_passages(tmp_path / "data")
    elif isinstance(run.shared.task, str):
        write_rows(run.shared.task, tmp_path / "data")
    name = run.shared.backbone.path
    family = next((known for known in ("xlm-roberta", "roberta") if known in name), "bert")
    if find_task(run.shared.task).kind == "document":
        tiny = make_reader(tmp_path / "tiny", max_position_embeddings=1400)
    elif run.shared.is_written:
        tiny = make_writer(tmp_path / "tiny", "llama", max_position_embeddings=1400)
    else:
        tiny = make_backbone(tmp_path / "tiny", family, with_pooler=family == "bert", max_position_embeddings=700)
    sets = {
        "backbone.path": str(tiny),
        "data.path": str(tmp_path / "data"),
        "train.max_steps": "2",
        "train.batch_size": "4",
        **({"parallel.tensor": "1", "parallel.zero": "false"} if run.shared.parallel.tensor > 1 else {}),
    }
    if find_task(run.shared.task).kind == "document":
        places = ["--set", f"backbone.path={tiny}", "--set", f"data.path={tmp_path / 'data'}"]
        assert cli.main(["synthesise", str(path), "--questions", "1", "--passage-tokens", "800", *places]) == 0
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert worker.main(["--config", str(path), "--output", str(tmp_path / "out"), *arguments]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "finished"
    steps = 0 if run.shared.method == "none" else 2
    assert all(member["steps"] == steps and member["best"] is not None for member in result["members"])
