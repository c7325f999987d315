"""Prompts of other tools, one file a format: read into a prompt of ours, and written from one.

A file has ``NAME``, ``TOOL`` (for sentences), ``is_here(folder)`` and ``read(folder, settings, described, shape)``, which gives a
:class:`Found`; where it can be written too, ``write(folder, exported)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open
from torch import Tensor

from model_parallel.grid import Grid, local_device
from model_parallel.loading import stored_tensors
from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description, describe_backbone
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone, prefix_shape
from prompt_tuning.errors import UserError
from prompt_tuning.kinds import find_kind
from prompt_tuning.prompt.build import check_lengths
from prompt_tuning.prompt.export import write_prompt
from prompt_tuning.prompt.formats._found import Found, check_prefix
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.manifest import describe_prompt
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task

Labels = tuple[str, ...]


def formats() -> dict[str, ModuleType]:
    """All formats by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def written_formats() -> list[str]:
    """Names of those that can be written."""
    return [name for name, module in formats().items() if hasattr(module, "write")]


def find_format(folder: Path) -> ModuleType:
    """The format of a folder. Raises :class:`UserError`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that the other tool has written")
    for module in formats().values():
        if module.is_here(folder):
            return module
    tools = ", ".join(module.TOOL for module in formats().values())
    raise UserError(f"{folder}: nothing there is of a format that is known; known are {tools}")


def import_prompt(folder: Path, settings: RunFile, labels: Labels | None, output: Path) -> list[str]:
    """Write another tool's prompt into ``output`` as one of ours. Returns what was assumed, a sentence each.

    Of ``settings`` task, backbone and data count. ``labels``: names in the order of the head's outputs, where neither task nor
    files have them. Raises :class:`UserError` for whatever would answer otherwise than in its tool.
    """
    form, described = find_format(folder), describe_backbone(settings.backbone, settings.is_written)
    if described.has_encoder:
        raise UserError(
            f"{folder}: prompts of encoder-decoders ({described.config.model_type}) are not read from other tools"
        )
    shape, task = prefix_shape(described.family, described.config), find_task(settings.task)
    found: Found = form.read(folder, settings, described, shape)
    check_prefix(found, folder, described.path, shape)
    _check_task(found, folder, settings, task)
    names, order, remark = _labels(found, folder, task, labels)
    config = settings.model_copy(
        update={
            "prompt": settings.prompt.model_copy(update={"length": len(found.prefix), "positions": found.positions})
        }
    )
    check_lengths(config, described)
    _check_frozen(found, folder, described)
    backbone = load_backbone(config.backbone, Grid(device=local_device(0)), description=described)
    prompt = _build(found, folder, shape, order, backbone)
    template = task.template_name(config.data.template)
    write_prompt(output, prompt, describe_prompt(config, task, names, prompt, backbone))
    start = "behind the prefix" if found.positions == "after_prefix" else "at 0, the prefix not counted"
    return [
        f"{form.TOOL}: texts start {start}, as there",
        f"texts as this task makes them, by template {template!r}, of {config.data.max_length} tokens at most",
        *remark,
        *found.remarks,
        *(
            []
            if found.frozen
            else [f"that {described.path} is what it was trained on; the files hold no weights to compare"]
        ),
    ]


def _check_task(found: Found, folder: Path, settings: RunFile, task: Task) -> None:
    """Raise :class:`UserError` unless the head is one for the task."""
    if found.pooling is None and not settings.asks_language_model:
        raise UserError(
            f"{folder}: has no head, and {task.name} ({task.kind}) asks one; give a task of kind 'generation'"
        )
    if found.pooling is not None and (settings.asks_language_model or task.kind not in found.kinds):
        how = f"template {settings.data.template!r}" if settings.is_cloze else f"kind {task.kind!r}"
        raise UserError(
            f"{folder}: its head answers tasks of kind {' or '.join(found.kinds)}, and {task.name} is of {how}; give such a task"
        )


def _labels(found: Found, folder: Path, task: Task, given: Labels | None) -> tuple[Labels, list[int] | None, list[str]]:
    """Labels of the prompt, the order in which the head's rows answer them, and what was assumed."""
    kind = find_kind(task.kind)
    own = task.labels
    if not kind.asks_classes and own is None and task.kind not in ("tagging",):
        own = kind.collect_labels(task, ())
    if own is not None and given is not None and own != given:
        raise UserError(f"--labels {', '.join(given)}: {task.name} has its own, {', '.join(own)}; leave --labels out")
    own = own or given
    counts_classes = found.pooling is not None and kind.num_outputs(2) != kind.num_outputs(3)
    named = found.labels if counts_classes else None
    if own is None and named is None:
        raise UserError(
            f"{folder}: names no labels, and neither does {task.name}; give them in the order of the head's outputs (--labels)"
        )
    names = own or named or ()
    if found.pooling is not None and kind.num_outputs(len(names)) != len(found.head["weight"]):
        raise UserError(
            f"{folder}: its head has {len(found.head['weight'])} outputs, and {task.name} takes"
            f" {kind.num_outputs(len(names))} ({', '.join(names)}); give the task that it was trained for"
        )
    if named is None:
        remark = [f"labels in this order: {', '.join(names)}; the files do not name them"] if counts_classes else []
        return names, None, remark
    if sorted(named) != sorted(names):
        raise UserError(
            f"{folder}: answers {', '.join(named)}, and {task.name} has {', '.join(names)}; give the task that it was trained"
            " for, or its labels as they are there"
        )
    return names, [named.index(name) for name in names], []


def _check_frozen(found: Found, folder: Path, described: Description) -> None:
    """Raise :class:`UserError` unless the backbone that the files hold is the one given, number for number."""
    stored = stored_tensors(described.folder, set(found.frozen), described.config.model_type)
    for name, theirs in sorted(found.frozen.items()):
        if name not in stored:
            raise UserError(
                f"{folder}: its backbone has {name}, and {described.path} has none; give its own (--backbone)"
            )
        with safe_open(stored[name].file, framework="pt") as tensors:
            own = tensors.get_tensor(stored[name].name)
        coarse = min(theirs.dtype, own.dtype, key=lambda dtype: dtype.itemsize)
        if theirs.shape != own.shape or not torch.equal(theirs.to(coarse), own.to(coarse)):
            raise UserError(
                f"{folder}: was trained on another backbone than {described.path}: {name} differs; give its own (--backbone)"
            )


@torch.no_grad()
def _build(found: Found, folder: Path, shape: PrefixShape, order: list[int] | None, backbone: Backbone) -> Prompt:
    head: Head | LanguageHead = LanguageHead(None)
    dtype = backbone.prompt_dtype
    if found.pooling is not None:
        tensors: dict[str, Tensor] = dict(found.head)
        if order is not None:
            tensors |= {name: tensors[name][order] for name in ("weight", "bias")}
        if found.pooling == "pooler" and "pooler.weight" not in tensors and backbone.pooler is None:
            raise UserError(
                f"{folder}: holds no pooler, and {backbone.path} has none either, so that what the head saw is lost; train anew"
            )
        head = Head(
            shape.hidden_size, len(tensors["weight"]), found.pooling, 0, dtype, own_pooler="pooler.weight" in tensors
        )
        head.load_state_dict(tensors)
    prefix = Prefix(shape, len(found.prefix), 0, dtype, found.layers)
    prefix.embedding.copy_(found.prefix)
    return Prompt(head, prefix, positions=found.positions).requires_grad_(False)
