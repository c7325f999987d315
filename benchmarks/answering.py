"""Who answers requests in `serving.py`, each in a process of its own: the server, asked by many clients at once, and loops.

All take :data:`Requests`, and answer each with its probabilities and the seconds that its client waited.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from model_parallel.memory import process_memory

ROOT = Path(__file__).resolve().parent.parent
Requests = Sequence[tuple[int, str]]
"""A prompt's number and a text."""
Answers = tuple[list[list[float]], list[float]]
"""Probabilities and seconds of each request."""


@dataclass
class Contender:
    """A process that answers, and what it took."""

    pid: int
    start_seconds: float
    """Until it answers: imports, backbone and prompts."""
    answer: Callable[[Requests], Answers]
    stop: Callable[[], None]
    metrics: Callable[[], dict[str, float]] = dict
    """What it says of its prompts."""
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Anonymous bytes, at the start and after each round."""

    def __post_init__(self) -> None:
        self.memory.append(self._anonymous())

    def round(self, requests: Requests, is_timed: bool) -> list[list[float]]:
        """Answer all requests once."""
        busy, began = self._busy(), time.perf_counter()
        answers, waits = self.answer(requests)
        seconds, processor_seconds = time.perf_counter() - began, self._busy() - busy
        self.memory.append(self._anonymous())
        if is_timed:
            self.seconds.append(seconds)
            self.processor_seconds.append(processor_seconds)
            self.waits += waits
        return answers

    def _busy(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def _anonymous(self) -> int:
        return process_memory(Path(f"/proc/{self.pid}/status")).get("anonymous", 0)


def serve(folder: Path, clients: int, threads: int, *options: str) -> Contender:
    """`promptfleet serve` on a free port, asked by so many clients over connections that they keep."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "launcher.cli", "serve", str(folder), "--port", "0", *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.match(r"serving \d+ prompts on http://([\d.]+):(\d+)", line)
    if found is None:
        raise RuntimeError(f"promptfleet serve did not start: {line}{process.communicate()[1]}")

    def stop() -> None:
        process.terminate()
        process.communicate(timeout=60)

    def answer(requests: Requests) -> Answers:
        return asyncio.run(_ask(*where, clients, requests))

    where = found[1], int(found[2])
    return Contender(process.pid, time.perf_counter() - began, answer, stop, partial(_metrics, *where))


async def _ask(host: str, port: int, clients: int, requests: Requests) -> Answers:
    answers: list[list[float]] = [[] for _ in requests]
    waits = [0.0] * len(requests)
    coming = iter(enumerate(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for place, (prompt, text) in coming:
            began = time.perf_counter()
            answer = await _post(reader, writer, {"prompt": str(prompt), "rows": [{"text": text}]})
            waits[place] = time.perf_counter() - began
            answers[place] = list(answer["answers"][0]["probabilities"].values())
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, waits


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: dict[str, Any]) -> Any:
    """Send a body to `/predict`; the answer's. Raises :class:`RuntimeError` for every status but 200."""
    body = json.dumps(content).encode()
    lines = ["POST /predict HTTP/1.1", "Host: here", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"(?im)^content-length: *(\d+)", head)
    answer = await reader.readexactly(int(length[1]) if length else 0)
    if not head.startswith("HTTP/1.1 200 "):
        raise RuntimeError(f"{head.splitlines()[0]}: {answer.decode()}")
    return json.loads(answer)


def _metrics(host: str, port: int) -> dict[str, float]:
    """What a server says of its prompts."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("promptfleet_prompt")}


def loop(make: Callable[[], Callable[[int, str], list[float]]], threads: int) -> Contender:
    """A loop that answers one request after the other; ``make`` runs in its process."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, make, threads), daemon=True)
    began = time.perf_counter()
    process.start()
    there.close()
    here.recv()

    def answer(requests: Requests) -> Answers:
        here.send(requests)
        found: Answers = here.recv()
        return found

    def stop() -> None:
        here.send(None)
        process.join(60)

    assert process.pid is not None
    return Contender(process.pid, time.perf_counter() - began, answer, stop)


def _work(pipe: Any, make: Callable[[], Callable[[int, str], list[float]]], threads: int) -> None:
    import torch

    from launcher.ranks.environment import quiet_libraries

    torch.set_num_threads(threads)
    quiet_libraries()
    one = make()
    pipe.send(None)
    while (requests := pipe.recv()) is not None:
        answers, waits = [], []
        for prompt, text in requests:
            began = time.perf_counter()
            answers.append(one(prompt, text))
            waits.append(time.perf_counter() - began)
        pipe.send((answers, waits))
