"""What prompt.json says, and may say: whoever wrote it, nothing of it is used that has not been looked at here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.errors import UserError
from prompt_tuning.kinds import find_kind
from prompt_tuning.messages import sentences, show
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.settings.prompt import Positions
from prompt_tuning.settings.schema import Method, RunFile
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task

FORMATS = (2, 3)
"""3: with deltas of the backbone's vectors (`train.also`), which a reader of format 2 would pass over."""
Manifest = dict[str, Any]
Shape = tuple[int, ...]
_BESIDE = re.compile(r"\.\./\w[\w.-]*", re.ASCII)
"""Where method ``full`` has its model: in a folder beside the prompt's, and nowhere else."""
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST = 1 << 16


def describe_prompt(
    config: RunFile, task: Task, labels: tuple[str, ...], prompt: Prompt, backbone: Backbone
) -> Manifest:
    """All that prompt.json says of a member but its best evaluation and its tensors."""
    shape = backbone.shape
    return {
        "format": FORMATS[prompt.beside is not None],
        "method": config.method,
        "task": config.task,
        "task_version": task.version,
        "labels": list(labels),
        "template": task.template_name(config.data.template),
        "max_length": config.data.max_length,
        "stride": config.data.stride,
        "length": prompt.length,
        "positions": prompt.positions,
        "layers": None if prompt.prefix is None or prompt.prefix.layers is None else list(prompt.prefix.layers),
        "pooling": prompt.head.pooling,
        "layout": "prefix: [layers, key/value, heads, tokens, head size]; inputs: [tokens, hidden]",
        "shape": [shape.num_layers, shape.key_value_heads, shape.head_size, shape.hidden_size],
        "backbone": {
            "path": backbone.path,
            "revision": config.backbone.revision,
            "fingerprint": backbone.fingerprint,
            "identity": backbone.identity.to_json(),
            "model_type": backbone.model.config.model_type,
            "dtype": config.backbone.dtype,
            "quantize": config.backbone.quantize,
            "attention": config.backbone.attention,
        },
        **({} if prompt.beside is None else {"also": prompt.beside.lengths}),
        **(_of_writing(config) if config.is_written else {}),
    }


def _of_writing(config: RunFile) -> Manifest:
    return {"max_target_length": config.data.max_target_length, "decode": config.decode.model_dump(mode="json")}


def sealed(manifest: Manifest) -> Manifest:
    """The content of prompt.json: ``manifest``, and a checksum of it."""
    return {**manifest, "sha256_of_the_rest": digest(manifest)}


def digest(manifest: Manifest) -> str:
    """Of all that prompt.json says but the checksum itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class _Keys(BaseModel):
    """Strict as a section of a run file, but for keys that no answer depends on."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Said(_Keys):
    """The keys of prompt.json that answers depend on; files of version 0.1.0 lack those with a default."""

    method: Method
    task: str | dict[str, Any]
    task_version: int = 1
    labels: list[str]
    template: str
    max_length: int = Field(gt=0)
    max_target_length: int = Field(1, gt=0)
    stride: int = Field(ge=0)
    length: int = Field(ge=0)
    positions: Positions
    layers: list[int] | None
    pooling: str
    shape: list[int] = Field(min_length=4, max_length=4)
    also: dict[str, int] | None = None
    decode: DecodeSection = DecodeSection()
    backbone: dict[str, Any]


class Recorded(_Keys):
    """The keys of its ``backbone`` beside those of a run file's section."""

    path: str | None
    fingerprint: str
    model_type: str


def check(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`UserError` unless every key has a value that a run may write, and the tensors are those that follow from them."""
    try:
        said = Said.model_validate(manifest)
        recorded = Recorded.model_validate(said.backbone)
        own = {
            key: said.backbone[key] for key in ("revision", "dtype", "quantize", "attention") if key in said.backbone
        }
        BackboneSection(path=recorded.path or "unknown", **own)
    except ValidationError as error:
        place, sentence = sentences(error, Said)[0]
        raise UserError(f"{place}: {sentence}") from None
    if said.method == "full" and not _BESIDE.fullmatch(recorded.path or ""):
        raise UserError(
            f"backbone.path={show(recorded.path)}: method 'full' has its model beside the prompt, in ../model"
        )
    if said.method == "none":
        raise UserError("method 'none' has no prompt")
    _check_answers(said, find_task(said.task))
    wrong = sorted(name for name, tensor in tensors.items() if tensor.dtype not in _NUMBERS)
    if wrong:
        raise UserError(f"{wrong[0]} is of type {tensors[wrong[0]].dtype}, which no prompt is")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = _shapes(said, found)
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            there, due = found.get(name, "missing"), wanted.get(name, "not there")
            raise UserError(f"{show(name)} is {there}, and should be {due} by what prompt.json says")


def _check_answers(said: Said, task: Task) -> None:
    """Task, labels, template, layers and head, which must go together."""
    kind, asks_model = find_kind(task.kind), said.pooling == LanguageHead.pooling
    if len(set(said.labels)) != len(said.labels) or (kind.asks_classes and not said.labels):
        raise UserError(f"labels={show(said.labels)}: not the names of different answers")
    if said.template not in task.all_templates():
        raise UserError(f"template={show(said.template)}: task {task.name!r} has {', '.join(task.all_templates())}")
    if asks_model != (task.is_written or said.template in task.cloze) or kind.per_token != (said.pooling == "tokens"):
        raise UserError(
            f"pooling={show(said.pooling)} does not go with template {said.template!r} of a {task.kind} task"
        )
    if not asks_model and said.pooling not in ("tokens", "pooler", "context", "first", "mean", "last"):
        raise UserError(f"pooling={show(said.pooling)} is unknown")
    if not all(0 < size <= _MOST for size in said.shape):
        raise UserError(f"shape={show(said.shape)}: sizes are numbers from 1 to {_MOST}")
    if said.layers is not None and said.layers != sorted({*said.layers} & {*range(said.shape[0])}):
        raise UserError(f"layers={show(said.layers)}: not layers from 0 to {said.shape[0] - 1} in order")


def _shapes(said: Said, found: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors that there should be. What the backbone alone tells is as found: see :func:`misfit`."""
    num_layers, heads, head_size, hidden = said.shape
    wanted: dict[str, Shape] = {f"also.{name}": (length,) for name, length in (said.also or {}).items()}
    if said.pooling != LanguageHead.pooling:
        outputs = find_kind(find_task(said.task).kind).num_outputs(len(said.labels))
        wanted |= {"head.weight": (outputs, hidden), "head.bias": (outputs,)}
        if said.pooling == "context" or "head.pooler.weight" in found:
            wanted |= {"head.pooler.weight": (hidden, hidden), "head.pooler.bias": (hidden,)}
    if said.method == "deep_prompt":
        reached = num_layers if said.layers is None else len(said.layers)
        wanted["prefix"] = (reached, 2, heads, said.length, head_size)
    elif said.method == "shallow_prompt":
        wanted["inputs"] = (said.length, *(found.get("inputs", ())[1:] or (hidden,)))
    elif said.method == "lora":
        wanted |= {name: shape for name, shape in found.items() if name.startswith("lora.")}
    return wanted


def misfit(manifest: Manifest, prompt: Prompt, backbone: Backbone) -> str | None:
    """Why a prompt's tensors do not fit the backbone that it names, as a phrase; None: they do."""
    shape = list(astuple(backbone.shape))
    if manifest["shape"] != shape:
        return f"it is made for {manifest['shape']} (layers, key/value heads, head size, hidden size), and the backbone has {shape}"
    if prompt.inputs is not None and prompt.inputs.shape[1] != backbone.word_size:
        return f"its vectors have {prompt.inputs.shape[1]} numbers and the backbone's words {backbone.word_size}"
    lengths = {name: vector.length for name, vector in backbone.deltas.vectors.items()}
    other = [name for name, length in (manifest.get("also") or {}).items() if lengths.get(name) != length]
    if other:
        return f"the backbone has no vector {show(other[0])} of that length"
    if manifest["pooling"] == "pooler" and getattr(prompt.head, "pooler", None) is None and backbone.pooler is None:
        return "its head reads the backbone's pooler, and the backbone has none"
    return None
