"""Learning a document: the divergence from teachers, beside others and alone, and what counts as other data."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from prompt_tuning.backbone.language_head import LEAST_REST, agreement
from prompt_tuning.tokens.lessons import LESSON_TOKENS
from prompt_tuning.tokens.packed import Teacher
from tests.support.documents import (
    document_run,
    make_document,
    make_place,
    make_questions,
    open_backbone,
    open_document_fleet,
    task_of,
    taught_rows,
)
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.generation import stock_logits
from tests.support.tiny import make_copa, write_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("documents"))


LIMITS = {"max_length": 24, "max_target_length": 8}


def divergence(logs, tokens, teacher_logs):
    """Over the teacher's tokens and any other, from log probabilities [vocabulary], by hand."""
    p = [np.exp(value) for value in teacher_logs]
    q = [np.exp(logs[token]) for token in tokens]
    pairs = [*zip(p, q, strict=True), (max(1 - sum(p), LEAST_REST), max(1 - sum(q), LEAST_REST))]
    return sum(a * (np.log(a) - np.log(b)) for a, b in pairs)


def expected_loss(place, fleet, examples):
    """The loss of a step from the stock model, one row alone, the prefix in a cache."""
    member = fleet.members[0]
    features, prompt = member.splits["train"], member.prompt
    total, count = 0.0, 0
    for example in examples:
        part = slice(features.offsets[example], features.offsets[example + 1])
        tags = features.tags[part]
        logits = stock_logits(
            place / "backbone", prompt.prefix.table().detach(), features.tokens[part].tolist(), prompt.text_start
        )
        logs = torch.log_softmax(logits, -1).numpy()
        own = features.notes.lessons
        first = own.starts[example]
        for number, spot in enumerate(np.flatnonzero(tags >= 0)):
            total += divergence(
                logs[spot], own.tokens[first + number], own.log_probabilities[first + number].astype(float)
            )
            count += 1
    return total / count


def test_the_loss_is_the_divergence_from_teachers_of_rows_alone_and_so_is_its_gradient(place):
    fleet = open_document_fleet(place)
    (member,) = fleet.members
    examples = member.step_examples(0)
    before = expected_loss(place, fleet, examples)
    table = member.prompt.prefix.embedding
    gradients = {}
    member.optimizer.register_step_pre_hook(lambda *_: gradients.update(own=table.grad.clone()))
    start = table.detach().clone()
    assert fleet.train_step([0]).losses.item() == pytest.approx(before, abs=1e-9)
    direction = torch.randn(table.shape, generator=torch.Generator().manual_seed(0), dtype=table.dtype)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            table.copy_(start + sign * 1e-3 * direction)
        ends.append(expected_loss(place, fleet, examples))
    # Parts of the model are float32 whatever its type: a smaller difference would be their rounding.
    slope = (ends[0] - ends[1]) / 2e-3
    assert abs(slope) > 1e-4 and (gradients["own"] * direction).sum().item() == pytest.approx(slope, rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    logs = torch.log_softmax(torch.randn(4, 30, dtype=torch.float64), -1)
    best = logs.topk(LESSON_TOKENS)
    found = torch.cat([logs[:, :1], best.values], 1)
    assert agreement(found, Teacher(best.indices, best.values)).abs().max() < 1e-12
    other = torch.log_softmax(torch.randn(4, 30, dtype=torch.float64), -1).gather(1, best.indices)
    assert agreement(torch.cat([logs[:, :1], other], 1), Teacher(best.indices, best.values)).max() < 0


def test_places_without_teacher_count_their_own_token():
    logs = torch.log_softmax(torch.randn(2, 30, dtype=torch.float64), -1)
    best = logs.topk(LESSON_TOKENS)
    tokens = best.indices.clone()
    tokens[1] = -1
    found = agreement(torch.cat([logs[:, :1], best.values], 1), Teacher(tokens, best.values))
    assert found[1] == logs[1, 0] and abs(found[0]) < 1e-12


def test_a_document_beside_others_is_itself_alone(place, tmp_path):
    """Documents, and tasks of other kinds, whose rows have no teacher."""
    other = make_document(tmp_path / "other.txt", seed=9, paragraphs=1)
    make_questions(tmp_path / "data", seed=2, count=3)
    write_jsonl(tmp_path / "data/train.jsonl", taught_rows(open_backbone(place / "backbone"), other, 7, 5))
    rows = [{"source": f"w{i}", "target": f"w{i + 1}"} for i in range(6)]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"plain/{split}.jsonl", rows)
    members = [
        {"name": "one", "prompt": {"length": 4}},
        {"name": "two", "task": task_of(other), "data": {"path": str(tmp_path / "data")}, "train": {"seed": 3}},
        {
            "name": "plain",
            "task": {"kind": "generation"},
            "data": {"path": str(tmp_path / "plain")},
            "decode": {"stop": []},
            "train": {"seed": 4},
        },
        {
            "name": "cloze",
            "task": "copa",
            "data": {"path": str(make_copa(tmp_path / "copa")), "template": "cloze"},
            "decode": {"stop": []},
        },
    ]
    raw = document_run(place / "backbone", place / "data", place / "document.txt", fleet={"members": members})
    together = follow(open_fleet(raw))
    for name in ("one", "two", "plain", "cloze"):
        assert_same_course(together, follow(open_fleet(raw, only=name)), "float64", [name])
    assert together.losses["one"][-1] < together.losses["one"][0]


def test_scores_are_of_the_answers_and_not_of_the_divergence(place):
    from prompt_tuning.fleet.evaluate import split_outputs

    fleet = open_document_fleet(place)
    outputs = split_outputs(fleet, [0], "train")[0]
    features = fleet.members[0].splits["train"]
    part = slice(features.offsets[0], features.offsets[1])
    prompt = fleet.members[0].prompt
    logits = stock_logits(
        place / "backbone", prompt.prefix.table().detach(), features.tokens[part].tolist(), prompt.text_start
    )
    spots = np.flatnonzero(features.tags[part] >= 0)
    logs = torch.log_softmax(logits, -1)[spots, features.tags[part][spots].astype(np.int64)]
    assert outputs.shape == (len(features), 1) and outputs[0, 0] == pytest.approx(logs.sum().item(), abs=1e-9)


def test_another_teacher_makes_other_data(place, tmp_path):
    """What a run that goes on compares: the same texts with other lessons are not the same training."""
    rows = [json.loads(line) for line in (place / "data/train.jsonl").read_text().splitlines()]
    digests = [open_document_fleet(place).members[0].splits["train"].digest]
    for key, change in (("logs", lambda own: own - 0.5), ("ids", lambda own: own - (own > 9))):
        changed = json.loads(json.dumps(rows))
        for row in changed:
            row["teacher"][key] = change(np.array(row["teacher"][key])).tolist()
        write_jsonl(tmp_path / key / "train.jsonl", changed)
        make_questions(tmp_path / key)
        fleet = open_fleet(document_run(place / "backbone", tmp_path / key, place / "document.txt"))
        digests.append(fleet.members[0].splits["train"].digest)
    assert len(set(digests)) == 3


def test_questions_of_people_and_of_the_teacher_are_scored_alike_in_one_split(place, tmp_path):
    """Of one batch some rows have a teacher, and the last have none."""
    from prompt_tuning.fleet.evaluate import split_outputs

    taught = [json.loads(line) for line in (place / "data/train.jsonl").read_text().splitlines()]
    plain = [{key: row[key] for key in ("question", "answer")} for row in taught]
    found = []
    for name, rows in (("mixed", taught[:4] + plain[4:]), ("plain", plain)):
        write_jsonl(tmp_path / name / "train.jsonl", taught)
        write_jsonl(tmp_path / name / "dev.jsonl", rows)
        found.append(
            split_outputs(
                open_fleet(document_run(place / "backbone", tmp_path / name, place / "document.txt")), [0], "dev"
            )[0]
        )
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_lessons_of_large_data_are_joined_from_parts_and_mapped_from_files(place, monkeypatch, tmp_path):
    whole = open_document_fleet(place).members[0].splits["train"]
    monkeypatch.setattr("prompt_tuning.data.encode.CHUNK", 4)
    monkeypatch.setattr("prompt_tuning.data.load.SMALL", 3)
    parted = open_document_fleet(place, data={**LIMITS, "cache": str(tmp_path)}).members[0].splits["train"]
    assert any(tmp_path.rglob("notes.lessons.tokens.bin")) and parted.digest == whole.digest
    for name in ("tokens", "log_probabilities", "ends"):
        assert np.array_equal(getattr(parted.notes.lessons, name), getattr(whole.notes.lessons, name))
