"""OpenAI's protocol for chats: replies of prompts that were trained on conversations."""

from __future__ import annotations

import json

import pytest

from prompt_tuning.errors import UserError
from tests.support.generation import make_passages, writing_run
from tests.support.served import ask, attach_all, export, served
from tests.support.tiny import run_json, write_jsonl
from tests.unit.test_chat import CHAT, backbone, said  # noqa: F401

ASKED = CHAT[:4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backbone):  # noqa: F811
    """Two prompts on one backbone: of conversations, and of texts."""
    place = tmp_path_factory.mktemp("served")
    for split in ("train", "dev"):
        write_jsonl(place / "chats" / f"{split}.jsonl", [{"messages": CHAT}, {"messages": CHAT[:3]}])
    raw = run_json(backbone, place / "chats", data={"max_length": 20, "max_target_length": 5})
    export(place, "chat", {**raw, "task": {"kind": "generation", "messages": "messages"}})
    export(place, "texts", writing_run(backbone, make_passages(place / "passages")))
    return place / "prompts"


def chat(service, messages=ASKED, **body):
    return ask(
        service, lambda send: send("POST", "/v1/chat/completions", {"model": "chat", "messages": messages, **body})
    )


def test_a_reply_is_what_the_prompt_writes_to_the_conversation(folder):
    model, names = attach_all(folder)
    (wanted,) = model.generate([ASKED], names.index("chat"))
    (alone,) = model.generate([ASKED[3:]], names.index("chat"))
    assert model.generate([ASKED[3]["content"]], names.index("chat")) == [alone] != [wanted]
    with served(model, names, folder) as service:
        whole, parts = (
            chat(service),
            chat(service, [*ASKED[:3], {**ASKED[3], "content": [{"type": "text", "text": "w5"}]}]),
        )
        short = chat(service, max_tokens=4, max_completion_tokens=2).json()
    body = whole.json()
    assert body["object"] == "chat.completion" and body["choices"][0]["message"] == {
        "role": "assistant",
        "content": wanted,
    }
    assert parts.json()["choices"] == body["choices"]
    ((_, ids),) = model.sources(names.index("chat"), [ASKED])
    assert body["usage"]["prompt_tokens"] == len(ids)
    assert short["usage"]["completion_tokens"] == 2 and short["choices"][0]["finish_reason"] == "length"


def test_a_stream_adds_up(folder):
    model, names = attach_all(folder)
    with served(model, names, folder) as service:
        whole = chat(service, temperature=0).json()
        found = chat(service, temperature=0, stream=True)
    *events, last = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert last == "[DONE]" and {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(piece["delta"]["content"] for piece in pieces) == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "texts"}, "was trained on texts, and not on conversations"),
        ({"messages": []}, "`messages` is []"),
        ({"messages": CHAT}, "the last message is the assistant's"),
        ({"messages": [{"role": "user"}]}, "no `messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"messages": said(("tool", "w1"))}, "does not take messages of tool"),
        ({"messages": said(("u", "w1 " * 30))}, "data.max_length is 20"),
        ({"messages": said(("u", "\ud83d"))}, "half of a surrogate pair"),
        ({"tools": []}, "`tools` is not done here"),
        ({"prompt": "w1"}, "`prompt` is not done here"),
    ],
)
def test_what_cannot_be_answered_is_said(folder, body, words):
    model, names = attach_all(folder)
    with served(model, names, folder) as service:
        found = chat(service, **body)
    assert found.status_code == 400 and words in found.json()["error"]["message"], found.text


def test_python_says_it_too(folder):
    model, names = attach_all(folder)
    with pytest.raises(UserError, match="text 1: the prompt was trained on texts"):
        model.generate([ASKED], names.index("texts"))
    with pytest.raises(UserError, match="text 2: message 1 is no object"):
        model.generate(["w1", ["w2"]], names.index("chat"))
