"""ONNX: milliseconds a batch of an exported graph in onnxruntime beside torch, from tokens to logits.

    promptfleet export runs/quickstart --format onnx --int8 examples/tickets/test.jsonl --output onnx/tickets
    python benchmarks/onnx_speed.py runs/quickstart onnx/tickets --rows examples/tickets/test.jsonl

By turns in one process, with equal threads. Batches mix all prompts. torch runs the packed forward of `predict`, without padding; a
graph takes the same rows padded to the longest. How far their logits are apart is printed too.
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
import json
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks import timing
from launcher.ranks.environment import quiet_libraries
from prompt_tuning import attach, load_prompt
from prompt_tuning.data.stream import open_source
from prompt_tuning.onnx.check import packed_logits, padded
from prompt_tuning.serve.store import find_prompts
from prompt_tuning.tokens.features import Features


def torch_logits(model: Any, features: list[Features]) -> list[np.ndarray]:
    """Of row after row, by turns of the prompts, as many as each has."""
    found = [iter(own) for own in packed_logits(model, features)]
    return [next(found[i % len(found)]) for i in range(sum(map(len, features)))]


def graph_logits(session: Any, features: list[Features]) -> np.ndarray:
    """The same of a graph, in one batch."""
    count = sum(map(len, features))
    pairs = [(i % len(features), i // len(features)) for i in range(count)]
    fed = padded(features, pairs, np.random.default_rng(0))
    (logits,) = session.run(None, {own.name: fed[own.name] for own in session.get_inputs()})
    return np.asarray(logits)


def difference(found: np.ndarray, expected: list[np.ndarray]) -> float:
    """The largest."""
    return float(np.max([np.abs(a[: len(b)] - b).max() for a, b in zip(found, expected, strict=True)]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("prompts", type=Path, help="the run, or a folder with its prompts below it")
    options.add_argument("graph", type=Path, help="what `promptfleet export --format onnx` wrote of them")
    options.add_argument("--rows", required=True, help="a file of texts")
    options.add_argument("--batch-rows", type=int, nargs="+", default=[1, 32], help="(default: 1 32)")
    options.add_argument("--repeats", type=int, default=10, help="(default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet_libraries()
    places = find_prompts([chosen.prompts])
    names = [own["name"] for own in json.loads((chosen.graph / "model.json").read_text())["prompts"]]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = chosen.threads
    sessions = {
        file.stem: onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        for file in sorted(chosen.graph.glob("*.onnx"))
    }
    report = []
    for count in chosen.batch_rows:
        some = names[:count]
        model = attach([load_prompt(places[name]) for name in some])
        with open_source(chosen.rows, model.tasks[0]) as source:
            rows = list(source.rows())[:count]
        asked = [model.question(place, rows[place :: len(some)]) for place in range(len(some))]
        features = [own.features for own in asked if own.features is not None]
        tasks = {"torch": lambda m=model, f=features: torch_logits(m, f)}
        for name, session in sessions.items():
            tasks[name] = lambda s=session, f=features: graph_logits(s, f)
        seconds, logits = timing.by_turns(tasks, chosen.repeats, "cpu")
        lengths = np.concatenate([np.diff(own.offsets) for own in features])
        report.append(
            {
                "rows": len(lengths),
                "tokens": {"mean": float(lengths.mean()), "longest": int(lengths.max())},
                "milliseconds": {name: 1000 * timing.median(own) for name, own in seconds.items()},
                "times_torch": {name: timing.ratio(seconds["torch"], seconds[name]) for name in sessions},
                "largest_difference": {name: difference(logits[name][0], logits["torch"][0]) for name in sessions},
            }
        )
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
