"""Documents as prompts: passages, teachers, the divergence from them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.backbone.language_head import LEAST_REST, agreement
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.documents.questions import read_beginnings
from prompt_tuning.documents.synthesise import Question, synthesise
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.build import check_lengths
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.lessons import LESSON_TOKENS
from prompt_tuning.tokens.packed import Teacher
from prompt_tuning.tokens.passages import cut, read_document, sentences_of
from tests.support.documents import (
    ASKING,
    LENGTHS,
    document_run,
    make_document,
    make_questions,
    make_reader,
    task_of,
    taught_rows,
    teaching,
)
from tests.support.fleets import assert_same_course, follow, make_run, open_fleet
from tests.support.generation import make_writer, stock_logits
from tests.support.rows import encode
from tests.support.tiny import write_jsonl


def open_backbone(folder):
    section = BackboneSection(path=str(folder), dtype="float64")
    return load_backbone(section, Grid(), language=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny LLaMA, a document, and rows that a teacher has answered."""
    folder = tmp_path_factory.mktemp("documents")
    make_reader(folder / "backbone")
    make_document(folder / "document.txt")
    make_questions(folder / "data")
    write_jsonl(folder / "data/train.jsonl", taught_rows(open_backbone(folder / "backbone"), folder / "document.txt"))
    return folder


LIMITS = {"max_length": 24, "max_target_length": 8}


def open_document_fleet(place, **sections):
    return open_fleet(document_run(place / "backbone", place / "data", place / "document.txt", **sections))


# ---- passages


def test_passages_are_whole_paragraphs_that_fit_and_all_of_the_text(place):
    tokenizer = open_backbone(place / "backbone").tokenizer
    text = (place / "document.txt").read_text()
    for most in (6, 10, 30, 45, 400):
        passages = cut(text, tokenizer, most)
        assert max(len(tokenizer(own, add_special_tokens=False)["input_ids"]) for own in passages) <= most
        assert " ".join(passages).split() == text.split()
    assert cut(text, tokenizer, 400) == [text.strip()]
    paragraphs = text.strip().split("\n\n")
    longest = max(len(tokenizer(own, add_special_tokens=False)["input_ids"]) for own in paragraphs)
    assert cut(text, tokenizer, longest) == paragraphs


def test_sentences_of_languages_with_and_without_spaces():
    assert sentences_of("One is here now. Two? And three are there!\nNo.") == [
        "One is here now.",
        "And three are there!",
    ]
    long = "这是一个很长的第一个句子在这里。第二个句子也是很长的句子吗？短。"
    assert sentences_of(long) == ["这是一个很长的第一个句子在这里。", "第二个句子也是很长的句子吗？"]
    assert sentences_of("Two words.") == ["Two words."]


@pytest.mark.parametrize(
    ("content", "words"), [(b"  \n", "is empty"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be read")]
)
def test_what_is_no_document_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "d.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"task.document=.*{words}"):
        read_document(str(tmp_path / "d.txt"))


# ---- teachers


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "glm4"])
def test_a_teacher_expects_what_the_stock_model_does_with_the_passage_in_front(tmp_path, model_type):
    backbone = open_backbone(make_reader(tmp_path / "backbone", model_type))
    document = make_document(tmp_path / "d.txt")
    passage = "w1 w2 w3 goes. w4 w5 w6 goes."
    question, answer = Question("facts", "Who w7 ?", near="w1 w2 w3 goes."), "w8 w9"
    (lesson, other) = teaching(backbone, document, passage).lessons(
        [(question, answer), (Question("facts", "Why ?"), "w3")]
    )
    tokenizer = backbone.tokenizer
    text = f"{passage}\n\nw1 w2 w3 goes.\n\nQuestion: Who w7 ?\nAnswer: w8 w9\n"
    ids = tokenizer(text)["input_ids"]
    logs = torch.log_softmax(stock_logits(tmp_path / "backbone", None, ids, 0), -1)
    places = [len(ids) - 4, len(ids) - 3, len(ids) - 2]
    assert lesson["tokens"] == ids[-3:], "the answer and its line break"
    for place, tokens, own in zip(places, lesson["ids"], lesson["logs"], strict=True):
        best = logs[place].topk(LESSON_TOKENS)
        assert tokens == best.indices.tolist()
        assert own == pytest.approx(best.values.tolist(), abs=6e-5), "kept to four decimals"
    assert len(other["tokens"]) == 2


def test_rows_follow_from_their_settings_alone(place):
    backbone, task = open_backbone(place / "backbone"), find_task(task_of(place / "document.txt"))
    passage = cut((place / "document.txt").read_text(), backbone.tokenizer, 20)[0]
    rows = synthesise(backbone, task, LENGTHS, passage, 0, ASKING)
    assert rows == synthesise(backbone, task, LENGTHS, passage, 0, ASKING)
    recalled = [row for row in rows if row["about"] == "recall"]
    assert recalled and all(row["answer"] in " ".join(passage.split()) for row in recalled)
    assert len({row["question"] for row in rows}) == len(rows)
    assert all(len(row["teacher"]["ids"]) == len(row["teacher"]["tokens"]) for row in rows)
    line = backbone.tokenizer.convert_tokens_to_ids("\n")
    assert all(row["teacher"]["tokens"][-1] == line for row in rows), "what did not end is no answer"


def test_lines_that_did_not_end_are_none(place):
    teacher = teaching(open_backbone(place / "backbone"), place / "document.txt", "w1 w2 w3 goes.")
    texts = [f"w{i} w{i + 1}" for i in range(8)]
    assert teacher.write(texts, DecodeSection(), most=1) == [""] * 8, "one token is no line"
    stops = DecodeSection(stop=[f"w{i}" for i in range(53)])
    assert teacher.write(texts, stops, most=1) == [""] * 8
    assert any(teacher.write(texts, DecodeSection(stop=["goes", "w"]), most=8))


# ---- the divergence


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
    """Documents, and a task of another kind, whose rows have no teacher."""
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
    ]
    raw = document_run(place / "backbone", place / "data", place / "document.txt", fleet={"members": members})
    together = follow(open_fleet(raw))
    for name in ("one", "two", "plain"):
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


# ---- what is refused


def change(row, **changes):
    return {**row, **changes}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda row: {key: value for key, value in row.items() if key != "teacher"}, "has no `teacher`.*promptfleet synthesise"),
        (lambda row: change(row, document="0" * 64), "made from another text than task.document="),
        (lambda row: change(row, answer="w1 w2 w3 w4 w5"), "are not the 6 of this backbone's tokenizer"),
        (lambda row: change(row, answer="w1\nw2"), "has a line break, which ends answers"),
        (lambda row: change(row, teacher={"tokens": [1]}), "not what promptfleet synthesise writes"),
        (lambda row: change(row, teacher={**row["teacher"], "logs": [[0.5] * 16] * len(row["teacher"]["tokens"])}), "not what"),
        (lambda row: change(row, teacher={**row["teacher"], "ids": [[1]]}), "not what promptfleet synthesise writes"),
    ],
)  # fmt: skip
def test_rows_that_no_teacher_of_this_document_has_made_are_refused(place, tmp_path, spoil, words):
    rows = [json.loads(line) for line in (place / "data/train.jsonl").read_text().splitlines()]
    write_jsonl(tmp_path / "train.jsonl", [rows[0], spoil(rows[1])])
    make_questions(tmp_path)
    with pytest.raises(UserError, match=rf"train.jsonl:2: .*{words}"):
        open_fleet(document_run(place / "backbone", tmp_path, place / "document.txt"))


def test_a_teacher_of_a_larger_vocabulary_is_refused(place, tmp_path):
    rows = [json.loads(line) for line in (place / "data/train.jsonl").read_text().splitlines()]
    rows[3]["teacher"]["ids"][0][-1] = 99
    write_jsonl(tmp_path / "train.jsonl", rows)
    make_questions(tmp_path)
    with pytest.raises(UserError, match="token 99, but the word embedding has"):
        open_fleet(document_run(place / "backbone", tmp_path, place / "document.txt"))


def test_a_missing_training_file_is_answered_with_what_makes_it(place, tmp_path):
    make_questions(tmp_path)
    with pytest.raises(UserError, match=r"train split .* is missing.*promptfleet synthesise writes train"):
        open_fleet(document_run(place / "backbone", tmp_path, place / "document.txt"))


def test_a_tokenizer_without_line_break_is_refused(tmp_path):
    make_writer(tmp_path / "backbone", "llama")
    backbone = open_backbone(tmp_path / "backbone")
    task = find_task(task_of(make_document(tmp_path / "d.txt")))
    with pytest.raises(UserError, match="no token for a line break"):
        encode(task, backbone.tokenizer, [("row", {"question": "w1", "answer": "w2"})], LENGTHS, ("text",))


def test_an_encoder_decoder_is_refused(place, tmp_path):
    make_reader(tmp_path / "t5", "t5")
    config = make_run(document_run(tmp_path / "t5", place / "data", place / "document.txt")).shared
    with pytest.raises(UserError, match="t5 is an encoder-decoder, whose decoder does not read documents"):
        check_lengths(config, describe_backbone(config.backbone, writes=True))


def test_answers_stop_at_line_breaks_unless_the_run_file_says_otherwise(place):
    assert open_document_fleet(place).members[0].spec.config.decode.stop == ["\n"]
    assert open_document_fleet(place, decode={"stop": ["w1"]}).members[0].spec.config.decode.stop == ["w1"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"facts": []}', '{"facts": [""]}', "no"])
def test_beginnings_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match="--beginnings"):
        read_beginnings(str(tmp_path / "b.json"))
