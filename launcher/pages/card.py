"""A prompt's page on the hub: what it answers, from what data, how well over seeds, on which backbone, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.storage.records import split_metrics

if TYPE_CHECKING:
    from launcher.pages.scores import Group
    from prompt_tuning.prompt.export import ExportedPrompt
    from prompt_tuning.tasks.types import Task

PIPELINES = {
    "choice": "multiple-choice",
    "classification": "text-classification",
    "document": "text-generation",
    "generation": "text-generation",
    "regression": "text-classification",
    "span": "question-answering",
    "tagging": "token-classification",
}
"""The hub's names for what kinds of task do."""
PLACE = "path/of/the/backbone"
_SHOWN = 20


@dataclass(frozen=True)
class Origin:
    """What a run folder knows of one of its prompts: its own result and settings, and all members that differ in their seed."""

    result: dict[str, Any]
    config: dict[str, Any]
    group: Group


def find_origin(folder: Path) -> Origin | None:
    """What the run knows in whose folder a prompt is; None: it is in none."""
    from launcher.pages.scores import read_groups
    from prompt_tuning.settings.merge import read_json

    member = folder.resolve().parent
    record = member.parent.parent / "run.json"
    if folder.resolve().name != "prompt" or member.parent.name != "members" or not record.is_file():
        return None
    try:
        configs = [own["config"] for own in read_json(record)["members"] if own["name"] == member.name]
        for group in read_groups([record.parent]):
            for place, result in zip(group.folders, group.results, strict=True):
                if place.resolve() == member and configs:
                    return Origin(dict(result), configs[0], group)
    except (UserError, LookupError, TypeError):  # still running, or damaged: the prompt is whole by itself
        return None
    return None


def data_set(task: Task, origin: Origin | None) -> str | None:
    """The hub id of the data that a prompt was trained on; None: they are files of its owner, or nobody knows."""
    from prompt_tuning.prompt.hub import is_repository
    from prompt_tuning.storage.atomic import expand

    if origin is None:
        return None
    data = origin.config["data"]
    if data["path"] is None:
        return task.hub[0] if task.hub is not None and not data.get("files") else None
    is_local = data.get("files") or expand(data["path"]).exists()
    return data["path"] if "/" in data["path"] and is_repository(data["path"]) and not is_local else None


def card(exported: ExportedPrompt, where: str, origin: Origin | None, license: str | None) -> str:
    """The README.md of the hub's ``where``, owner/name[@revision]. ``exported`` holds what is published of its prompt.json."""
    from huggingface_hub import ModelCardData

    from prompt_tuning.prompt.hub import base_model

    task, manifest = exported.task, exported.manifest
    recorded, name = manifest["backbone"], where.partition("@")[0].rpartition("/")[2]
    base, data, scores = base_model(recorded["path"]), data_set(task, origin), _scores(exported, origin)
    head = ModelCardData(
        library_name="promptfleet",
        license=license,
        base_model=base,
        base_model_relation=base and "adapter",
        datasets=data and [data],
        pipeline_tag=PIPELINES[task.kind],
        tags=[
            "promptfleet",
            "p-tuning-v2" if manifest["method"] == "deep_prompt" else manifest["method"].replace("_", "-"),
        ],
        model_name=name if scores else None,
        eval_results=_results(task, data, scores) or None,
    ).to_yaml()
    parts = [
        f"---\n{head}\n---\n\n# {name}",
        f"A {_what(exported)} for the frozen backbone below: it answers the task `{task.name}` (kind {task.kind}).",
        "## How to use\n\n" + _usage(exported, where),
        "## Task and data\n\n" + "\n".join(_task_lines(exported, data, origin)),
    ]
    if scores:
        parts.append("## Metrics\n\n" + _table(scores, origin))
    parts.append("## Backbone\n\n" + "\n".join(_backbone_lines(recorded, base)))
    return "\n\n".join(parts) + "\n"


def _what(exported: ExportedPrompt) -> str:
    names = {
        "deep_prompt": f"deep prompt (P-tuning v2) of {exported.prompt.length} tokens",
        "shallow_prompt": f"prompt of {exported.prompt.length} tokens at the input",
        "head": "head alone",
        "lora": "set of low-rank differences (LoRA)",
    }
    return names[exported.manifest["method"]]


Score = tuple[str, str, float]
"""Split, metric and this prompt's value."""


def _scores(exported: ExportedPrompt, origin: Origin | None) -> list[Score]:
    if origin is None:
        splits = {"dev": (exported.manifest.get("best") or {"metrics": {}})["metrics"]}
    else:
        splits = {split: split_metrics(origin.result, split) for split in origin.group.splits()}
    return [(split, *own) for split, metrics in splits.items() for own in metrics.items() if own[1] is not None]


def _results(task: Task, data: str | None, scores: list[Score]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=PIPELINES[task.kind],
            dataset_type=data or task.name,
            dataset_name=task.name,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, metric, value in scores
    ]


def _table(scores: list[Score], origin: Origin | None) -> str:
    """This prompt's scores, and where the run has several seeds of the same settings their mean and spread."""
    if origin is None:
        lines = ["| split | metric | this prompt |", "|---|---|---:|"]
        lines += [f"| {split} | {metric} | {value:.4f} |" for split, metric, value in scores]
        return "\n".join([*lines, "", "dev selected the prompt."])
    from launcher.pages.scores import spread

    seeds, majority = len(origin.group.finished), origin.result.get("majority") or {}
    lines = [
        "| split | metric | this prompt | majority class | mean ± standard deviation | seeds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for split, metric, value in scores:
        several = [one for one in origin.group.values(split, metric) if one is not None]
        mean = spread(several) if len(several) > 1 else "-"
        constant = majority.get(split, {}).get(metric)
        shown = "-" if constant is None else f"{constant:.4f}"
        lines.append(f"| {split} | {metric} | {value:.4f} | {shown} | {mean} | {len(several)} |")
    own = f"This prompt is that of seed {origin.result['seed']}"
    others = (
        f"; the mean is over all {seeds} seeds of the same settings"
        if seeds > 1
        else ", the only one of these settings"
    )
    return "\n".join([*lines, "", f"{own}{others}. dev selected it, by {origin.result['selects_by']}."])


def _task_lines(exported: ExportedPrompt, data: str | None, origin: Origin | None) -> list[str]:
    task, labels, encoding = exported.task, exported.labels, exported.encoding
    columns = ", ".join(f"`{column}`" for column in task.columns)
    lines = [f"- reads: {columns}, by template `{encoding.template}`, {encoding.max_length} tokens at most"]
    if not task.is_written and task.kind != "regression":
        more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        lines.append(f"- answers: {', '.join(show(label) for label in labels[:_SHOWN])}{more}")
    if data is not None:
        lines.append(f"- data: [{data}](https://huggingface.co/datasets/{data})")
    else:
        lines.append("- data: " + ("not published" if origin is not None else "not recorded with the prompt"))
    trained = f"{origin.result['trainable_parameters']:,}" if origin is not None else None
    numbers = sum(parameter.numel() for parameter in exported.prompt.parameters())
    lines.append(f"- trainable parameters: {trained}" if trained else f"- numbers in its file: {numbers:,}")
    if origin is not None:
        share = origin.result["trainable_parameters"] / origin.result["backbone_parameters"]
        lines[-1] += f", {share:.2%} of the backbone's {origin.result['backbone_parameters']:,}"
    return lines


def _backbone_lines(recorded: dict[str, Any], base: str | None) -> list[str]:
    path, revision = recorded["path"], recorded["revision"]
    if base is not None:
        at = f", revision `{revision}`" if revision else ""
        place = f"[{path}](https://huggingface.co/{base}){at}"
    elif path is not None:
        place = f"`{path}`, of an installed package"
    else:
        place = "not on the hub; whoever uses the prompt gives it (`--backbone`, or the second argument of `attach`)"
    quantize = f", quantize {recorded['quantize']}" if recorded.get("quantize") else ""
    return [
        f"- {recorded['model_type']}: {place}",
        f"- fingerprint of its weights, config and tokenizer, which is checked: `{recorded['fingerprint']}`",
        f"- trained in {recorded['dtype']}{quantize}",
    ]


def _usage(exported: ExportedPrompt, where: str) -> str:
    """Code that runs as it stands, but for the path of a backbone that is not on the hub."""
    task, attach = exported.task, f"attach({where!r})"
    backbone = ""
    if exported.manifest["backbone"]["path"] is None:
        attach, backbone = f"attach({where!r}, {PLACE!r})", f" --backbone {PLACE}"
    call = call_of(task, exported.encoding.template)
    python = f"```python\nfrom prompt_tuning import attach\n\nmodel = {attach}\nprint({call})\n```\n\n" if call else ""
    columns = ", ".join(f"`{column}`" for column in task.columns)
    return (
        f"{python}```sh\npromptfleet predict --prompt {where} --input rows.jsonl{backbone}\n```\n\n"
        f"where each line of `rows.jsonl` is an object with {columns}."
    )


def call_of(task: Task, template: str | None) -> str | None:
    """A question to ``model``, which :func:`prompt_tuning.predict.attach` gave; None: rows of this task can not be made up."""
    from prompt_tuning.predict import prediction_rows
    from prompt_tuning.tokens.rows import sequences, template_of

    if task.is_written and len(task.columns) == 1:
        return 'model.generate(["A text."])'
    if task.kind == "classification" and len(task.columns) == 1:
        return 'model("A text.")'
    row: dict[str, Any] = dict.fromkeys(task.columns, "A text.")
    row |= dict.fromkeys(task.number_columns, 0) | {column: ["A", "text", "."] for column in task.word_columns}
    try:
        for where, own in prediction_rows(task, "row 1", dict(row)):
            sequences(task, where, template_of(task, template), own)
    except UserError:
        return None
    return f"model.predict([{row!r}])"
