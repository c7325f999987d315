"""Contract of every task file, and the texts and labels that each fixed task makes of a row."""

from __future__ import annotations

import pytest

from prompt_tuning.errors import UserError
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


@pytest.mark.parametrize("name", FIXED)
def test_every_column_matters_and_no_other_does(name):
    """A changed column changes what some template makes; a column that no template reads is not asked for."""
    task = find_task(name)
    row = task.normalise(ROWS[name])
    plain = [template(row) for template in task.templates.values()]
    for column in task.columns:
        other = {"question": "effect", "span2_index": 1}.get(column, "z z z")
        changed = [template({**row, column: other}) for template in task.templates.values()]
        assert changed != plain, column
    assert [template({k: row[k] for k in task.columns}) for template in task.templates.values()] == plain
    assert set(task.number_columns) <= set(task.columns)


# What the SuperGLUE files and the hub's copies write, in the order of the logits.
LABELS = {
    "boolq": ([False, True], ["False", "True"]),
    "cb": (["entailment", "contradiction", "neutral"], ["entailment", "contradiction", "neutral"]),
    "copa": ([0, 1], ["choice1", "choice2"]),
    "rte": (["entailment", "not_entailment"], ["entailment", "not_entailment"]),
    "wic": ([False, True], ["False", "True"]),
    "wsc": ([False, True], ["False", "True"]),
}


@pytest.mark.parametrize("name", FIXED)
def test_labels_of_files_and_of_the_hub_are_classes_in_order(name):
    task = find_task(name)
    for written in LABELS[name]:
        assert [task.label_index(value, task.labels) for value in written] == list(range(len(task.labels)))
    assert [task.label_index(i, task.labels) for i in range(len(task.labels))] == list(range(len(task.labels)))
    assert [task.label_index(value, task.labels) for value in (None, -1, "")] == [None] * 3
    assert len({label.lower() for label in task.labels}) == len(task.labels)
    for wrong in ("maybe", len(task.labels), 0.5, [0], {"a": 1}):
        with pytest.raises(KeyError):
            task.label_index(wrong, task.labels)


def test_labels_may_be_written_in_any_case():
    boolq = find_task("boolq")
    assert [boolq.label_index(value, boolq.labels) for value in ("false", "TRUE", "True")] == [0, 1, 1]


def test_files_nest_the_spans_of_wsc_and_the_hub_does_not():
    wsc = find_task("wsc")
    spans = {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 3}
    text = {"text": "Ann saw that she won.", "label": True}
    nested, flat = wsc.normalise({**text, "target": spans}), wsc.normalise({**text, **spans})
    for template in wsc.templates.values():
        assert template(nested) == template(flat)
    assert wsc.normalise({"target": "no object"}) == {"target": "no object"}


@pytest.mark.parametrize("name", task_names())
def test_tasks_are_described_by_their_file_alone(name):
    """A name in a run file is a fixed task or a kind of one's own data, and the other use is explained."""
    if name in FIXED:
        with pytest.raises(UserError, match=f'write "task": "{name}"'):
            find_task({"kind": name})
        assert find_task(name) is find_task(name)
    else:
        with pytest.raises(UserError, match="describes your own data"):
            find_task(name)
        assert find_task({"kind": name}).labels is None


def test_own_data_may_have_two_texts_and_other_columns():
    task = find_task({"kind": "classification", "text": "a", "text_pair": "b", "label": "c", "metric": "macro_f1"})
    assert task.columns == ("a", "b") and task.label_column == "c"
    assert task.metrics == ("macro_f1", "accuracy")
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
