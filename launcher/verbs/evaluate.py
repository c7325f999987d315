"""The verb ``evaluate``: metrics of a prompt on labelled data."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from launcher.options import add_prompt
from launcher.prompts import attach_prompt
from prompt_tuning.errors import UserError


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser("evaluate", help="metrics of a prompt on labelled data")
    add_prompt(verb)
    verb.add_argument("--task", help="task (default: the prompt's own)")
    verb.add_argument("--data", metavar="PATH", help="data folder or hub id (default: the task's hub data set)")
    verb.add_argument("--split", default="dev", help="train, dev, test, or an extra one such as test/de (default: dev)")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print the metrics of a prompt as JSON."""
    from prompt_tuning.data.load import load_task_data
    from prompt_tuning.data.read import Source, extra_splits
    from prompt_tuning.fleet.evaluate import num_examples, score
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.storage.lines import finite
    from prompt_tuning.tasks.find import find_task

    exported = load_prompt(options.prompt)
    own = exported.manifest["task"]
    task = find_task(options.task) if options.task else exported.task
    if task.kind != exported.task.kind or task.labels not in (None, exported.labels):
        raise UserError(
            f"--task {options.task}: the prompt answers {exported.task.name} ({', '.join(exported.labels)}),"
            f" not {task.name}; leave --task out or give the prompt's own"
        )
    hub_config = own.get("hub_config") if isinstance(own, dict) and not options.task else None
    source = Source(options.data, hub_config=hub_config)
    names = ("train", "dev", "test", *extra_splits(task, source))
    if options.split not in names:
        raise UserError(f"--split {options.split}: not a split of {task.name} there; choose {', '.join(names)}")
    model = attach_prompt(exported, options.backbone)
    data = load_task_data(
        task,
        model.backbone.tokenizer,
        source,
        replace(exported.encoding, template=exported.encoding.template if task.name == exported.task.name else None),
        splits=(options.split,),
        labels=exported.labels,
        has_encoder=model.backbone.description.has_encoder,
    )
    if options.split not in data.splits:
        raise UserError(f"the {options.split} split of {options.data or task.name} is missing or has no labels")
    features = data.splits[options.split]
    (outputs,) = model.outputs([0], [features])
    metrics, loss = score(task, features, outputs, exported.labels)
    result: dict[str, Any] = {"task": task.name, "split": options.split, "examples": num_examples(task, features)}
    print(json.dumps(finite({**result, "metrics": metrics, "loss": loss}), indent=2, allow_nan=False))
    return 0
