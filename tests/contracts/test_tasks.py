"""Contract of every task file, and the texts and labels that each fixed task makes of a row."""

from __future__ import annotations

import pytest

from prompt_tuning.metrics import METRICS
from prompt_tuning.tasks import Task, find_task, task_names
from tests.contracts.test_configs import ROWS

FIXED = [name for name in task_names() if name != "classification"]


@pytest.mark.parametrize("name", FIXED)
def test_a_task_is_complete(name):
    task = find_task(name)
    assert isinstance(task, Task) and task.name == name
    assert task.hub and task.folder and len(task.labels) >= 2
    assert set(task.metrics) <= set(METRICS)
    row = task.normalise(ROWS[name])
    assert set(task.columns) <= set(row)
    for template in task.templates.values():
        pairs = template(row)
        assert len(pairs) == (len(task.labels) if task.kind == "choice" else 1)
        assert all(isinstance(text, str) or text is None for pair in pairs for text in pair)


EXPECTED = [
    ("boolq", "pair", {"question": "q", "passage": "p"}, (("q", "p"),)),
    ("cb", "pair", {"premise": "p", "hypothesis": "h"}, (("p", "h"),)),
    ("rte", "pair", {"premise": "p", "hypothesis": "h"}, (("p", "h"),)),
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
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "template", "row", "pairs"), EXPECTED, ids=[f"{e[0]}-{e[1]}-{i}" for i, e in enumerate(EXPECTED)]
)
def test_a_template_makes_the_published_text(name, template, row, pairs):
    task = find_task(name)
    assert task.templates[template](task.normalise(row)) == pairs


def test_labels_are_read_as_names_numbers_and_booleans():
    boolq, cb = find_task("boolq"), find_task("cb")
    assert [boolq.label_index(v, boolq.labels) for v in (False, True, "false", "True", 0, 1, None, -1)] == [
        0,
        1,
        0,
        1,
        0,
        1,
        None,
        None,
    ]
    assert [cb.label_index(v, cb.labels) for v in ("neutral", "entailment", 1)] == [2, 0, 1]
    with pytest.raises(KeyError):
        boolq.label_index("maybe", boolq.labels)
    with pytest.raises(KeyError):
        boolq.label_index(2, boolq.labels)


def test_own_labels_that_are_numbers_are_names_first():
    task = find_task({"kind": "classification"})
    assert task.label_index(5, ("1", "5")) == 1
