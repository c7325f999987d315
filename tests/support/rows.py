"""Rows of every fixed task, as its files hold them, in words that the tiny tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prompt_tuning.data import encode as module
from prompt_tuning.formats import LocatedRow
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Encoding, Recipe
from tests.support.tiny import write_jsonl


def encode(task: Task, tokenizer: Any, rows: list[LocatedRow], encoding: Encoding, labels: tuple[str, ...]) -> Features:
    """Rows as tokens, at once."""
    return module.encode(Recipe(task, tokenizer, encoding, labels), rows)


def _pairs(first: str, second: str | None, labels: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for i, label in enumerate(labels * 2):
        texts = {first: f"w{i} w{i + 1}", **({} if second is None else {second: f"w{i + 2} w3 w4"})}
        rows.append({**texts, "label": label})
    return rows


def _copa() -> list[dict[str, Any]]:
    return [
        {"premise": f"w{i} .", "question": question, "choice1": "w2", "choice2": "w3 w4", "label": i % 2}
        for i, question in enumerate(["cause", "effect"] * 2)
    ]


def _words(tags: list[str], **more: Any) -> list[dict[str, Any]]:
    return [{"words": [f"w{i + j}" for j in range(len(tags))], "tags": tags, **more} for i in range(4)]


def _questions(with_null: bool) -> list[dict[str, Any]]:
    answer = {"text": "w3 w4", "answer_start": 6}
    rows = [{"question": f"w{i}", "context": "w1 w2 w3 w4 w5", "answers": [answer]} for i in range(3)]
    return [*rows, {"question": "w9", "context": "w1 w2", "answers": []}] if with_null else rows


_MULTIRC = {
    "idx": 0,
    "passage": {
        "text": "w1 w2 w3",
        "questions": [
            {
                "question": f"w{q} w5",
                "idx": q,
                "answers": [{"text": f"w{a}", "idx": a, "label": (a + q) % 2} for a in range(3)],
            }
            for q in range(2)
        ],
    },
}
_RECORD = {
    "idx": 0,
    "passage": {
        "text": "w1 w2\n@highlight\nw3 w4",
        "entities": [{"start": 0, "end": 1}, {"start": 3, "end": 4}, {"start": 0, "end": 1}],
    },
    "qas": [
        {"idx": 0, "query": "w5 @placeholder", "answers": [{"text": "w1", "start": 0, "end": 1}]},
        {"idx": 1, "query": "@placeholder w6", "answers": [{"text": "w2", "start": 3, "end": 4}]},
    ],
}
_SPANS = {"target": {"span1_text": "w1", "span1_index": 0, "span2_text": "it", "span2_index": 2}}

ROWS: dict[str, list[dict[str, Any]]] = {
    "adgen": [{"content": f"w{i} w1", "summary": f"w{i + 2} w3"} for i in range(4)],
    "boolq": _pairs("question", "passage", [False, True]),
    "cb": _pairs("premise", "hypothesis", ["entailment", "contradiction", "neutral"]),
    "cnn_dailymail": [{"article": f"w{i} w1 w2", "highlights": f"w{i + 2} w3"} for i in range(4)],
    "cola": _pairs("sentence", None, [0, 1]),
    "conll03": _words(["B-PER", "I-PER", "O", "B-LOC"]),
    "conll04": _words(["B-Peop", "I-Peop", "O", "B-Org"]),
    "conll05": _words(["B-A0", "B-V", "O", "B-A1", "I-A1"], predicate=["w9"]),
    "conll12": _words(["B-ARG0", "B-V", "O", "B-ARG1", "I-ARG1"], predicate=["w9"]),
    "copa": _copa(),
    "e2e": [
        {
            "meaning_representation": f"w{i} w1",
            "target": f"w{i + 2} w3 w4 w5",
            "references": [f"w{i + 2} w3 w4 w5", "w4 w5 w6 w7"],
        }
        for i in range(4)
    ],
    "mnli": _pairs("premise", "hypothesis", ["entailment", "neutral", "contradiction"]),
    "mrpc": _pairs("sentence1", "sentence2", [0, 1]),
    "multirc": [_MULTIRC, {**_MULTIRC, "idx": 1}],
    "ontonotes": _words(["B-PERSON", "I-PERSON", "O", "B-GPE"]),
    "pawsx": _pairs("sentence1", "sentence2", [0, 1]),
    "propbank": _words(["B-ARG0", "B-V", "O", "B-ARG1", "I-ARG1"], predicate=["w9"]),
    "qnli": _pairs("question", "sentence", ["entailment", "not_entailment"]),
    "qqp": _pairs("question1", "question2", [0, 1]),
    "record": [_RECORD, {**_RECORD, "idx": 1}],
    "rte": _pairs("premise", "hypothesis", ["entailment", "not_entailment"]),
    "squad": _questions(False),
    "squad2": _questions(True),
    "sst2": _pairs("sentence", None, [0, 1]),
    "stsb": _pairs("sentence1", "sentence2", [0.5, 3.2, 5]),
    "webnlg": [
        {"input": [f"w{i} | w1 | w2", "w3 | w4 | w5"], "target": f"w{i + 2} w3 w4 w5", "references": ["w4 w5 w6 w7"]}
        for i in range(4)
    ],
    "wic": [{"word": "w1", "sentence1": f"w1 w{i}", "sentence2": "w1 w3", "label": i % 2 == 0} for i in range(4)],
    "wnli": _pairs("sentence1", "sentence2", [0, 1]),
    "wnut17": _words(["B-person", "I-person", "O", "B-group"]),
    "wsc": [{"text": f"w1 said it w{i}", **_SPANS, "label": i % 2 == 0} for i in range(4)],
    "xcopa": _copa(),
    "xnli": _pairs("premise", "hypothesis", ["entailment", "neutral", "contradiction"]),
    "xsum": [{"document": f"w{i} w1 w2", "summary": f"w{i + 2} w3"} for i in range(4)],
    "xquad": _questions(False),
}


def write_rows(task: str, folder: Path, splits: tuple[str, ...] = ("train", "dev")) -> Path:
    """A data folder of a fixed task."""
    for split in splits:
        write_jsonl(folder / f"{split}.jsonl", json.loads(json.dumps(ROWS[task])))
    return folder
