"""What is not answered: too many, too large, too late, without a key, and whatever strangers send."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from collections import Counter

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.serve.bounds import Limits
from prompt_tuning.serve.limits import Keys
from prompt_tuning.serve.server import bind
from tests.support.served import ask, served
from tests.unit.serve.test_answers import at_once, hold, predict, same, until

ROWS = [{"text": "w1 w2"}]
GOOD = predict("texts", ROWS)


def sentence(found):
    """The one line that a refusal says."""
    assert found.headers["content-type"] == "application/json"
    (line,) = found.json().values()
    if found.request.url.path.startswith("/v1/"):
        assert line["type"] == ("invalid_request_error" if found.status_code < 500 else "server_error")
        line = line["message"]
    assert list(found.json()) == ["error"] and "\n" not in line and "Traceback" not in line
    return line


def test_more_requests_than_allowed_are_sent_away_and_the_others_answered(attached, encoder):
    model, names = attached
    wanted = model.predict(ROWS, names.index("texts"))
    go, sizes = hold(model)

    async def story(send):
        inside = [asyncio.ensure_future(send(*GOOD)) for _ in range(4)]
        await until(lambda: sizes and service.app.gate.inside == 4)
        late = await send(*GOOD)
        read = await send("GET", "/prompts")
        go.set()
        return late, read, await asyncio.gather(*inside), await send(*GOOD)

    with served(model, names, encoder, limits=Limits(requests=4)) as service:
        late, read, inside, after = ask(service, story)
    assert (late.status_code, late.headers["retry-after"]) == (429, "1") and "4 requests" in sentence(late)
    assert read.status_code == 200, "reading does not wait"
    for own in (*inside, after):
        same(own.json()["answers"], wanted)


def test_a_request_that_is_late_says_whether_it_was_running(attached, encoder):
    model, names = attached
    go, sizes = hold(model)

    async def story(send):
        running = asyncio.ensure_future(send(*GOOD))
        await until(lambda: sizes)
        found = await asyncio.gather(running, send(*GOOD))
        go.set()
        return found, await send(*GOOD)

    with served(model, names, encoder, limits=Limits(seconds=0.3)) as service:
        (running, waiting), _ = ask(service, story)
    assert running.status_code == 504 and "did not answer within 0.3 s" in sentence(running)
    assert waiting.status_code == 503 and "has waited 0.3 s" in sentence(waiting)
    assert sizes[:2] == [1, 1], "what was given up while it waited was not run"


def test_a_client_that_goes_takes_its_waiting_request_along(attached, encoder):
    model, names = attached
    go, sizes = hold(model)

    async def story(send):
        running = asyncio.ensure_future(send(*GOOD))
        await until(lambda: sizes)
        sent = iter([{"type": "http.request", "body": json.dumps(GOOD[2]).encode()}, {"type": "http.disconnect"}])

        async def receive():
            return next(sent)

        async def ignore(message):
            pass

        headers = [(b"content-type", b"application/json")]
        await service.app({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, ignore)
        go.set()
        return await running

    with served(model, names, encoder) as service:
        assert ask(service, story).status_code == 200
    assert sizes == [1]


def test_sizes_are_limited(attached, encoder):
    model, names = attached
    with served(model, names, encoder, limits=Limits(rows=3, body_bytes=2000, tokens=60)) as service:

        async def unsaid():
            for _ in range(5):
                yield b" " * 500

        async def story(send):
            json_type = {"Content-Type": "application/json"}
            return [
                await send(*predict("texts", ROWS * 4)),
                await send(*predict("texts", [{"text": "w1 " * 900}])),
                await send("POST", "/predict", content=unsaid(), headers=json_type),
                await send(*predict("questions", [{"question": "w1", "context": "w2 " * 200}])),
                await send(*predict("texts", ROWS)),
            ]

        *refused, good = ask(service, story)
    assert [own.status_code for own in refused] == [413] * 4 and good.status_code == 200
    for own, words in zip(refused, ["4 rows; send 3", "send 2000 at most", "more than 2000", "send 60"], strict=True):
        assert words in sentence(own)


def test_a_body_that_does_not_arrive_is_given_up(attached, encoder):
    model, names = attached

    async def never():
        yield b"{"
        await asyncio.Event().wait()

    with served(model, names, encoder, limits=Limits(body_seconds=0.1)) as service:
        headers = {"Content-Type": "application/json"}
        found = ask(service, lambda send: send("POST", "/predict", content=never(), headers=headers))
    assert found.status_code == 408 and "did not arrive" in sentence(found)


def test_keys_are_asked_of_everyone_but_the_watchman(attached, encoder):
    model, names = attached
    with served(model, names, encoder, keys=Keys(["one", "zwei-ü"])) as service:

        async def status(send, value, path="/prompts"):
            return (await send("GET", path, headers={} if value is None else {"Authorization": value})).status_code

        async def story(send):
            wrong = [None, "one", "Bearer", "Bearer ", "Bearer on", "Bearer one two", "Basic one", b"Bearer \xff"]
            right = ["Bearer one", "bearer one", "Bearer zwei-ü".encode()]
            assert [await status(send, value) for value in wrong] == [401] * len(wrong)
            assert [await status(send, value) for value in right] == [200] * 3
            assert await status(send, None, "/health") == 200 and await status(send, None, "/metrics") == 401
            return await send(*GOOD)

        found = ask(service, story)
    assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer" and "API key" in sentence(found)


def test_a_stopping_server_lets_nobody_in_and_answers_those_inside(attached, encoder):
    model, names = attached
    wanted = model.predict(ROWS, names.index("texts"))
    go, sizes = hold(model)

    async def story(send):
        inside = [asyncio.ensure_future(send(*GOOD)) for _ in range(3)]
        await until(lambda: sizes and service.app.gate.inside == 3)
        service.stop()
        late, health = await send(*GOOD), await send("GET", "/health")
        assert not service.is_empty
        go.set()
        return late, health, await asyncio.gather(*inside)

    with served(model, names, encoder) as service:
        late, health, inside = ask(service, story)
        assert service.is_empty
    assert (
        late.status_code == health.status_code == 503 and "stopping" in sentence(late) and "retry-after" in late.headers
    )
    for own in inside:
        same(own.json()["answers"], wanted)


def test_metrics_count(attached, encoder):
    model, names = attached
    held = hold(model)
    with served(model, names, encoder) as service:
        ask(service, lambda send: at_once(service, held, send, [GOOD, GOOD, predict("tags", [{"words": ["w1"]}] * 3)]))
        ask(service, lambda send: send(*predict("none", [])))
        lines = ask(service, lambda send: send("GET", "/metrics")).text.splitlines()
    for line in (
        'promptfleet_requests_total{path="/predict",status="200"} 3.0',
        'promptfleet_requests_total{path="/predict",status="404"} 1.0',
        "promptfleet_rows_total 5.0",
        "promptfleet_batch_requests_count 2.0",
        "promptfleet_batch_requests_sum 3.0",
        "promptfleet_queue_length 0.0",
        f"promptfleet_prompts {len(names)}.0",
        'promptfleet_request_seconds_count{path="/predict"} 4.0',
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"prompt": NaN}', "NaN is not a number"),
        (b"[" * 5000, "nested too deep"),
        (b"9" * 9999, "not JSON"),
        ([], "not a JSON object"),
        ({}, "no `prompt`"),
        ({"prompt": "texts"}, "no `rows`"),
        ({"prompt": 3, "rows": []}, "`prompt` is 3"),
        ({"prompt": "texts", "rows": {}}, "`rows` is {}"),
        ({"prompt": "texts", "rows": [], "row": 1}, 'unknown key "row"'),
        ({"prompt": "texts", "rows": [3]}, "row 1 is not an object"),
        ({"prompt": "../texts\n", "rows": []}, "no prompt"),
    ],
)
def test_a_body_that_is_none_is_refused(attached, encoder, body, words):
    model, names = attached
    with served(model, names, encoder) as service:
        found = ask(service, lambda send: send("POST", "/predict", body))
    assert 400 <= found.status_code < 500 and words in sentence(found)


def test_other_paths_methods_and_types_are_refused(attached, encoder):
    model, names = attached

    async def story(send):
        plain = {"content": json.dumps(GOOD[2]).encode(), "headers": {"Content-Type": "text/plain"}}
        return [
            await send("GET", "/"),
            await send("GET", "/predict"),
            await send("POST", "/predict/", {}),
            await send("POST", "/predict", **plain),
        ]

    with served(model, names, encoder) as service:
        found = ask(service, story)
    assert [own.status_code for own in found] == [404, 405, 404, 415] and all(map(sentence, found))


VALUES = [
    None, True, 0, -1, 10**400, 1e308, "", "w1", "\ud83d", "\0", "w1 " * 50, [], {}, [None], ["w1", 3], {"a": [{}]}, [["w1"]],
]  # fmt: skip
KEYS = ["prompt", "rows", "text", "words", "question", "context", "premise", "choice1", "choice2", "label", "texts", "source",
        "settings", "stream", "folder", "name", "max_new_tokens", "num_beams", "stop", "temperature", "sample", "\ud83d", "model", "seed",
        "top_p", "max_tokens", "logprobs", "stream_options", "n", "echo", "messages", "role", "content", "type",
        "max_completion_tokens"]  # fmt: skip


def some_value(chance, depth=0):
    """A JSON value, seldom a sensible one."""
    if depth < 4 and chance.random() < 0.4:
        if chance.random() < 0.4:
            return [some_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
        return {chance.choice(KEYS): some_value(chance, depth + 1) for _ in range(chance.randint(0, 4))}
    return chance.choice(VALUES)


def some_request(chance, names):
    """A request that is right but for one or two places."""
    path, method = (
        chance.choice(["/predict", "/predict", "/generate", "/prompts", "/v1/completions", "/v1/chat/completions"]),
        "POST",
    )
    if chance.random() < 0.05:
        return "DELETE", f"/prompts/{chance.choice(['%00', '..', '%2e%2e%2f', 'no', 'x' * 300, '%F0%9F'])}", None
    row = {key: chance.choice([*VALUES, "w1 w2", ["w1"]]) for key in chance.sample(KEYS[2:12], chance.randint(1, 6))}
    rows = [row, some_value(chance)][: chance.randint(0, 2)]
    body = {
        "/predict": {"prompt": chance.choice(names), "rows": rows},
        "/generate": {"prompt": chance.choice(names), "texts": ["w1"], "settings": {"max_new_tokens": 1}},
        "/v1/completions": {"model": chance.choice(names), "prompt": ["w1"], "max_tokens": 1},
        "/v1/chat/completions": {
            "model": chance.choice(names),
            "messages": [{"role": "user", "content": "w1"}],
            "max_tokens": 1,
        },
        "/prompts": {"folder": chance.choice(["no", "..", "/etc", "a/../..", "x" * 5000, "\0"]), "name": "n"},
    }[path]
    if chance.random() < 0.6:
        where = chance.choice([body, body.get("settings", body), row])
        where[chance.choice([*body, *KEYS])] = some_value(chance)
    if chance.random() < 0.1:
        body = some_value(chance)
    content = json.dumps(body).encode()
    if chance.random() < 0.15:
        flipped = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            flipped[chance.randrange(len(flipped))] = chance.randrange(256)
        content = bytes(flipped)
    return method, path, content


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_nothing_that_is_sent_breaks_anything(request, kind, caplog):
    """10,000 requests, many at once: each gets an answer or one sentence."""
    model, names = request.getfixturevalue({"encoder": "attached", "decoder": "writers"}[kind])
    chance = random.Random(kind)
    asked = [some_request(chance, names) for _ in range(5000)]

    async def story(send):
        found = []
        for start in range(0, len(asked), 50):
            found += await asyncio.gather(*(send(*own) for own in asked[start : start + 50]))
        return found

    with served(model, names, request.getfixturevalue(kind)) as service:
        found = ask(service, story)
        assert service.batcher.is_alive and service.is_empty
        assert ask(service, lambda send: send("GET", "/health")).json() == {"status": "ok", "prompts": len(names)}
    for own, answer in zip(asked, found, strict=True):
        assert answer.status_code < 500, (own, answer.text)
        assert answer.status_code == 200 or sentence(answer)
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    counts = Counter(own.status_code for own in found)
    assert min(counts[200], counts[400], counts[404]) > 100, counts


def test_a_port_that_is_taken_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: .*; choose another"):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match="--port 99999"):
        bind("127.0.0.1", 99999)
