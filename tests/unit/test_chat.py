"""Chat messages as generation rows: a reply each, in the words of the tokenizer's own template."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from prompt_tuning.errors import UserError
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.fleets import open_fleet
from tests.support.generation import make_writer
from tests.support.rows import encode
from tests.support.tiny import run_json, write_jsonl

TEMPLATE = (
    "{{ '[CLS]' }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    " {{ {'system': 'w50', 'user': 'w51', 'assistant': 'w52'}[message.role] }} {{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %} w52{% endif %}"
)
TASK = find_task({"kind": "generation", "messages": "messages"})


def said(*pairs):
    return [
        {"role": {"s": "system", "u": "user", "a": "assistant"}.get(who, who), "content": text} for who, text in pairs
    ]


CHAT = said(("s", "w1"), ("u", "w2 w3"), ("a", "w4"), ("u", "w5"), ("a", "w6 w7"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = make_writer(tmp_path_factory.mktemp("chat") / "backbone", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(backbone):
    return AutoTokenizer.from_pretrained(backbone)


def features(tokenizer, messages, length=40):
    return encode(TASK, tokenizer, [("row", {"messages": messages})], Encoding(length, max_target_length=8), ("text",))


def sources(tokenizer, found):
    pieces = zip(found.offsets[:-1], found.notes.num_source, strict=True)
    return [tokenizer.convert_ids_to_tokens(found.tokens[first : first + count].tolist()) for first, count in pieces]


def test_each_reply_is_a_target_behind_what_the_template_writes_before_it(tokenizer):
    found = features(tokenizer, CHAT)
    for row, end in enumerate((2, 4)):
        text = tokenizer.apply_chat_template(CHAT[:end], tokenize=False, add_generation_prompt=True)
        assert sources(tokenizer, found)[row] == text.split(), "once, with one begin token"
    wanted = [tokenizer.convert_ids_to_tokens(int(i)) for i in found.tags if i >= 0]
    assert wanted == ["w4", "[SEP]", "w6", "w7", "[SEP]"]


def test_messages_may_be_json_texts_as_tables_keep_them(tokenizer):
    assert features(tokenizer, json.dumps(CHAT)).tokens.tolist() == features(tokenizer, CHAT).tokens.tolist()


def test_the_oldest_messages_go_first_with_what_answered_them_and_the_system_stays(tokenizer):
    found = features(tokenizer, CHAT, length=8)
    written = [" ".join(own) for own in sources(tokenizer, found)]
    assert written == ["[CLS] w50 w1 w51 w2 w3 w52", "[CLS] w50 w1 w51 w5 w52"]
    assert next(iter(found.remarks.values())) == (1, 2)
    with pytest.raises(UserError, match=r"last message has 7 tokens .* data.max_length is 6; raise it"):
        features(tokenizer, CHAT, length=6)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (said(("a", "w1"), ("u", "w2"), ("a", "w3")), "message 1 of `messages` is a reply to nothing"),
        (said(("s", "w1"), ("a", "w3")), "message 2 of `messages` is a reply to nothing"),
        ([], "is no list of messages"),
        ({"role": "user"}, "is no list of messages"),
        ("hello", "is a text, and no JSON list of messages"),
        ([{"role": "user"}], "message 1 is no object with the texts"),
        ([{"role": "user", "content": 3}], "message 1 is no object with the texts"),
        (said(("tool", "w1"), ("a", "w2")), "does not take messages of tool: no tools"),
    ],
)
def test_what_is_no_conversation_is_refused(backbone, tmp_path, messages, words):
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"messages": CHAT}, {"messages": messages}])
    with pytest.raises(UserError, match=words):
        open_fleet(chat_run(backbone, tmp_path))


def test_a_tokenizer_without_template_and_columns_of_both_ways_are_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_writer(tmp_path, "llama"))
    with pytest.raises(UserError, match="has no chat template"):
        features(tokenizer, CHAT)
    with pytest.raises(UserError, match="source is of texts, and messages are written by the chat template"):
        find_task({"kind": "generation", "messages": "messages", "source": "question"})


def chat_run(backbone, data):
    raw = run_json(backbone, data, data={"max_length": 24, "max_target_length": 6})
    return {**raw, "task": {"kind": "generation", "messages": "messages"}}


def test_a_trained_prompt_answers_conversations_and_single_texts_alike(backbone, tmp_path):
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"messages": CHAT}, {"messages": CHAT[:3]}])
    fleet = open_fleet(chat_run(backbone, tmp_path))
    assert len(fleet.members[0].splits["train"]) == 3
    first = fleet.train_step([0]).losses.item()
    for _ in range(4):
        fleet.members[0].step += 1
        last = fleet.train_step([0]).losses.item()
    assert last < first
    export_member(tmp_path / "prompt", fleet.members[0])
    model = attach(load_prompt(tmp_path / "prompt"))
    (text,) = model.generate(["w2 w3"])
    open_one, answered = said(("u", "w2 w3")), said(("u", "w2 w3"), ("a", "w9"))
    assert model.predict([{"messages": open_one}, {"messages": answered}]) == [{"text": text}] * 2
    assert model.predict([{"messages": CHAT[:4]}]) != [{"text": text}]
