"""A prompt as PEFT saves one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from model_parallel.loading import stored_tensors
from prompt_tuning.backbone.find import Description, describe_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.prompt.formats._peft_models import CLASSES, HEADS, KINDS, check_model
from prompt_tuning.prompt.head import Head
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import new_folder, write_json, write_text


def write(folder: Path, exported: ExportedPrompt) -> None:
    """Write a prompt as PEFT saves one, with a README that says how it is loaded. Raises :class:`UserError` for what would
    answer otherwise there."""
    recorded, prefix = exported.manifest["backbone"], exported.prompt.prefix
    if prefix is None:
        method = exported.manifest["method"]
        raise UserError(f"{exported.folder}: method {method!r} has no prefix, which alone is written for PEFT")
    section = BackboneSection(path=exported.backbone_path, revision=recorded["revision"])
    described = describe_backbone(section, exported.task.is_written)
    task = next(name for name, kinds in KINDS.items() if exported.task.kind in kinds)
    _check_is_mapped(exported, described, task)
    tensors, modules = _written_head(exported, described, task)
    tensors["prompt_embeddings"] = prefix.table().reshape(prefix.length, -1)
    shape = prefix.shape
    config = {
        "base_model_name_or_path": _for_transformers(exported, described),
        "encoder_hidden_size": shape.key_value_heads * shape.head_size,
        "inference_mode": True,
        "modules_to_save": modules,
        "num_attention_heads": shape.key_value_heads,
        "num_layers": shape.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "revision": recorded["revision"],
        "task_type": task,
        "token_dim": shape.key_value_heads * shape.head_size,
    }
    plain = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    with new_folder(folder) as target:
        (target / "adapter_model.safetensors").write_bytes(save(plain, metadata={"format": "pt"}))
        write_json(target / "adapter_config.json", config)
        write_text(target / "README.md", _readme(exported, described, task))


def _for_transformers(exported: ExportedPrompt, described: Description) -> str:
    """The backbone's path as transformers takes it."""
    path = exported.backbone_path
    is_ours = path.startswith("package://") or path.endswith(".gguf")
    return str(described.folder) if is_ours else path


def _check_is_mapped(exported: ExportedPrompt, described: Description, task: str) -> None:
    where, prompt, manifest = str(exported.folder), exported.prompt, exported.manifest
    encoding = {"max_length": manifest["max_length"], "template": manifest["template"]}
    if "max_target_length" in manifest:
        encoding["max_target_length"] = manifest["max_target_length"]
    settings = RunFile.model_validate(
        {
            "task": manifest["task"],
            "backbone": {"path": described.path},
            "data": encoding,
            "decode": manifest.get("decode", {}),
        }
    )
    assert prompt.prefix is not None
    reasons = {
        "PEFT's prefix of an encoder-decoder reaches the decoder alone": described.has_encoder,
        "prompt.layers: PEFT puts its prefix in front of every layer": prompt.prefix.layers is not None,
        "prompt.positions 'from_zero': PEFT's texts start behind the prefix": prompt.positions != "after_prefix",
        "train.also: PEFT has no place for deltas of biases and norms": prompt.beside is not None,
        f"template {manifest['template']!r}: the language model answers by candidates, which PEFT does not score": settings.is_cloze,
        f"backbone.quantize {manifest['backbone'].get('quantize')!r}: PEFT would quantise in another way": manifest[
            "backbone"
        ].get("quantize")
        is not None,
    }
    for why, holds in reasons.items():
        if holds:
            raise UserError(f"{where}: {why}; it cannot be written for PEFT")
    check_model(where, described, task, settings, prompt.length)
    head = prompt.head
    wanted = {"pooled": "pooler", "dense": "pooler", "score": "last"}[HEADS[described.config.model_type]]
    if task == "SEQ_CLS" and head.pooling != wanted:
        raise UserError(
            f"{where}: head.pooling {head.pooling!r}, and PEFT's classifier on {described.config.model_type} has {wanted!r};"
            " train with that"
        )
    if isinstance(head, Head) and wanted == "last" and head.bias.any():
        raise UserError(
            f"{where}: its head has a bias, and PEFT's classifier on {described.config.model_type} has none; it cannot be"
            " written for PEFT"
        )


def _written_head(
    exported: ExportedPrompt, described: Description, task: str
) -> tuple[dict[str, Tensor], list[str] | None]:
    """The head's tensors by PEFT's names, and its ``modules_to_save``."""
    head = exported.prompt.head
    if not isinstance(head, Head):
        return {}, None
    if task == "QUESTION_ANS":
        return _linear("qa_outputs", head), ["qa_outputs"]
    if task == "TOKEN_CLS":
        return _linear("classifier", head), ["classifier", "score"]
    model_type = described.config.model_type
    if HEADS[model_type] == "score":
        return {"base_model.score.weight": head.weight}, ["classifier", "score"]
    own = None if head.pooler is None else {"weight": head.pooler.weight, "bias": head.pooler.bias}
    if HEADS[model_type] == "dense":
        dense = own or _stored_pooler(described, str(exported.folder))
        named = {f"base_model.classifier.dense.{name}": tensor for name, tensor in dense.items()}
        return _linear("classifier.out_proj", head) | named, ["classifier", "score"]
    if own is None:
        return _linear("classifier", head), ["classifier", "score"]
    named = {f"base_model.{model_type}.pooler.dense.{name}": tensor for name, tensor in own.items()}
    return _linear("classifier", head) | named, ["classifier", "score", "pooler"]


def _linear(name: str, head: Head) -> dict[str, Tensor]:
    return {f"base_model.{name}.weight": head.weight, f"base_model.{name}.bias": head.bias}


def _stored_pooler(described: Description, where: str) -> dict[str, Tensor]:
    """The backbone's own pooler, which this family's classifiers do not load."""
    names = ("weight", "bias")
    stored = stored_tensors(described.folder, {f"pooler.dense.{name}" for name in names}, described.config.model_type)
    if len(stored) < len(names):
        raise UserError(
            f"{where}: the pooler that it was trained with is not in {described.path}; give its own backbone"
        )
    found = {}
    for name in names:
        place = stored[f"pooler.dense.{name}"]
        with safe_open(place.file, framework="pt") as tensors:
            found[name] = tensors.get_tensor(place.name)
    return found


def _readme(exported: ExportedPrompt, described: Description, task: str) -> str:
    """How PEFT loads it, and what its files have no place for."""
    manifest, head = exported.manifest, exported.prompt.head
    outputs = f", num_labels={len(head.weight)}" if isinstance(head, Head) and task != "QUESTION_ANS" else ""
    target = f", max_target_length {manifest['max_target_length']}" if "max_target_length" in manifest else ""
    return f"""---
library_name: peft
---
A deep prompt (P-tuning v2) of PromptFleet for PEFT.

```python
from peft import PeftModel
from transformers import {CLASSES[task]}

base = {CLASSES[task]}.from_pretrained({_for_transformers(exported, described)!r}{outputs})
model = PeftModel.from_pretrained(base, "this folder").eval()
```

- task: {exported.task.name} ({exported.task.kind}); texts: template {manifest["template"]!r}, max_length {manifest["max_length"]}{target}
- labels, in the order of the logits: {", ".join(exported.labels)}
- trained on: {manifest["backbone"]["model_type"]}, fingerprint {manifest["backbone"]["fingerprint"]}, {manifest["backbone"]["dtype"]}
"""
