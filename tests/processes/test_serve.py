"""`promptfleet serve` as a process: asked by many clients at once, asked to stop under load, and sent noise."""

from __future__ import annotations

import re
import signal
import socket
import threading
from contextlib import contextmanager

import httpx2
import pytest

from prompt_tuning import attach, load_prompt
from prompt_tuning.prompt.export import outline_prompt
from prompt_tuning.serve.shelf import tensor_bytes
from tests.support.processes import BIN, start
from tests.support.served import export_encoder
from tests.unit.serve.test_answers import same

pytestmark = pytest.mark.processes
CLIENTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_encoder(tmp_path_factory.mktemp("served"))


@contextmanager
def serving(*options, **variables):
    """A server on a free port, and where it is."""
    process = start(BIN / "promptfleet", "serve", *options, "--port", "0", **variables)
    try:
        line = process.stdout.readline()
        found = re.match(r"serving \d+ prompts on (http://\S+)", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("is_bounded", [False, True])
def test_under_load_a_stopping_server_answers_right_or_503(folder, is_bounded):
    names = ["texts", "short"]
    most = max(tensor_bytes(outline_prompt(own)) for own in folder.iterdir())
    options = ["--prompt-memory", f"{most}B"] if is_bounded else []
    model = attach([load_prompt(folder / name) for name in names])
    rows = [{"text": f"w{i} w{3 * i}"} for i in range(CLIENTS)]
    wanted = {name: model.predict(rows, place) for place, name in enumerate(names)}
    found, enough = [], threading.Event()

    def client(number, where):
        with httpx2.Client(base_url=where, timeout=60) as http:
            for turn in range(10_000):
                name = names[(number + turn) % 2]
                try:
                    answer = http.post("/predict", json={"prompt": name, "rows": [rows[number]]})
                except httpx2.ConnectError:  # it listens no longer
                    return
                except httpx2.TransportError as error:  # an idle connection was closed as it was used again
                    found.append((name, number, error))
                    return
                found.append((name, number, answer))
                if len(found) > 20 * CLIENTS:
                    enough.set()

    with serving(folder, *options) as (process, where):
        threads = [threading.Thread(target=client, args=(number, where)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        lines = httpx2.get(f"{where}/metrics").text.splitlines()
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output == "", output
    assert ("promptfleet_prompt_evictions_total 0.0" in lines) is not is_bounded
    answers = [(name, number, own) for name, number, own in found if isinstance(own, httpx2.Response)]
    assert len(found) - len(answers) <= CLIENTS
    for name, number, own in answers:
        if own.status_code == 200:
            same(own.json()["answers"], [wanted[name][number]])
        else:
            assert own.status_code == 503 and own.json() == {"error": "the server is stopping"}
    assert sum(own.status_code == 200 for *_, own in answers) > 20 * CLIENTS


def test_what_speaks_no_http_is_sent_away_and_keys_come_from_the_environment(folder):
    with serving(folder / "texts", PROMPTFLEET_API_KEYS="one two") as (process, where):
        host, port = where.removeprefix("http://").split(":")
        for noise in (
            b"\x00\xff\n\n",
            b"GET / HTTP/9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"G" * 70_000,
        ):
            with socket.create_connection((host, int(port)), timeout=60) as plain:
                plain.sendall(noise)
                assert plain.recv(20).startswith(b"HTTP/1.1 400") or noise[0] == 0
        assert httpx2.get(f"{where}/prompts").status_code == 401
        found = httpx2.get(f"{where}/prompts", headers={"Authorization": "Bearer two"}).json()
        assert [own["name"] for own in found["prompts"]] == ["texts"]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in output
