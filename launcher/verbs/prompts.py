"""The driver's verbs for exported prompts: predict and evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError


def predict(options: argparse.Namespace) -> int:
    """Read rows, write each with its label and probabilities."""
    from prompt_tuning.data.read import read_rows
    from prompt_tuning.storage.atomic import write_text

    rows = [row for _, row in read_rows(Path(options.input))]
    model = _attach(options)
    predictions = model.predict(rows)
    lines = [
        json.dumps({**row, **prediction}, ensure_ascii=False, default=str)
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    if options.output:
        write_text(Path(options.output), text)
    else:
        sys.stdout.write(text)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print the metrics of a prompt as JSON."""
    from prompt_tuning.data.load import load_task_data
    from prompt_tuning.data.read import extra_splits
    from prompt_tuning.fleet.evaluate import score
    from prompt_tuning.tasks.find import find_task

    model = _attach(options)
    exported = model.prompts[0]
    task = find_task(options.task) if options.task else exported.task
    if task.kind != exported.task.kind or task.labels not in (None, exported.labels):
        raise UserError(
            f"--task {options.task}: the prompt answers {exported.task.name} ({', '.join(exported.labels)}),"
            f" not {task.name}; leave --task out or give the prompt's own"
        )
    if options.split not in ("train", "dev", "test", *extra_splits(task, options.data)):
        names = ", ".join(("train", "dev", "test", *extra_splits(task, options.data)))
        raise UserError(f"--split {options.split}: not a split of {task.name} there; choose {names}")
    template = exported.encoding.template if task.name == exported.task.name else None
    data = load_task_data(
        task,
        model.backbone.tokenizer,
        options.data,
        replace(exported.encoding, template=template),
        splits=(options.split,),
        labels=exported.labels,
    )
    if options.split not in data.splits:
        raise UserError(f"the {options.split} split of {options.data or task.name} is missing or has no labels")
    features = data.splits[options.split]
    (outputs,) = model.outputs([0], [features])
    metrics, loss = score(task, features, outputs, exported.labels)
    result: dict[str, Any] = {"task": task.name, "split": options.split, "examples": len(features)}
    print(json.dumps({**result, "metrics": metrics, "loss": loss}, indent=2))
    return 0


def _attach(options: argparse.Namespace) -> Any:
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.predict import attach
    from prompt_tuning.prompt.export import load_prompt

    prompt = load_prompt(options.prompt)
    quiet_libraries()
    return attach(prompt, options.backbone)
