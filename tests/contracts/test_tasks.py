"""Contract of every task file, and the texts and labels that each fixed task makes of a row."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import score
from prompt_tuning.kinds import find_kind
from prompt_tuning.metrics.generation import Written
from prompt_tuning.tasks.find import find_task, own_kinds, task_names
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.rows import ROWS, encode
from tests.support.tiny import make_tokenizer

FIXED = task_names()
KINDS = {name: find_task(name).kind for name in FIXED}
CLASSES = [name for name in FIXED if KINDS[name] in ("classification", "choice")]
TOKENIZER = make_tokenizer()
TOKENIZER.eos_token = "[SEP]"
ENCODING = Encoding(40, stride=4)
TEXTS = Path(__file__).parent.parent / "frozen" / "texts.json"
"""By task: the version of its texts, and the SHA-256 of what its templates make of the rows in tests/support."""


def expanded(name):
    task = find_task(name)
    return [dict(row) for raw in ROWS[name] for row in task.expand(raw)]


def located(name):
    return [(f"row {i}", row) for i, row in enumerate(ROWS[name])]


def encoded(name):
    task, rows = find_task(name), located(name)
    labels = task.labels or find_kind(task.kind).collect_labels(task, rows)
    return task, labels, encode(task, TOKENIZER, rows, ENCODING, labels)


@pytest.mark.parametrize("name", FIXED)
def test_a_task_is_complete(name):
    task = find_task(name)
    assert isinstance(task, Task) and task.name == name and task.metrics
    assert task.hub or task.origin, "a task says where its data come from"
    for row in expanded(name):
        assert {*task.columns, task.label_column} <= set(row)
        for template in task.templates.values():
            pairs = template(row)
            assert len(pairs) == (len(task.labels) if task.kind == "choice" else 1)
        for template in task.cloze.values():
            candidates = [gap.candidate for _, gap in template(row)]
            assert len(candidates) == len(task.labels) and len(set(candidates)) == len(candidates)
            assert (
                len({(context, gap.before, gap.after) for context, gap in template(row)}) == 1 or task.kind == "choice"
            )


@pytest.mark.parametrize("name", FIXED)
def test_every_column_matters_and_no_other_does(name):
    """A changed column changes what some template makes; a column that no template reads is not asked for."""
    task = find_task(name)
    row = expanded(name)[0]
    plain = [template(row) for template in task.templates.values()]
    for column in task.columns:
        other = {"question": "effect", "span2_index": 1, "query": "z @placeholder"}.get(column, "z z z")
        changed = [template({**row, column: other}) for template in task.templates.values()]
        assert changed != plain, column
    assert [template({k: row[k] for k in task.columns}) for template in task.templates.values()] == plain
    assert {*task.number_columns, *task.word_columns} <= set(task.columns)


def gold_outputs(task, features):
    """Outputs that answer every example rightly."""
    if task.kind == "regression":
        return features.labels[:, None]
    if task.kind == "generation":
        return [Written(texts[-1], 0.0, 3) for texts in features.notes.targets]
    if task.kind == "tagging":
        return np.stack([features.tags, np.zeros(len(features.tags))], axis=1)
    if task.kind == "span":
        return np.stack([(features.tags & bit) > 0 for bit in (1, 2)], axis=1) * 10.0
    return np.eye(len(task.labels))[features.labels] * 10


@pytest.mark.parametrize("name", FIXED)
def test_gold_against_gold_is_perfect(name):
    task, labels, features = encoded(name)
    metrics, loss = score(task, features, gold_outputs(task, features), labels)
    assert metrics == pytest.approx(dict.fromkeys(task.metrics, 1.0), abs=1e-12)
    assert math.isfinite(loss) and loss < 0.05


@pytest.mark.parametrize("name", FIXED)
def test_every_wrong_answer_lowers_some_metric(name):
    """Each example in turn is answered wrongly: none is left out of the score."""
    task, labels, features = encoded(name)
    right = gold_outputs(task, features)
    for example in range(len(features)):
        wrong = right.copy()
        if KINDS[name] == "tagging":
            tokens = features.notes.first_tokens[example] + features.offsets[example]
            wrong[tokens, 0] = np.where(wrong[tokens, 0] > 0, 0, 1)
        elif KINDS[name] == "span":
            rows = slice(features.offsets[example], features.offsets[example + 1])
            inside = np.flatnonzero(features.notes.characters[rows, 0] >= 0) + features.offsets[example]
            wrong[rows] = 0
            wrong[inside[0]] = 20
        elif KINDS[name] == "generation":
            wrong[example] = replace(wrong[example], text="z")
        elif KINDS[name] == "regression":
            wrong[example] = 7 - wrong[example]
        else:
            wrong[example] = wrong[example, ::-1] * 2 if wrong.shape[1] == 2 else np.roll(wrong[example], 1)
        metrics, _ = score(task, features, wrong, labels)
        assert min(metrics.values()) < 1 - 1e-6, example


@pytest.mark.parametrize("name", FIXED)
def test_the_constant_answer_looks_at_no_text(name):
    task, labels, features = encoded(name)
    kind = find_kind(task.kind)
    outputs = kind.constant(features, features, len(labels))
    metrics, loss = score(task, features, outputs, labels)
    # No likelihood is known of a constant text.
    known = {key: value for key, value in metrics.items() if key != "perplexity"}
    assert all(0 <= value <= 1 + 1e-12 for value in known.values()) and math.isnan(loss) == (task.kind == "generation")
    assert len(kind.describe(task, features, outputs, labels)) == len(expanded(name))


def test_super_glue_can_be_answered_by_the_language_model():
    assert {name for name in FIXED if find_task(name).cloze} >= {
        "wsc",
        "copa",
        "record",
        "boolq",
        "cb",
        "rte",
        "wic",
        "multirc",
    }


def test_every_task_has_rows():
    assert set(ROWS) == set(FIXED)


EXPECTED = [
    ("boolq", "pair", {"question": "q", "passage": "p"}, (("q", "p"),)),
    ("cb", "pair", {"premise": "p", "hypothesis": "h"}, (("p", "h"),)),
    ("rte", "pair", {"premise": "p", "hypothesis": "h"}, (("p", "h"),)),
    ("rte", "pair", {"sentence1": "p", "sentence2": "h"}, (("p", "h"),)),
    ("mnli", "pair", {"sentence1": "p", "sentence2": "h", "gold_label": "neutral"}, (("p", "h"),)),
    ("mrpc", "pair", {"#1 String": "p", "#2 String": "h", "Quality": "1"}, (("p", "h"),)),
    (
        "wic",
        "question",
        {"word": "bank", "sentence1": "A.", "sentence2": "B."},
        (("A. B. Does bank have the same meaning in both sentences?", None),),
    ),
    ("wic", "word_pair", {"word": "bank", "sentence1": "A.", "sentence2": "B."}, (("bank: A.", "bank: B."),)),
    ("wsc", "prefixed", {"text": "Ann saw that she won.", "span1_text": "Ann", "span2_text": "she", "span2_index": 3},
     (("she: Ann saw that she won.", "Ann"),)),
    ("wsc", "starred", {"text": "Ann saw that she won.", "span1_text": "Ann", "span2_text": "she", "span2_index": 3},
     (("Ann saw that *she* won.", "Ann"),)),
    ("wsc", "prefixed", {"text": "t", "target": {"span1_text": "a", "span2_text": "b", "span2_index": 0}}, (("b: t", "a"),)),
    ("copa", "connective", {"premise": "It rained.", "question": "cause", "choice1": "x", "choice2": "y"},
     (("It rained. because", "x"), ("It rained. because", "y"))),
    ("copa", "connective", {"premise": "It rained.", "question": "effect", "choice1": "x", "choice2": "y"},
     (("It rained. so", "x"), ("It rained. so", "y"))),
    ("multirc", "pair", {"paragraph": "p", "question": "q?", "answer": "a"}, (("p", "q? a"),)),
    ("record", "pair",
     {"passage": "Ann won.\n@highlight\nBob lost", "query": "@placeholder cried", "entities": ["Bob"], "answers": ["Bob"], "idx": 0},
     (("Ann won.\n- Bob lost", "Bob cried"),)),
    ("squad", "pair", {"question": "q", "context": "c"}, (("q", "c"),)),
    ("conll05", "predicate", {"words": ["a", "b"], "predicate": ["b"]}, ((["a", "b"], ["b"]),)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "template", "row", "pairs"), EXPECTED, ids=[f"{e[0]}-{e[1]}-{i}" for i, e in enumerate(EXPECTED)]
)
def test_a_template_makes_the_published_text(name, template, row, pairs):
    task = find_task(name)
    (own,) = task.expand(row)
    assert task.templates[template](own) == pairs


# What the files and the hub's copies write, in the order of the logits, where it is not False and True or 0 and 1.
LABELS = {
    "cb": ["entailment", "contradiction", "neutral"],
    "copa": ["choice1", "choice2"],
    "rte": ["entailment", "not_entailment"],
    "qnli": ["entailment", "not_entailment"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "xnli": ["entailment", "neutral", "contradiction"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_labels_of_files_and_of_the_hub_are_classes_in_order(name):
    task = find_task(name)
    assert [task.label_index(value, task.labels) for value in LABELS.get(name, task.labels)] == list(
        range(len(task.labels))
    )
    assert [task.label_index(i, task.labels) for i in range(len(task.labels))] == list(range(len(task.labels)))
    assert [task.label_index(value, task.labels) for value in (None, -1, "")] == [None] * 3
    assert len({label.lower() for label in task.labels}) == len(task.labels)
    for wrong in ("maybe", len(task.labels), 0.5, [0], {"a": 1}):
        with pytest.raises(KeyError):
            task.label_index(wrong, task.labels)


def test_labels_may_be_written_in_any_case():
    boolq = find_task("boolq")
    assert [boolq.label_index(value, boolq.labels) for value in ("false", "TRUE", "True")] == [0, 1, 1]
    assert [boolq.label_index(value, boolq.labels) for value in (False, True)] == [0, 1]


def test_files_nest_the_spans_of_wsc_and_the_hub_does_not():
    wsc = find_task("wsc")
    spans = {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 3}
    text = {"text": "Ann saw that she won.", "label": True}
    (nested,), (flat,) = wsc.expand({**text, "target": spans}), wsc.expand({**text, **spans})
    for template in wsc.templates.values():
        assert template(nested) == template(flat)
    assert list(wsc.expand({"target": "no object"})) == [{"target": "no object"}]


def test_files_and_the_hub_give_the_same_answers_of_multirc():
    hub = [
        {
            "paragraph": "w1 w2 w3",
            "question": f"w{q} w5",
            "answer": f"w{a}",
            "label": (a + q) % 2,
            "idx": {"paragraph": 0, "question": q, "answer": a},
        }
        for q in range(2)
        for a in range(3)
    ]
    assert [row for raw in hub for row in find_task("multirc").expand(raw)] == expanded("multirc")[:6]


def test_files_and_the_hub_give_the_same_candidates_of_record():
    """Files say where entities stand, their last character included; one that is named twice is one candidate."""
    hub = [
        {"passage": "w1 w2\n@highlight\nw3 w4", "query": "w5 @placeholder", "entities": ["w1", "w2"], "answers": ["w1"], "idx": 0},
        {"passage": "w1 w2\n@highlight\nw3 w4", "query": "@placeholder w6", "entities": ["w1", "w2"], "answers": ["w2"], "idx": 1},
    ]  # fmt: skip
    found = [row for raw in hub for row in find_task("record").expand(raw)]
    keys = ("passage", "query", "entity", "label", "answers")
    assert [[row[key] for key in keys] for row in found] == [
        [row[key] for key in keys] for row in expanded("record")[:4]
    ]


@pytest.mark.parametrize("name", [*FIXED, *own_kinds()])
def test_tasks_are_described_by_their_file_alone(name):
    """A name in a run file is a fixed task or a kind of one's own data, and the other use is explained."""
    if name in FIXED:
        with pytest.raises(UserError, match=f'write "task": "{name}"'):
            find_task({"kind": name})
        assert find_task(name) is find_task(name)
    else:
        with pytest.raises(UserError, match="describes your own data"):
            find_task(name)
        needed = {"document": "d.txt"} if name == "document" else {}
        assert find_task({"kind": name, "name": "mine", **needed}).name == "mine"


def test_own_data_may_have_two_texts_and_other_columns():
    task = find_task({"kind": "classification", "text": "a", "text_pair": "b", "label": "c", "metric": "macro_f1"})
    assert task.columns == ("a", "b") and task.label_column == "c"
    assert list(task.metrics) == ["macro_f1", "accuracy"]
    assert task.templates["plain"]({"a": "x", "b": "y"}) == (("x", "y"),)
    assert find_task({"kind": "classification"}).templates["plain"]({"text": "x"}) == (("x", None),)


def test_own_labels_that_are_numbers_are_names_first():
    task = find_task({"kind": "classification"})
    assert task.label_index(5, ("1", "5")) == 1


@pytest.mark.parametrize("value", [1, 0])
def test_a_number_is_no_index_where_labels_are_numbers(value):
    task = find_task({"kind": "classification"})
    with pytest.raises(KeyError):
        task.label_index(value, ("10", "20"))
    assert task.label_index(-1, ("-1", "1")) == 0


@pytest.mark.parametrize("name", FIXED)
def test_texts_of_a_version_stay(name):
    """A changed template answers other texts than a prompt was trained on: raise the task's version, and state its texts anew."""
    task = find_task(name)
    made = [[key, template(row)] for key, template in task.all_templates().items() for row in expanded(name)]
    digest = hashlib.sha256(json.dumps(made, ensure_ascii=False).encode()).hexdigest()
    frozen = json.loads(TEXTS.read_text())
    assert frozen.get(name) == [task.version, digest], (
        f"{TEXTS.name} should say {json.dumps({name: [task.version, digest]})}"
    )
