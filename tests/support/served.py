"""Exported prompts of every kind, untrained but large enough to matter, and a service of them that is asked in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch

from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.report.results import export_member
from prompt_tuning.serve.app import Service
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.tiny import (
    WORDS,
    make_backbone,
    make_copa,
    make_questions,
    make_tags,
    make_texts,
    make_values,
    run_json,
)

Send = Callable[..., Awaitable[httpx2.Response]]


def export(folder: Path, name: str, raw: dict[str, Any]) -> None:
    """Export the prompt of a run that has not been trained."""
    member = build_fleet(resolve(raw, folder / "run.json"), Grid()).members[0]
    with torch.no_grad():
        for _, parameter in member.parameters:
            parameter.mul_(25)
    export_member(folder / "prompts" / name, member)


def export_encoder(folder: Path) -> Path:
    """Prompts of all kinds that an encoder answers, in ``prompts`` below a folder."""
    backbone, texts = make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts")
    span = {"kind": "span", "name": "questions", "has_null": True}
    runs = {
        "texts": run_json(backbone, texts),
        "short": run_json(backbone, texts, prompt={"length": 2, "positions": "from_zero"}, train={"seed": 5}),
        "head": run_json(backbone, texts, method="head", head={"pooling": "mean"}),
        "shallow": run_json(backbone, texts, method="shallow_prompt", prompt={"length": 3}),
        "tags": run_json(backbone, make_tags(folder / "tags"), task={"kind": "tagging", "name": "tags"}),
        "values": run_json(backbone, make_values(folder / "values"), task={"kind": "regression", "name": "values"}),
        "copa": run_json(backbone, make_copa(folder / "copa"), task="copa"),
        "questions": run_json(
            backbone, make_questions(folder / "questions"), task=span, data={"stride": 4, "max_length": 20}
        ),
    }
    for name, raw in runs.items():
        if name == "copa":
            raw["task"] = "copa"
        export(folder, name, raw)
    return folder / "prompts"


def export_decoder(folder: Path) -> Path:
    """Prompts of a decoder: three that write, one of them by chance, and one that names classes."""
    backbone, passages = make_writer(folder / "backbone", "llama"), make_passages(folder / "passages")
    runs = {
        "five": writing_run(backbone, passages),
        "two": writing_run(backbone, passages, prompt={"length": 2, "positions": "from_zero"}, train={"seed": 7}),
        "drawn": writing_run(backbone, passages, decode={"sample": True}, train={"seed": 8}),
        "classes": run_json(backbone, make_texts(folder / "texts")),
    }
    for name, raw in runs.items():
        export(folder, name, raw)
    return folder / "prompts"


def some_row(name: str, chance: Any) -> dict[str, Any]:
    """A row for a prompt of :func:`export_encoder` or :func:`export_decoder`."""

    def text(most: int = 12) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))

    if name == "tags":
        return {"words": text().split()}
    if name == "copa":
        return {"premise": text(), "question": "cause", "choice1": text(), "choice2": text()}
    if name == "questions":
        return {"question": text(3), "context": text(30)}
    if name in ("five", "two", "drawn"):
        return {"source": text(7)}
    return {"text": text()}


def attach_all(folder: Path) -> tuple[AttachedPrompts, list[str]]:
    """All prompts in a folder on their backbone, and their names."""
    names = sorted(path.name for path in folder.iterdir())
    return attach([load_prompt(folder / name) for name in names]), names


@contextmanager
def served(model: AttachedPrompts, names: list[str], folder: Path, **settings: Any) -> Any:
    """A service; its thread has ended afterwards."""
    service = Service(model, names, [folder], **settings)
    try:
        yield service
    finally:
        service.close()


def ask(service: Service, story: Callable[[Send], Awaitable[Any]]) -> Any:
    """Run a coroutine that is given what sends requests: ``send(method, path, body)``."""

    async def run() -> Any:
        transport = httpx2.ASGITransport(service.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:

            async def send(method: str, path: str, body: Any = None, **more: Any) -> httpx2.Response:
                if body is not None:
                    content = body if isinstance(body, bytes) else json.dumps(body).encode()
                    more = {"content": content, "headers": {"Content-Type": "application/json"}, **more}
                return await client.request(method, path, timeout=60, **more)

            return await story(send)

    return asyncio.run(run())
