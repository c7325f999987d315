"""Every shipped run file is valid, has the published hyper-parameters, and trains two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import run as worker
from prompt_tuning.runfile import load_run
from prompt_tuning.tasks import find_task
from tests.support.tiny import make_backbone, make_texts, write_jsonl

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.json"))
NAMES = [path.stem for path in CONFIGS]

# Batch size, learning rate, prompt length, epochs, seed, template, reparameterisation width: the published run scripts.
PUBLISHED = {
    "boolq": (32, 7e-3, 8, 100, 11, "pair", None),
    "boolq_bert": (32, 5e-3, 40, 100, 11, "pair", None),
    "copa": (16, 9e-3, 8, 120, 11, "connective", None),
    "copa_bert": (16, 1e-2, 16, 80, 44, "connective", None),
    "rte": (32, 5e-3, 128, 100, 11, "pair", None),
    "rte_bert": (32, 1e-2, 20, 60, 11, "pair", None),
    "wic": (32, 1e-2, 8, 50, 11, "question", None),
    "wic_bert": (16, 1e-4, 20, 80, 44, "word_pair", 512),
    "wsc": (16, 1e-2, 8, 10, 44, "prefixed", None),
    "wsc_bert": (16, 5e-3, 20, 80, 44, "prefixed", None),
}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_is_valid_and_says_whether_it_is_published(path):
    run = load_run(path)
    assert run.name == path.stem
    assert (run.shared.published is False) != (path.stem in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_hyper_parameters(name):
    config = load_run(ROOT / "configs" / f"{name}.json").shared
    task = find_task(config.task)
    width = config.prompt.projection_width if config.prompt.reparameterisation == "mlp" else None
    found = (
        config.train.batch_size,
        config.optimizer.lr,
        config.prompt.length,
        config.train.epochs,
        config.train.seed,
        config.data.template or next(iter(task.templates)),
        width,
    )
    assert found == PUBLISHED[name]
    assert config.backbone.path == (
        "google-bert/bert-large-cased" if name.endswith("_bert") else "FacebookAI/roberta-large"
    )
    assert (config.prompt.dropout, config.train.backbone_dropout, config.data.max_length) == (0.1, True, 128)
    assert (config.prompt.init, config.prompt.positions, config.head.pooling) == ("normal", "after_prefix", "pooler")
    optimizer = config.optimizer
    assert (optimizer.schedule, optimizer.warmup, optimizer.weight_decay, optimizer.clip_norm) == ("linear", 0, 0, 1.0)
    assert optimizer.head_lr is None


ROWS = {
    "boolq": {"question": "is w1 w2", "passage": "w1 w2 w3"},
    "cb": {"premise": "w1 w2", "hypothesis": "w3"},
    "copa": {"premise": "w1 .", "question": "cause", "choice1": "w2", "choice2": "w3 w4"},
    "rte": {"premise": "w1 w2", "hypothesis": "w3"},
    "wic": {"word": "w1", "sentence1": "w1 w2", "sentence2": "w1 w3"},
    "wsc": {
        "text": "w1 said it",
        "target": {"span1_text": "w1", "span1_index": 0, "span2_text": "it", "span2_index": 2},
    },
}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_trains_two_steps_on_a_tiny_backbone_of_its_family(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load_run(path)
    task = find_task(run.shared.task)
    if task.folder is None:
        make_texts(tmp_path / "data")
    else:
        for split in ("train", "val"):
            rows = [
                {**ROWS[task.name], "label": task.labels[i % 2] if task.kind == "classification" else i % 2}
                for i in range(6)
            ]
            write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    family = "roberta" if "roberta" in run.shared.backbone.path else "bert"
    sets = {
        "backbone.path": str(
            make_backbone(tmp_path / "tiny", family, with_pooler=family == "bert", max_position_embeddings=300)
        ),
        "data.path": str(tmp_path / "data"),
        "train.max_steps": "2",
        "train.batch_size": "4",
    }
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert worker.main(["--config", str(path), "--output", str(tmp_path / "out"), *arguments]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "finished"
    assert all(member["steps"] == 2 and member["best"] is not None for member in result["members"])
