"""Any tag set can be learnt; metrics of spans want tags that name spans, and say so before training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import score
from prompt_tuning.kinds import find_kind
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
SETS = {
    "parts of speech": ["PRON", "VERB", "NOUN"],
    "bare types": ["O", "NAME", "O"],
    "lower case": ["o", "b-per", "i-per"],
    "zero": ["0", "PER", "0"],
    "dash": ["-", "PER", "-"],
    "prefixes without types": ["B", "I", "O"],
    "nothing behind the dash": ["O", "B-", "I-"],
}


def load(folder, tags, dev=None, **settings):
    for split, own in (("train", tags), ("dev", dev or tags)):
        (folder / f"{split}.jsonl").write_text(json.dumps({"words": [f"w{i}" for i in range(len(own))], "tags": own}))
    task = find_task({"kind": "tagging", **settings})
    return task, load_task_data(task, TOKENIZER, Source(str(folder)), Encoding(16))


def right_answers(task, data, split="dev"):
    """Metrics of the model that is always right."""
    features = data.splits[split]
    outputs = np.stack([np.maximum(features.tags, 0), np.zeros(len(features.tags))], axis=1)
    return score(task, features, outputs, data.labels)[0]


@pytest.mark.parametrize("metric", [{}, {"metric": "accuracy"}], ids=["default", "accuracy"])
@pytest.mark.parametrize("tags", SETS.values(), ids=SETS)
def test_any_tag_set_is_learnt_with_accuracy(tmp_path, tags, metric):
    task, data = load(tmp_path, tags, **metric)
    assert set(data.labels) == set(tags), "no class that never occurs"
    assert right_answers(task, data) == {"accuracy": 1.0}
    assert task.for_labels(data.labels).selects_by == "accuracy"
    constant = find_kind("tagging").constant(data.splits["train"], data.splits["dev"], len(data.labels))
    assert 0 < score(task, data.splits["dev"], constant, data.labels)[0]["accuracy"] < 1


def test_accuracy_by_default_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    load(tmp_path, ["PRON", "VERB", "NOUN"])
    assert caplog.text.count("tags such as 'NOUN' name no spans (B-, I-, O), so accuracy alone is reported") == 1


@pytest.mark.parametrize("metric", ["f1", "f1_strict"])
def test_span_metrics_refuse_other_tags_before_training(tmp_path, metric):
    with pytest.raises(UserError) as error:
        load(tmp_path, ["O", "NAME"], metric=metric)
    sentence = (
        f'train.jsonl:1: tag "NAME" is no B-, I- or O, which {metric} counts; correct it or set task.metric to accuracy'
    )
    assert str(error.value).endswith(sentence)


def test_a_stray_tag_among_spans_is_refused_not_taken_for_another_scheme(tmp_path):
    with pytest.raises(UserError, match=r'train\.jsonl:1: tag "0" is no B-, I- or O, which f1 counts'):
        load(tmp_path, ["0", "B-PER", "O"])
    with pytest.raises(UserError, match=r'dev\.jsonl:1: tag "0" is no B-, I- or O, which f1 counts'):
        load(tmp_path, ["O", "B-PER"], ["O", "0"])


def test_a_stray_tag_may_be_learnt_with_accuracy(tmp_path):
    task, data = load(tmp_path, ["0", "B-PER", "I-PER"], metric="accuracy")
    assert right_answers(task, data) == {"accuracy": 1.0}
    task, data = load(tmp_path, ["O", "B-PER"], ["B-PER", "0"], metric="accuracy")
    assert right_answers(task, data)["accuracy"] == 0.5, "a tag that training lacks is missed, and breaks nothing"


def test_tags_that_name_spans_keep_all_metrics_and_the_class_outside(tmp_path):
    task, data = load(tmp_path, ["I-PER", "I-PER", "U-LOC"])
    assert data.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert right_answers(task, data) == {"f1": 1.0, "f1_strict": 1.0, "accuracy": 1.0}
    assert task.for_labels(data.labels).selects_by == "f1"


def test_published_tasks_of_spans_have_no_other_metric(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text('{"words": ["w1", "w2"], "predicate": ["w1"], "tags": ["V", "A1"]}')
    with pytest.raises(UserError, match=r'train\.jsonl:1: tag "V" is no B-, I- or O, which f1 counts; correct it$'):
        load_task_data(find_task("conll05"), TOKENIZER, Source(str(tmp_path)), Encoding(16))


def test_listed_tags_are_checked_with_the_run_file():
    for labels, metric in ((["O", "NAME"], "f1"), (["B-X", "NAME"], None)):
        with pytest.raises(UserError, match='tag "NAME" is no B-, I- or O, which f1 counts'):
            find_task({"kind": "tagging", "labels": labels, **({"metric": metric} if metric else {})})
    assert (
        find_task({"kind": "tagging", "labels": ["NOUN", "VERB"]}).for_labels(("NOUN", "VERB")).selects_by == "accuracy"
    )


def test_metrics_of_spans_take_any_tags():
    for metric in (entity_f1, strict_entity_f1):
        assert metric([["PRON", "B-X", "-", "0", ""]], [["o", "B-X", "b-x", "B-", "X-Y"]]) == 1.0


def test_one_tag_alone_is_nothing_to_learn(tmp_path):
    with pytest.raises(UserError, match="all tags of the training split are 'NOUN'"):
        load(tmp_path, ["NOUN", "NOUN"])
