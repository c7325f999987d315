"""The server answers what `predict` answers, whatever shares a forward, and refuses a bad request alone."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time

import pytest

from launcher import cli
from tests.support.served import ask, served, some_row
from tests.support.tiny import write_jsonl


def same(found, wanted):
    """Equal to rounding: batches of other sizes multiply in another order."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            same(*pair)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-9)
    else:
        assert found == wanted


def hold(model):
    """Keep the model's thread waiting in its next batch; what lets it go, and how many requests each batch had."""
    go, sizes, answers = threading.Event(), [], model.answers

    def held(questions):
        sizes.append(len(questions))
        assert go.wait(60)
        return answers(questions)

    model.answers = held
    return go, sizes


async def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def at_once(service, held, send, asked):
    """Responses to requests of which all but the first wait while the model is busy with that one."""
    go, sizes = held
    first = asyncio.ensure_future(send(*asked[0]))
    await until(lambda: sizes)
    others = []
    for own in asked[1:]:
        others.append(asyncio.ensure_future(send(*own)))
        await until(lambda: service.batcher.length == len(others))
    go.set()
    return [await first, *(await asyncio.gather(*others))]


def predict(name, rows):
    return "POST", "/predict", {"prompt": name, "rows": rows}


def test_random_requests_that_share_batches_are_answered_as_predict_does(attached, encoder):
    model, names = attached
    chance = random.Random(3)
    asked = [(name, [some_row(name, chance) for _ in range(chance.randint(0, 4))]) for name in names * 6]
    chance.shuffle(asked)
    wanted = [model.predict(rows, names.index(name)) for name, rows in asked]
    held = hold(model)
    with served(model, names, encoder) as service:
        found = ask(service, lambda send: at_once(service, held, send, [predict(*own) for own in asked]))
    sizes = held[1]
    assert sizes == [1, len(asked) - 1], "what waited was one batch"
    for own, (name, _), rows in zip(found, asked, wanted, strict=True):
        assert own.status_code == 200, own.text
        assert own.json()["prompt"] == name
        same(own.json()["answers"], rows)


def test_the_verb_predict_says_the_same(attached, encoder, tmp_path):
    model, names = attached
    rows = [some_row("questions", random.Random(1)) for _ in range(3)]
    output = tmp_path / "out.jsonl"
    command = [
        "--prompt",
        encoder / "questions",
        "--input",
        write_jsonl(tmp_path / "in.jsonl", rows),
        "--output",
        output,
    ]
    assert cli.main(["predict", *map(str, command)]) == 0
    with served(model, names, encoder) as service:
        found = ask(service, lambda send: send(*predict("questions", rows))).json()["answers"]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    same([{**row, **answer} for row, answer in zip(rows, found, strict=True)], lines)


def test_a_batch_ends_at_the_budget_and_nothing_is_lost(attached, encoder):
    model, names = attached
    model.budget = 40
    chance = random.Random(4)
    asked = [("texts", [some_row("texts", chance)]) for _ in range(12)]
    wanted = [model.predict(rows, names.index(name)) for name, rows in asked]
    held, tokens = hold(model), []
    with served(model, names, encoder) as service:
        service.batcher._seen = lambda jobs, size: tokens.append((jobs, size))
        found = ask(service, lambda send: at_once(service, held, send, [predict(*own) for own in asked]))
    assert all(jobs == 1 or size <= 40 for jobs, size in tokens) and sum(jobs for jobs, _ in tokens) == 12
    assert max(held[1]) > 1
    for own, rows in zip(found, wanted, strict=True):
        same(own.json()["answers"], rows)


@pytest.mark.parametrize("row", [{"txt": "w1"}, {"text": 3}, {"text": "\ud83d"}, {}, {"text": None}, {"text": ["w1"]}])
def test_a_bad_row_is_refused_by_number_and_the_others_in_its_batch_answered(attached, encoder, row):
    model, names = attached
    wanted = model.predict([{"text": "w1 w2"}], names.index("texts"))
    held, good = hold(model), predict("texts", [{"text": "w1 w2"}])
    asked = [good, good, predict("texts", [{"text": "w3"}, row]), good]
    with served(model, names, encoder) as service:
        _, before, bad, behind = ask(service, lambda send: at_once(service, held, send, asked))
    assert held[1] == [1, 2], "those beside it were run together"
    assert bad.status_code == 400 and bad.json()["error"].startswith("row 2"), bad.text
    for own in (before, behind):
        same(own.json()["answers"], wanted)


def test_a_request_that_breaks_the_forward_breaks_no_other(attached, encoder, caplog):
    model, names = attached
    wanted = model.predict([{"text": "w1 w2"}], names.index("texts"))
    outputs = model.outputs

    def fragile(prompts, features):
        if any(len(own) == 3 for own in features) or sum(map(len, features)) > 4:
            raise RuntimeError("out of memory")
        return outputs(prompts, features)

    model.outputs = fragile
    held, asked = hold(model), [predict("texts", [{"text": "w1 w2"}] * n) for n in (1, 1, 3, 1)]
    with served(model, names, encoder) as service:
        found = ask(service, lambda send: at_once(service, held, send, asked))
    assert [own.status_code for own in found] == [200, 200, 500, 200]
    assert "memory" not in found[2].text and "out of memory" in caplog.text
    for place in (0, 1, 3):
        same(found[place].json()["answers"], wanted)


def test_prompts_that_write_and_prompts_that_class_share_a_decoder(writers, decoder):
    model, names = writers
    chance = random.Random(5)
    asked = [(name, [some_row(name, chance) for _ in range(2)]) for name in names * 3]
    wanted = [model.predict(rows, names.index(name)) for name, rows in asked]
    with served(model, names, decoder) as service:
        found = ask(service, lambda send: asyncio.gather(*(send(*predict(*own)) for own in asked)))
    for own, rows in zip(found, wanted, strict=True):
        assert own.status_code == 200, own.text
        same(own.json()["answers"], rows)


def test_generate_writes_as_the_model_does_and_mixes_prompts(writers, decoder):
    model, names = writers
    chance = random.Random(6)
    settings = [{}, {"num_beams": 3}, {"max_new_tokens": 3}, {"stop": ["w1"]}, {"sample": True, "temperature": 2.0}]
    asked = [(name, own, some_row("five", chance)["source"]) for name in ("five", "two", "drawn") for own in settings]
    wanted = [
        model.generate([text], names.index(name), **own)
        for name, own, text in asked
        if not (name == "drawn" and "num_beams" in own)
    ]
    asked = [own for own in asked if not (own[0] == "drawn" and "num_beams" in own[1])]
    with served(model, names, decoder) as service:
        bodies = [{"prompt": name, "texts": [text], "settings": own} for name, own, text in asked]
        found = ask(service, lambda send: asyncio.gather(*(send("POST", "/generate", body) for body in bodies)))
    assert [own.json().get("texts", own.text) for own in found] == wanted


@pytest.mark.parametrize("settings", [{}, {"stop": ["w1 w", "7"]}, {"sample": True}])
def test_a_stream_adds_up_to_the_text(writers, decoder, settings):
    model, names = writers
    chance = random.Random(7)
    with served(model, names, decoder) as service:
        for _ in range(4):
            text = some_row("five", chance)["source"]
            (wanted,) = model.generate([text], names.index("five"), **settings)
            body = {"prompt": "five", "texts": [text], "settings": settings, "stream": True}
            found = ask(service, lambda send, body=body: send("POST", "/generate", body))
            assert found.headers["content-type"].startswith("text/event-stream")
            events = [json.loads(line.removeprefix("data: ")) for line in found.text.split("\n\n") if line]
            assert events[-1] == {"done": True, "text": wanted}
            assert "".join(event["text"] for event in events[:-1]) == wanted
        assert len(events) > 2, "pieces, not a whole"
