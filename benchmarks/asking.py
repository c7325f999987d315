"""What a generation task's frozen backbone writes when it is asked, with and without examples: what a prompt has to beat.

    python benchmarks/asking.py configs/hours_gemma.json --instruction "Write the opening hours as one sentence." --shots 0 2 3

Before each source of the test split stand the instruction, on a line of its own, and so many rows of the training split, the
first ones, source and target as the task has them. Writing is as the run file's `decode` says, and ends at a line break.
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
from typing import Any

import numpy as np

from model_parallel.grid import Grid, local_device
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.load import chosen_rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.forward.write import write
from prompt_tuning.metrics.generation import Written
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.members import load_run
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.continuation import source_tokens
from prompt_tuning.tokens.rows import sequences, template_of


def read(config: RunFile, task: Task) -> dict[str, list[tuple[str, list[str]]]]:
    """Sources and their targets, by split."""
    rows = chosen_rows(config)
    build = template_of(task, config.data.template)

    def pair(located: LocatedRow) -> tuple[str, list[str]]:
        where, row = located
        ((text, _),) = sequences(task, where, build, row)
        target = row[task.label_column]
        return text, [target] if isinstance(target, str) else list(target)

    return {split: [pair(located) for located in rows[split]] for split in ("train", "test")}


def question(task: Task, instruction: str, shots: list[tuple[str, list[str]]], source: str) -> str:
    """All that stands before the separator behind which the answer is written."""
    examples = [f"{text}{task.separator}{targets[0]}\n\n" for text, targets in shots]
    return "".join([f"{instruction}\n\n" if instruction else "", *examples, source])


def ask(backbone: Backbone, config: RunFile, task: Task, texts: list[str]) -> list[str]:
    """What the backbone writes behind texts without a prompt."""
    rows, _ = source_tokens(backbone.tokenizer, task, 1 << 20, texts, backbone.description.has_encoder)
    decode = config.decode.model_copy(update={"stop": [*config.decode.stop, "\n"]})
    prompt = Prompt(LanguageHead(backbone.language_head))
    sources = [(0, np.array(row)) for row in rows]
    budget = default_budget(backbone.grid.device, with_gradients=False)
    return write(backbone, [prompt], sources, decode, config.data.max_target_length, budget)


def measure(config: RunFile, instruction: str, shots: list[int]) -> dict[str, Any]:
    """Metrics and texts by number of examples."""
    task, grid = find_task(config.task), Grid(device=local_device(0))
    if not config.is_written:
        raise UserError(f"task {task.name!r} writes no texts; give the run file of a generation task")
    splits = read(config, task)
    backbone = load_backbone(config.backbone, grid, language=True)
    backbone.model.eval()
    gold, found = [targets for _, targets in splits["test"]], {}
    for count in shots:
        examples = splits["train"][:count]
        texts = ask(backbone, config, task, [question(task, instruction, examples, own) for own, _ in splits["test"]])
        # How likely targets are behind an instruction is not asked.
        predicted = [Written(text, math.nan, 0) for text in texts]
        scores = {name: metric(gold, predicted) for name, metric in task.metrics.items() if name != "perplexity"}
        found[str(count)] = {"metrics": scores, "texts": texts}
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("config", type=Path)
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of the worker")
    options.add_argument("--instruction", default="", help="what the backbone is told (default: nothing)")
    options.add_argument("--shots", type=int, nargs="+", default=[0, 4], help="training rows shown (default: 0 4)")
    options.add_argument("--json", type=Path, help="file for metrics and texts")
    chosen = options.parse_args()
    try:
        found = measure(load_run(chosen.config, chosen.set).shared, chosen.instruction, chosen.shots)
    except UserError as error:
        sys.exit(str(error))
    for count, own in found.items():
        scores = "  ".join(f"{name} {value:.4f}" for name, value in own["metrics"].items())
        print(f"{count} examples  {scores}\n  {own['texts'][0]}")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
