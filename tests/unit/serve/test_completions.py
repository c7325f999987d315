"""OpenAI's protocol: texts, counts, reasons and streams are those of the prompts; what is not done is refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from prompt_tuning.forward.write import write_texts
from prompt_tuning.serve.completions import Completion
from prompt_tuning.settings.decode import DecodeSection
from tests.support.served import ask, served

TEXT = "w1 w2 w3"


def complete(service, **body):
    return ask(service, lambda send: send("POST", "/v1/completions", {"model": "five", "prompt": TEXT, **body}))


def test_models_are_the_prompts_that_write(writers, decoder):
    model, names = writers
    with served(model, names, decoder) as service:
        paths = ("/v1/models", "/v1/models/five", "/v1/models/classes", "/v1/models/none")
        listed, one, *others = ask(service, lambda send: asyncio.gather(*(send("GET", path) for path in paths)))
        refused = complete(service, model="classes")
    writing = {name for name, task in zip(names, model.tasks, strict=True) if task.is_written}
    assert {own["id"] for own in listed.json()["data"]} == writing and "classes" in set(names) - writing
    assert one.json()["id"] == "five" and [own.status_code for own in others] == [404, 404]
    assert refused.status_code == 400 and "writes no texts" in refused.json()["error"]["message"]


@pytest.mark.parametrize("count", [1, 2])
def test_texts_counts_and_reasons(writers, decoder, count):
    model, names = writers
    place = names.index("five")
    texts = [TEXT, "w5"][:count]
    sources = model.sources(place, texts)
    with served(model, names, decoder) as service:
        for most, stop in ((2, None), (9, None), (9, ["w"]), (9, "7")):
            found = complete(service, prompt=texts if count > 1 else TEXT, max_tokens=most, stop=stop, temperature=0)
            stops = [stop] if isinstance(stop, str) else stop or []
            wanted = model.generate(texts, place, max_new_tokens=most, stop=stops)
            body = found.json()
            assert [choice["text"] for choice in body["choices"]] == wanted, body
            assert body["object"] == "text_completion" and body["model"] == "five"
            decode = model.prompts[place].decode.model_copy(update={"max_new_tokens": most, "stop": stops})
            raw = write_texts(model.backbone, [own.prompt for own in model.prompts], sources, decode, most, 512)
            for choice, own, whole in zip(
                body["choices"], raw, model.generate(texts, place, max_new_tokens=most), strict=True
            ):
                is_cut = own.num_tokens == most and not any(piece in whole for piece in stops)
                assert choice["finish_reason"] == ("length" if is_cut else "stop")
            written = sum(own.num_tokens for own in raw)
            counted = sum(len(tokens) for _, tokens in sources)
            assert body["usage"] == {
                "prompt_tokens": counted,
                "completion_tokens": written,
                "total_tokens": counted + written,
            }


def test_a_temperature_draws_by_the_seed(writers, decoder):
    model, names = writers
    with served(model, names, decoder) as service:
        drawn = [complete(service, temperature=2, seed=seed).json()["choices"][0]["text"] for seed in (1, 1, 2, 3, 4)]
        free = {complete(service, temperature=2).json()["choices"][0]["text"] for _ in range(6)}
        greedy = {complete(service, temperature=0).json()["choices"][0]["text"] for _ in range(2)}
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1 and len(free) > 1 and len(greedy) == 1


def test_a_stream_adds_up_and_ends(writers, decoder):
    model, names = writers
    with served(model, names, decoder) as service:
        whole = complete(service, max_tokens=6, temperature=0).json()
        found = complete(service, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert last == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert [piece["finish_reason"] for piece in pieces][-1] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"logprobs": 5}, "`logprobs` is not done here; leave it out"),
        ({"suffix": "x"}, "`suffix` is not done here"),
        ({"n": 2}, "`n` is 2"),
        ({"echo": True}, "`echo` is true"),
        ({"presence_penalty": 0.5}, "`presence_penalty` is 0.5"),
        ({"temperature": -1}, "`temperature` is -1"),
        ({"temperature": "hot"}, '`temperature` is "hot"'),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"max_tokens": True}, "`max_tokens` is true"),
        ({"max_tokens": 10**6}, "at most"),
        ({"prompt": [1, 2]}, "`prompt.0` is 1: input should be a valid string"),
        ({"prompt": []}, "`prompt` is []"),
        ({"prompt": ["a", "b"], "stream": True}, "a stream is of one"),
        ({"prompt": 3}, "`prompt` is 3: input should be a valid list"),
        ({"stop": [""]}, "empty text"),
        ({"stop": ["a", 1]}, "`stop.1` is 1"),
        ({"n": True}, "`n` is true"),
        ({"echo": 0}, "`echo` is 0"),
        ({"logit_bias": {"5": 1}}, "`logit_bias` is"),
        ({"stream_options": {"include_obfuscation": False}}, "`stream_options.include_obfuscation` is not done here"),
        ({"model": None}, "no `model` in the body"),
    ],
)
def test_what_is_not_done_is_refused_in_the_protocols_shape(writers, decoder, body, words):
    model, names = writers
    with served(model, names, decoder) as service:
        found = complete(service, **body)
        unknown = complete(service, model="none")
    error = found.json()["error"]
    assert found.status_code in (400, 413) and words in error["message"], error
    assert error["type"] == "invalid_request_error" and error["code"] is None
    assert unknown.status_code == 404 and "no prompt 'none' here" in unknown.json()["error"]["message"]


def test_settings_that_change_nothing_are_taken(writers, decoder):
    model, names = writers
    with served(model, names, decoder) as service:
        plain = complete(service).json()
        nothing = {"n": 1, "best_of": 1, "echo": False, "frequency_penalty": 0, "logit_bias": {}, "user": "me"}
        same = complete(service, **nothing, logprobs=None, stop=None)
    assert same.json()["choices"] == plain["choices"]


def test_temperature_0_is_without_beams_and_drawing_whatever_the_prompt_was_trained_with():
    asked = Completion(model="five", prompt="w1", temperature=0)
    for trained in (DecodeSection(num_beams=3), DecodeSection(sample=True, temperature=2.0, top_p=0.5)):
        found = DecodeSection(**{**trained.model_dump(), **asked.settings(trained)})
        assert (found.num_beams, found.sample) == (1, False)
    drawn = Completion(model="five", prompt="w1", top_p=0.5)
    assert (
        drawn.settings(DecodeSection(num_beams=3))["sample"]
        and Completion(model="five", prompt="w1").settings(DecodeSection()) == {}
    )
