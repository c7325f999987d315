"""Exported prompts: ``prompt.json`` and ``prompt.safetensors``, all that is needed beside the backbone to predict.

A prefix is stored as keys and values [layers, 2, heads, tokens, head size], any reparameterisation folded in. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.errors import UserError, reason
from prompt_tuning.prompt.beside import Beside
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.hub import NAMES, local_copy, published, repository_of
from prompt_tuning.prompt.lora import read_lora
from prompt_tuning.prompt.manifest import FORMATS, Manifest, check, digest, misfit, sealed
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.storage.atomic import new_folder, sha256, write_json
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.recipe import Encoding

logger = logging.getLogger(__name__)

_AGAIN = "export the prompt again, with `promptfleet export` or by its run"


def name_of(folder: Path) -> str:
    """What the prompt in a folder is called; in the hub's copy like its repository, without the owner."""
    repository = repository_of(folder)
    if repository is not None:
        return repository.rpartition("/")[2]
    return folder.parent.name if folder.name == "prompt" else folder.name


@dataclass(frozen=True)
class ExportedPrompt:
    """A prompt read back from disk: its tensors as a module, and ``manifest``, the content of prompt.json."""

    folder: Path
    prompt: Prompt
    manifest: dict[str, Any]

    @property
    def task(self) -> Task:
        """The task that it answers."""
        return find_task(self.manifest["task"])

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self.manifest["labels"])

    @property
    def encoding(self) -> Encoding:
        """How it was trained to see rows."""
        target = self.manifest.get("max_target_length", Encoding.max_target_length)
        return Encoding(self.manifest["max_length"], self.manifest["template"], self.manifest["stride"], target)

    @property
    def decode(self) -> DecodeSection:
        """How it writes texts unless told otherwise."""
        return DecodeSection.model_validate(self.manifest.get("decode", {}))

    @property
    def is_outline(self) -> bool:
        """Whether its tensors have no numbers, as those of :func:`outline_prompt`."""
        return any(parameter.is_meta for parameter in self.prompt.parameters())

    @property
    def backbone_path(self) -> str:
        """The backbone as the run file named it, or the model folder that method ``full`` wrote beside the prompt.

        Raises :class:`UserError` where nobody knows: what is on the hub names no folder of its owner's machine.
        """
        recorded = self.manifest["backbone"]
        path = recorded["path"]
        if path is None:
            raise UserError(
                f"{self.folder}: the prompt does not say where its backbone is ({recorded['model_type']}, fingerprint"
                f" {recorded['fingerprint']}); give it by --backbone, or attach(..., backbone=)"
            )
        return str(self.folder / path) if self.manifest["method"] == "full" else path

    def check_task(self) -> None:
        """Warn where the task's templates now make other texts than the prompt was trained on."""
        was, now = self.manifest.get("task_version", 1), self.task.version
        if was != now:
            logger.warning(
                "%s: the prompt was trained on version %s of the texts of task %r, and this program makes version %s; its answers"
                " may differ",
                self.folder,
                was,
                self.task.name,
                now,
            )

    def check_backbone(self, backbone: Backbone) -> None:
        """Raise :class:`UserError` unless the prompt was trained on this very backbone."""
        recorded = self.manifest["backbone"]
        other = backbone.identity.difference(recorded.get("identity", recorded["fingerprint"]))
        if other:
            raise UserError(
                f"{self.folder}: the prompt was trained on {recorded['path'] or 'another'} ({recorded['model_type']}), and {backbone.path}"
                f" ({backbone.model.config.model_type}) is not that backbone: {other}; give its own (--backbone)"
            )
        unfit = misfit(self.manifest, self.prompt, backbone)
        if unfit is not None:
            raise UserError(f"{self.folder}: the prompt does not fit the backbone that it names: {unfit}; {_AGAIN}")
        was = recorded.get("quantize")
        if was != backbone.quantize:
            logger.warning(
                "%s: the prompt was trained on a backbone with quantize %s, and this one has %s; its answers may differ",
                self.folder,
                was or "null",
                backbone.quantize or "null",
            )


def write_prompt(folder: Path, prompt: Prompt, description: Manifest, best: Manifest | None = None) -> None:
    """Export a prompt, with the tensors it holds now, into ``folder``, atomically.

    ``description``: of :func:`describe_prompt`; ``best``: step and metrics of the evaluation that these tensors saw.
    """
    tensors = _tensors(prompt)
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    manifest = {**description, "best": best, "tensors": shapes}
    with new_folder(folder) as target:
        (target / "prompt.safetensors").write_bytes(save(tensors))
        manifest["sha256"] = sha256(target / "prompt.safetensors")
        write_json(target / "prompt.json", sealed(manifest))


@torch.no_grad()
def rebuild_prompt(config: RunFile, description: Manifest, tensors: dict[str, Tensor]) -> Prompt:
    """A member's prompt from its settings, its :func:`describe_prompt` and all its tensors by name, without a backbone."""
    shape = PrefixShape(*description["shape"])
    head: Head | LanguageHead = LanguageHead(None)
    dtype = torch.float32
    if description["pooling"] != LanguageHead.pooling:
        weight = tensors["head.weight"]
        dtype = weight.dtype
        own_pooler = "head.pooler.weight" in tensors
        head = Head(weight.shape[1], weight.shape[0], description["pooling"], None, dtype, own_pooler)
    prefix = inputs = None
    if config.method == "deep_prompt":
        dtype = tensors["prefix.embedding"].dtype
        layers = None if description["layers"] is None else tuple(description["layers"])
        width = config.prompt.projection_width if config.prompt.reparameterisation == "mlp" else None
        relative, frozen = config.optimizer.relative, config.prompt.frozen_tokens
        prefix = Prefix(shape, description["length"], None, dtype, layers, width, relative, frozen)
    elif config.method == "shallow_prompt":
        inputs = tensors["inputs"].clone()
    beside = Beside(description["also"], tensors["beside.delta"].dtype) if "also" in description else None
    prompt = Prompt(head, prefix, inputs, description["positions"], beside=beside, lora=read_lora(tensors))
    for name, parameter in prompt.named_parameters():
        parameter.copy_(tensors[name])
    return prompt


@torch.no_grad()
def _tensors(prompt: Prompt) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {f"head.{name}": parameter for name, parameter in prompt.head.named_parameters()}
    if prompt.prefix is not None:
        table = prompt.prefix.table()
        if prompt.prefix.layers is not None:
            table = table[:, list(prompt.prefix.layers)]
        tensors["prefix"] = table.permute(1, 2, 3, 0, 4)
    if prompt.inputs is not None:
        tensors["inputs"] = prompt.inputs
    if prompt.beside is not None:
        tensors |= {f"also.{name}": delta for name, delta in prompt.beside.vectors().items()}
    if prompt.lora is not None:
        tensors |= {f"lora.{name}": parameter for name, parameter in prompt.lora.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def load_prompt(folder: str | Path) -> ExportedPrompt:
    """Read an exported prompt: its folder, or as a text ``owner/name`` or ``owner/name@revision`` of the Hugging Face hub.

    A local folder of that name wins. Raises :class:`UserError` for a missing, damaged or foreign file.
    """
    return _read(local_copy(folder), _whole)


def outline_prompt(folder: str | Path) -> ExportedPrompt:
    """As :func:`load_prompt`, but of the tensors their types and shapes alone, on torch's device `meta`; no checksum is taken of them."""
    return _read(Path(folder), _outlined)


def _whole(file: Path, digest: str) -> dict[str, Tensor]:
    content = file.read_bytes()  # once: what is taken is what was checked
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{file.parent}: {file.name} is damaged or not that of prompt.json; {_AGAIN}")
    found: dict[str, Tensor] = load(content)
    return found


def _outlined(file: Path, digest: str) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).to("meta") for name in tensors.keys()}  # noqa: SIM118  not a dict


def _read(folder: Path, tensors_of: Callable[[Path, str], dict[str, Tensor]]) -> ExportedPrompt:
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: no {' and no '.join(missing)} there; give a prompt folder, such as runs/NAME/members/M/prompt"
        )
    try:
        manifest = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        if manifest["format"] not in FORMATS:
            known = " and ".join(map(str, FORMATS))
            raise UserError(f"{folder}: prompt format {manifest['format']}; this version reads {known}")
        declared = manifest.pop("sha256_of_the_rest")
        if declared != digest(manifest):
            raise UserError(f"{folder}: prompt.json is damaged or was edited (its checksum differs); {_AGAIN}")
        tensors = tensors_of(folder / "prompt.safetensors", manifest["sha256"])
        _check(folder, manifest, tensors)
        if repository_of(folder) is not None:
            manifest = published(manifest)
        with next((tensor.device for tensor in tensors.values()), torch.device("cpu")):
            prompt = _build(manifest, tensors)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({reason(error)}); {_AGAIN}") from None
    return ExportedPrompt(folder, prompt.requires_grad_(False), manifest)


def _check(folder: Path, manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    try:
        check(manifest, tensors)
    except UserError as error:
        raise UserError(f"{folder}: no run writes such a prompt.json ({error}); {_AGAIN}") from None
    if manifest["method"] == "full" and repository_of(folder) is not None:
        raise UserError(f"{folder}: method 'full' has a whole model beside its prompt, which is not taken from the hub")


@torch.no_grad()
def _build(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> Prompt:
    shape = PrefixShape(*manifest["shape"])
    head: Head | LanguageHead = LanguageHead(None)
    if manifest["pooling"] != LanguageHead.pooling:
        weight, own_pooler = tensors["head.weight"], "head.pooler.weight" in tensors
        head = Head(shape.hidden_size, weight.shape[0], manifest["pooling"], None, weight.dtype, own_pooler)
        head.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
    prefix = None
    if "prefix" in tensors:
        table = tensors["prefix"].permute(3, 0, 1, 2, 4)
        layers = None if manifest["layers"] is None else tuple(manifest["layers"])
        prefix = Prefix(shape, len(table), None, table.dtype, layers)
        prefix.embedding.copy_(table.reshape(len(table), -1))
    beside = None
    if "also" in manifest:
        deltas = {name: tensors[f"also.{name}"] for name in manifest["also"]}
        beside = Beside({name: len(delta) for name, delta in deltas.items()}, next(iter(deltas.values())).dtype)
        beside.fill(deltas)
    return Prompt(head, prefix, tensors.get("inputs"), manifest["positions"], beside=beside, lora=read_lora(tensors))
