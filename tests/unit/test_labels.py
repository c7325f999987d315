"""Labels are read as meant, the same way in every split, or refused with their place."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source
from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Items, Pool
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.loop import targets as targets_of
from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.choice import keep
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.labels import label_name, near_equal
from prompt_tuning.tokens.recipe import Encoding
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()


def load(folder, task=None, **splits):
    """The data of rows (lists of labels, or of whole rows) by split."""
    for split, rows in splits.items():
        made = [row if isinstance(row, dict) else {"text": "w1 w2", "label": row} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    described = find_task({"kind": "classification", **(task or {})})
    return load_task_data(described, TOKENIZER, Source(str(folder)), Encoding(40))


@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "1"), (1.0, "1"), ("1.0", "1"), (" 1 ", "1"), ("1.50", "1.50"), ("bad ", "bad"), (True, "True"), ("None", "None"),
     (None, None), (float("nan"), None), ("  ", None), ("nan", "nan"), (0.5, "0.5")],
)  # fmt: skip
def test_blanks_and_the_spelling_of_whole_numbers_do_not_count(value, name):
    assert label_name(value) == name


def test_numbers_written_as_floats_are_the_same_classes_in_every_split(tmp_path):
    data = load(tmp_path, train=[1.0, 2.0, 3.0], dev=["1", "2"], test=["1.0", 3])
    assert data.labels == ("1", "2", "3")
    assert data.splits["dev"].labels.tolist() == [0, 1] and data.splits["test"].labels.tolist() == [0, 2]


def test_labels_that_differ_in_blanks_are_one_and_in_case_are_warned_about(tmp_path, caplog):
    caplog.set_level("INFO")
    data = load(tmp_path, train=["bad", "bad ", "Good", "good"], dev=["good"])
    assert data.labels == ("Good", "bad", "good")
    assert "'bad', 'bad ' are read as one label, 'bad'" in caplog.text
    assert "'Good' (1 rows) and 'good' (1 rows) are different classes" in caplog.text
    assert "labels Good (1), bad (2), good (1)" in caplog.text


def test_names_that_look_alike_are_counted():
    assert near_equal({"not_ok": 2, "Not OK": 1, "ok": 5}) == [
        "'Not OK' (1 rows) and 'not_ok' (2 rows) are different classes, as written"
    ]


def test_numbers_are_no_indices_of_names_that_data_gave(tmp_path):
    with pytest.raises(
        UserError, match=r"dev.jsonl:1 \(and 1 more rows\): label '1' is none of bad, good; numbers stand"
    ):
        load(tmp_path, train=["bad", "good"], dev=["1", 1, "0"])


def test_numbers_are_indices_of_names_that_the_task_gave(tmp_path):
    data = load(tmp_path, {"labels": ["bad", "good"]}, train=["bad", "good"], dev=["1", 0, 1.0, "GOOD"])
    assert data.splits["dev"].labels.tolist() == [1, 0, 1, 1]


def test_a_label_of_dev_alone_is_named_with_its_rows(tmp_path):
    with pytest.raises(UserError, match=r"dev.jsonl:2 .*label 'goood' is none of bad, good; did you mean 'good'"):
        load(tmp_path, train=["bad", "good"], dev=["bad", "goood", "goood"])


def test_the_text_none_is_a_label_and_a_missing_one_is_not(tmp_path):
    data = load(tmp_path, train=["None", "some"], dev=["None"], test=[None, None])
    assert data.labels == ("None", "some") and "test" not in data.splits
    with pytest.raises(UserError, match=r"dev.jsonl:2: no label"):
        load(tmp_path, train=["None", "some"], dev=["None", None])


def test_a_split_without_labels_is_not_tokenised(tmp_path):
    data = load(tmp_path, train=["a", "b"], dev=["a"], test=[{"text": "w1"}, {"text": ""}])
    assert set(data.splits) == {"train", "dev"}


QUESTION = {"text": "w1 w2"}
OPTIONS = {"kind": "choice", "choices": ["options"]}


def choices(folder, rows, task=OPTIONS):
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({**QUESTION, **row}) + "\n" for row in rows))
    return load_task_data(find_task(task), TOKENIZER, Source(str(folder)), Encoding(40)).splits["train"]


def test_choices_stand_in_a_list_and_their_number_may_differ(tmp_path):
    rows = [
        {"options": ["w3", "w4 w5", "w6"], "label": "C"},
        {"options": ["w3", "w4 w5"], "label": "w4 w5"},
        {"options": ["w3", "w4", "w5", "w6", "w7"], "label": 0},
    ]
    features = choices(tmp_path, rows)
    assert features.rows_per_example == 5 and features.labels.tolist() == [2, 1, 0]


def test_choices_that_are_not_there_take_no_part(tmp_path):
    """Loss, gradient and probabilities are those of the real choices alone."""
    features = choices(tmp_path, [{"options": ["w3", "w4", "w5"], "label": 1}, {"options": ["w3", "w4"], "label": 0}])
    batch = lay_out(Pool([features]), Items.of([(0, np.arange(2), 1.0)]), 0, torch.device("cpu"))
    targets = targets_of(batch, 0)
    assert targets.labels.tolist() == [1, 0]
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    kind = find_kind("choice")
    loss = kind.loss(logits, targets)
    loss.backward()
    parts = [(logits[0, :3], 1), (logits[1, :2], 0)]
    expected = sum(torch.logsumexp(part, 0) - part[right] for part, right in parts)
    assert torch.allclose(loss, expected, atol=1e-12)
    assert logits.grad[0, 3:].abs().max() == 0 and logits.grad[1, 2:].abs().max() == 0
    outputs = keep(logits.detach(), targets).numpy()
    described = kind.describe(find_task(OPTIONS), features, outputs, tuple("01234"))
    assert list(described[1]["probabilities"]) == ["0", "1"]
    assert np.isclose(sum(described[0]["probabilities"].values()), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["w1"], "label": 0}, "1 choice"),
        ({"options": ["w1", "w2"], "label": 2}, "numbers count from 0"),
        ({"options": ["2", "1", "0"], "label": "1.0"}, ""),
        ({"options": ["1", "2", "0"], "label": "1"}, "could mean more than one choice"),
        ({"options": ["w1", "w2"], "label": "w9"}, "label 'w9' is none of"),
        ({"options": "w1", "label": 0}, "not a list"),
    ],
)
def test_a_right_choice_that_is_unclear_is_refused(tmp_path, row, message):
    if not message:
        assert choices(tmp_path, [row]).labels.tolist() == [1]
        return
    with pytest.raises(UserError, match=message):
        choices(tmp_path, [row])


def test_letters_name_columns_of_choices(tmp_path):
    task = {"kind": "choice", "choices": ["c1", "c2", "c3"]}
    row = {"c1": "w1", "c2": "w2", "c3": "w3"}
    rows = [{**row, "label": label} for label in ("A", "c", "c2", 2, "w3")]
    assert choices(tmp_path, rows, task).labels.tolist() == [0, 2, 1, 2, 2]


def test_arc_keeps_its_letters_beside_its_texts(tmp_path):
    rows = [{"options": {"text": ["w1", "w2", "w3"], "label": ["1", "2", "3"]}, "label": "3"}]
    assert choices(tmp_path, rows).labels.tolist() == [2]


def test_a_question_without_answer_needs_has_null(tmp_path):
    row = {"question": "w1", "context": "w2 w3", "answers": []}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"train.jsonl:1: a question without answer; set task.has_null to true"):
        load_task_data(find_task({"kind": "span"}), TOKENIZER, Source(str(tmp_path)), Encoding(40, stride=4))
    load_task_data(
        find_task({"kind": "span", "has_null": True}), TOKENIZER, Source(str(tmp_path)), Encoding(40, stride=4)
    )
