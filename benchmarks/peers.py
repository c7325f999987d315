"""Where other libraries' deep prompts raise an error or are silently wrong: PEFT, Adapters and PromptFleet, case by case.

    python benchmarks/peers.py --adapters /path/to/another/venv/bin/python

Every case is a tiny random backbone and eight texts of different lengths, on which each side takes thirty steps. Of PEFT and
Adapters the table has the error that they raise, or what was measured: losses, the first gradient of the prefix, and how far
the logits change when the trained prefix is taken away. Of PromptFleet it has losses too, and how far the first gradient of
the prefix is from an independent computation: transformers' model, one text at a time without padding, with its own cache or
with its layers written out, in float64.

Adapters needs an older transformers than PromptFleet, hence a Python of its own: `pip install adapters==1.3.0` there.
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
import math
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModel, AutoModelForTextEncoding, DynamicCache

from benchmarks.peer_probe import FIRST, LENGTH, RATE, SECOND, STEPS
from benchmarks.report import Report
from benchmarks.work import quiet
from model_parallel.grid import Grid
from prompt_tuning.backbone.families import families
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_texts
from tests.support.written_out import WRITTEN_OUT

ROWS = 8
NOTHING = 1e-5
"""Logits of the tiny models are near 1 and in float32: what changes them by less, changes nothing."""


@dataclass(frozen=True)
class Case:
    """Something that deep prompts should do."""

    name: str
    model_type: str
    changes: tuple[tuple[str, Any], ...] = ()
    """Of the tiny model's config."""
    checkpointing: bool = False
    is_mixed: bool = False
    """Whether rows of two prompts share a batch."""


CASES = (
    Case("BERT", "bert"),
    Case("ALBERT", "albert"),
    Case("DeBERTa", "deberta"),
    Case("DeBERTa-v2, v3", "deberta-v2"),
    Case("ModernBERT", "modernbert"),
    Case("DistilBERT", "distilbert"),
    # PEFT takes heads to be as wide as the model divided by their number, and T5's own sizes differ.
    Case("T5's encoder", "t5", (("d_kv", 8),)),
    Case("T5's encoder, heads of another size", "t5"),
    Case("Llama, rows of different lengths", "llama", (("head_dim", 8),)),
    Case("BERT, activation checkpointing", "bert", checkpointing=True),
    Case("ALBERT, activation checkpointing", "albert", checkpointing=True),
    Case("BERT, rows of two prompts in a batch", "bert", is_mixed=True),
)


def open_fleet(case: Case, folder: Path, data: Path) -> Fleet:
    """The case's prompts, each a member, over its backbone."""
    raw = {
        "task": {"kind": "classification", "name": "texts"},
        "backbone": {"path": str(folder), "dtype": "float64"},
        "data": {"path": str(data), "max_length": 32},
        "prompt": {"length": LENGTH},
        "head": {"pooling": "mean"},
        "optimizer": {"lr": RATE, "schedule": "constant"},
        "train": {
            "batch_size": ROWS,
            "max_steps": STEPS,
            "backbone_dropout": False,
            "activation_checkpointing": case.checkpointing,
        },
        "fleet": {"seeds": [11, 12] if case.is_mixed else [11]},
    }
    return build_fleet(resolve(raw, Path("peers.json"), output="runs/peers"), Grid())


def measure(case: Case, fleet: Fleet, folder: Path) -> dict[str, Any]:
    """By member: losses, the norm of the prefix's first gradient, and its distance from the independent one."""
    members = list(range(len(fleet.members)))
    prefixes = [member.prompt.prefix.embedding for member in fleet.members]
    loop, total = fleet.loops["train"], torch.zeros((), dtype=torch.float64)
    for batch in loop.batches([(i, fleet.members[i].step_examples(0), 1 / ROWS) for i in members]):
        for member, logits, wanted in loop.logits(batch):
            total = total + fleet.members[member].kind.loss(logits, wanted)
    gradients = torch.autograd.grad(total, prefixes)
    off = []
    for member, gradient, prefix in zip(fleet.members, gradients, prefixes, strict=True):
        (expected,) = torch.autograd.grad(independent_loss(member, case, folder), prefix)
        off.append(((gradient - expected).norm() / expected.norm()).item())
    losses = []
    for _ in range(STEPS):
        losses.append(fleet.train_step(members).losses.tolist())
        for member in fleet.members:
            member.step += 1
    return {
        "first_losses": losses[0],
        "last_losses": losses[-1],
        "gradients": [gradient.norm().item() for gradient in gradients],
        "off": off,
    }


def independent_loss(member: Member, case: Case, folder: Path) -> Tensor:
    """Of a member's first step, text by text through transformers' own model."""
    kind = AutoModelForTextEncoding if case.model_type == "t5" else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    prompt, features = member.prompt, member.splits["train"]
    table, losses = prompt.prefix.table(), []
    for example in member.step_examples(0).tolist():
        own = features.tokens[features.offsets[example] : features.offsets[example + 1]]
        hidden = _states(model, torch.from_numpy(own).long(), table, prompt.text_start)
        logits = linear(hidden.mean(0), prompt.head.weight, prompt.head.bias)
        losses.append(cross_entropy(logits, torch.tensor(int(features.labels[example]))))
    return torch.stack(losses).mean()


def _states(model: Any, ids: Tensor, table: Tensor, start: int) -> Tensor:
    """Last hidden states [L, H] of one text that sees a prefix [P, N, 2, heads, D]."""
    if model.config.model_type in WRITTEN_OUT:
        places = torch.arange(len(ids)) + start
        return WRITTEN_OUT[model.config.model_type](model, ids, torch.zeros_like(ids), places, table)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(table.permute(1, 2, 3, 0, 4)):
        cache.update(keys[None], values[None], layer)
    seen = torch.ones(1, len(table) + len(ids), dtype=torch.long)
    return model(input_ids=ids[None], attention_mask=seen, past_key_values=cache).last_hidden_state[0]


def for_others(case: Case, folder: Path, fleet: Fleet) -> dict[str, Any]:
    """The case with its rows, padded, as the other libraries' process reads it."""
    features = fleet.members[0].splits["train"]
    rows = [features.tokens[a:b].tolist() for a, b in zip(features.offsets, features.offsets[1:], strict=False)]
    longest, padding = max(map(len, rows)), fleet.backbone.description.pad_token
    return {
        "folder": str(folder),
        "is_encoder_of_two": case.model_type == "t5",
        "checkpointing": case.checkpointing,
        "is_mixed": case.is_mixed,
        "input_ids": [row + [padding] * (longest - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
        "labels": features.labels.tolist(),
    }


def probe(python: str, library: str, cases: Path) -> dict[str, Any]:
    """What a library makes of all cases; why it was not run."""
    output = cases.parent / f"{library}.json"
    command = [python, str(ROOT / "benchmarks" / "peer_probe.py"), library, str(cases), str(output)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return {"not_run": f"{python} does not start: {error.strerror}"}
    if done.returncode:
        return {"not_run": f"{python}: {done.stderr.strip().splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def theirs(found: dict[str, Any]) -> str:
    """What was found of a case, in words."""
    if "raised" in found:
        # Adapters puts a whole configuration into a sentence.
        return f"raises {re.sub(r'[(][^()]{30,}[)]', '(...)', found['raised'])}"
    if SECOND in found:
        if found[SECOND] < NOTHING:
            return f"right: {found[SECOND]:.1g} from each prompt alone"
        return (
            f"ignored: rows of the second prompt are {found[FIRST]:.1g} from the first's answers and"
            f" {found[SECOND]:.1g} from their own"
        )
    losses, gradient = (
        f"loss {found['first_loss']:.2f} to {found['last_loss']:.2f}",
        f"gradient {found['gradient']:.1g}",
    )
    effect = f"the prefix changes logits by {found['effect']:.1g}"
    return f"{'without effect: ' if found['effect'] < NOTHING else ''}{losses}, {gradient}, {effect}"


def ours(found: dict[str, Any]) -> str:
    """The same of ours."""
    losses = (f"{a:.2f} to {b:.2f}" for a, b in zip(found["first_losses"], found["last_losses"], strict=True))
    return (
        f"loss {' and '.join(losses)}, gradient {min(found['gradients']):.1g}, {max(found['off']):.0e} from the"
        " independent one"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", metavar="FILE", help="write all numbers here too")
    options.add_argument(
        "--adapters",
        metavar="PYTHON",
        default=os.environ.get("PROMPTFLEET_ADAPTERS_PYTHON"),
        help="a Python that imports Adapters (default: $PROMPTFLEET_ADAPTERS_PYTHON; without one it is not run)",
    )
    options.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases whose names have one of these")
    options.set_defaults(device="cpu")
    chosen = options.parse_args()
    wanted = [case for case in CASES if any(text in case.name for text in chosen.only)]
    unknown = sorted({case.model_type for case in wanted} - set(families()))
    wanted = [case for case in wanted if case.model_type not in unknown]
    if not wanted:
        sys.exit(
            f"--only {' '.join(chosen.only)}: choose from {'; '.join(c.name for c in CASES if c.model_type in families())}"
        )
    quiet()
    torch.set_num_threads(1)
    report = Report(chosen)
    if unknown:
        report.note(f"Left out, because PromptFleet has no such family: {', '.join(unknown)}.")
    with tempfile.TemporaryDirectory() as name:
        folder, found, cases = Path(name), [], []
        data = make_texts(folder / "texts", {"train": ROWS, "dev": 2}, labels=2)
        for number, case in enumerate(wanted):
            backbone = make_backbone(folder / str(number), case.model_type, **dict(case.changes))
            fleet = open_fleet(case, backbone, data)
            cases.append(for_others(case, backbone, fleet))
            found.append(measure(case, fleet, backbone))
        file = folder / "cases.json"
        file.write_text(json.dumps(cases), encoding="utf-8")
        others = {"PEFT": probe(sys.executable, "peft", file)}
        if chosen.adapters:
            others["Adapters"] = probe(chosen.adapters, "adapters", file)
        else:
            others["Adapters"] = {"not_run": "no Python that imports it was given (--adapters)"}
    report.numbers |= {"cases": [case.name for case in wanted], "PromptFleet": found, **others}
    _tell(report)
    report.finish()
    if not all(math.isfinite(off) and off < 1e-10 for one in found for off in one["off"]):
        sys.exit("PromptFleet's gradients differ from the independent ones: see the table")


def _tell(report: Report) -> None:
    numbers = report.numbers
    heads, columns = [], []
    for name in ("PEFT", "Adapters"):
        own = numbers[name]
        versions = own.get("versions", {})
        heads.append(f"{name} {versions.get(name.lower(), '')}".strip())
        columns.append([theirs(one) for one in own["found"]] if versions else ["not run"] * len(numbers["cases"]))
        report.note(
            f"{name}: transformers {versions['transformers']}, torch {versions['torch']}."
            if versions
            else f"{name} was not run: {own['not_run']}."
        )
    rows = report.table("Deep prompts, case by case", ["case", *heads, "PromptFleet"])
    for case, *cells, own in zip(numbers["cases"], *columns, numbers["PromptFleet"], strict=True):
        rows.append([case, *cells, ours(own)])


if __name__ == "__main__":
    main()
