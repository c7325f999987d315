"""Rows about a document: passages, what a teacher expects, and rows that are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.documents.context import context_ids
from prompt_tuning.documents.questions import BLANK, read_beginnings
from prompt_tuning.documents.synthesise import Question, Teaching, _gaps, _halves, _told, synthesise
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.build import check_lengths
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.lessons import LESSON_TOKENS
from prompt_tuning.tokens.passages import cut, read_document, sentences_of
from tests.support.documents import (
    ASKING,
    LENGTHS,
    document_run,
    make_document,
    make_place,
    make_questions,
    make_reader,
    open_backbone,
    open_document_fleet,
    task_of,
    teaching,
)
from tests.support.fleets import make_run, open_fleet
from tests.support.generation import make_writer, stock_logits
from tests.support.rows import encode
from tests.support.tiny import write_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("documents"))


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


def test_gaps_and_halves_are_the_passage_s_own_words():
    sentence = (
        'Twelve "new" lamps stand on the pier of Eskholm, and nobody may touch the third of them at night or ever.'
    )
    words = sentence.replace('"', "'").split()
    for around, answer in _gaps(sentence, 5):
        before, _, behind = around.partition(BLANK)
        whole = [*before.split(), *answer.split(), *behind.split()]
        start = next(i for i in range(len(words)) if words[i : i + len(whole)] == whole)
        assert 1 <= len(answer.split()) <= 3 and before and start + len(whole) <= len(words)
    assert len({answer for _, answer in _gaps(sentence, 5)}) == 3
    for first, rest in _halves(sentence, 5):
        assert f"{first} {rest}".split() == words
    assert _gaps("word", 1) == [] == _halves("two words", 1)


def test_answers_that_the_passage_does_not_make_likelier_are_left_out(place):
    backbone = open_backbone(place / "backbone")
    teacher, nobody = (teaching(backbone, place / "document.txt", text) for text in ("w1 w2 w3 w4 goes.", ""))
    pairs = [(Question("facts", f"Who w{i} ?", near="w9 w8"), f"w{i + 1} w{i + 2}") for i in range(12)]
    blind = [(replace(own, near=""), answer) for own, answer in pairs]
    gains = np.array(teacher.likelihoods(pairs)) - np.array(nobody.likelihoods(blind))
    told = _told(pairs, teacher, nobody)
    assert told == [pairs[i] for i in np.argsort(-gains) if gains[i] > 0] and 0 < len(told) < len(pairs)


def test_answers_go_with_their_questions(place, monkeypatch):
    teacher = teaching(open_backbone(place / "backbone"), place / "document.txt", "w1 w2 goes.")
    monkeypatch.setattr(
        Teaching, "write", lambda _, texts, decode: [text.split()[2] * (len(texts) > 2) for text in texts]
    )
    given, own = Question("gaps", "Who ?", answer="w7"), [Question("facts", f"Who w{i} ?") for i in range(3)]
    assert teacher.answered([given, *own, given]) == [
        (given, "w7"),
        *((q, f"w{i}") for i, q in enumerate(own)),
        (given, "w7"),
    ]
    assert teacher.answered([given, own[0]]) == [(given, "w7")], "what does not end is no answer"


def test_likelihoods_are_the_stock_model_s(place):
    teacher = teaching(open_backbone(place / "backbone"), place / "document.txt", "w1 w2 w3 goes.")
    (found,) = teacher.likelihoods([(Question("facts", "Who w5 ?"), "w6 w7")])
    tokenizer = teacher.backbone.tokenizer
    texts = ("w1 w2 w3 goes.", teacher.before(Question("facts", "Who w5 ?")) + teacher.task.separator, "w6 w7\n")
    context, source, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    ids = [*context_ids(teacher.backbone, "").tolist(), *context, *source, *answer]
    logs = stock_logits(place / "backbone", None, ids, 0).log_softmax(-1)
    expected = sum(logs[-1 - len(answer) + i, token].item() for i, token in enumerate(answer))
    assert found == pytest.approx(expected, abs=1e-9)


def test_lines_that_did_not_end_are_none(place):
    teacher = teaching(open_backbone(place / "backbone"), place / "document.txt", "w1 w2 w3 goes.")
    texts = [f"w{i} w{i + 1}" for i in range(8)]
    assert teacher.write(texts, DecodeSection(), most=1) == [""] * 8, "one token is no line"
    stops = DecodeSection(stop=[f"w{i}" for i in range(53)])
    assert teacher.write(texts, stops, most=1) == [""] * 8
    assert any(teacher.write(texts, DecodeSection(stop=["goes", "w"]), most=8))


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
