"""PEFT's prefix tuning: ``adapter_config.json`` and ``adapter_model.safetensors`` (older: ``.bin``), read and written.

Its prefix is one table ``prompt_embeddings`` [P, N * 2 * G * D] in our own order, any projection folded in, behind rotary
positions as ours is; the text starts at P. What has been compared with PEFT 0.21.2 is in ``HEADS``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from model_parallel.loading import stored_tensors
from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description, describe_backbone, smallest_window
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.prompt.formats._found import (
    Found,
    Stored,
    check_recorded,
    has_types,
    read_config,
    read_tensors,
)
from prompt_tuning.prompt.head import Head
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import new_folder, write_json, write_text

NAME = "peft"
TOOL = "PEFT's prefix tuning"

HEADS = {
    **dict.fromkeys(("bert",), "pooled"),
    **dict.fromkeys(("roberta", "xlm-roberta"), "dense"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2"), "score"),
}
"""Model types whose classifiers were compared, and how they are built: a linear layer behind the pooler, one behind a dense
layer of their own, or one without bias on the last token."""
KINDS = {
    "SEQ_CLS": ("classification", "choice", "regression"),
    "TOKEN_CLS": ("tagging",),
    "QUESTION_ANS": ("span",),
    "CAUSAL_LM": ("generation",),
}
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
_ONLY_ZEROS = (
    "PEFT leaves token types out of questions, and PromptFleet's texts on this backbone have them, so that answers would differ;"
    " use a backbone without token types, such as RoBERTa"
)


def is_here(folder: Path) -> bool:
    """Whether a folder holds what PEFT saves."""
    return "peft_type" in read_config(folder, "adapter_config.json")


def read(folder: Path, settings: RunFile, described: Description, shape: PrefixShape) -> Found:
    """The prompt in a folder. Raises :class:`UserError` for what another method, model or head would need."""
    config = read_config(folder, "adapter_config.json")
    task = _checked_task(folder, config)
    model_type = described.config.model_type
    _check_model(str(folder), described, task, settings)
    check_recorded(
        folder,
        described.path,
        {
            "num_layers": (config.get("num_layers"), shape.num_layers),
            "num_attention_heads (key/value heads)": (config.get("num_attention_heads"), shape.key_value_heads),
            "token_dim": (config.get("token_dim"), shape.key_value_heads * shape.head_size),
        },
    )
    stored = read_tensors(folder, "adapter_model.safetensors", "adapter_model.bin")
    prefix = stored.take("prompt_embeddings", config.get("num_virtual_tokens"), None)
    pooling, head = _read_head(stored, task, model_type, shape.hidden_size)
    stored.done(TOOL)
    base = config.get("base_model_name_or_path")
    known = base in (None, described.path) or Path(str(base)).name == Path(described.path).name
    remarks = () if known else (f"PEFT trained it on {base}, and it is taken for {described.path}",)
    return Found(prefix, "after_prefix", KINDS[task], pooling, head, remarks=remarks)


def _checked_task(folder: Path, config: dict[str, Any]) -> str:
    method, task = config["peft_type"], config.get("task_type")
    if method != "PREFIX_TUNING":
        why = {
            "PROMPT_TUNING": "prompts at the input, of which PEFT's heads read tokens where ours read the text's",
            "P_TUNING": "prompts at the input, of which PEFT's heads read tokens where ours read the text's",
        }.get(method, "which is no deep prompt")
        raise UserError(f"{folder}: peft_type {method}, {why}; only PREFIX_TUNING is imported")
    if task == "SEQ_2_SEQ_LM" or config.get("num_transformer_submodules") == 2:
        raise UserError(
            f"{folder}: a prefix of a model of encoder and decoder, of which PEFT reaches the decoder alone; only encoders and"
            " decoders by themselves are imported"
        )
    if task not in KINDS:
        raise UserError(
            f"{folder}: task_type {task!r}, for which PEFT has no head (without one it leaves the prefix out); imported are"
            f" {', '.join(KINDS)}"
        )
    return str(task)


def _check_model(where: str, described: Description, task: str, settings: RunFile) -> None:
    """Raise :class:`UserError` unless PEFT on this backbone computes what a prompt of ours does."""
    model_type = described.config.model_type
    if model_type not in HEADS:
        raise UserError(
            f"{where}: PEFT's prefix on {model_type} has not been compared with PromptFleet's; choose one of {', '.join(HEADS)}"
        )
    if task == "QUESTION_ANS" and has_types(described):
        raise UserError(f"{where}: {_ONLY_ZEROS}")
    if task in ("TOKEN_CLS", "QUESTION_ANS") and HEADS[model_type] == "score":
        raise UserError(f"{where}: {task} on {model_type}, a decoder, has not been compared; use an encoder")
    if task == "CAUSAL_LM" and HEADS[model_type] != "score":
        raise UserError(f"{where}: {task} on {model_type}, an encoder, is nothing that PEFT runs; use a decoder")
    window = smallest_window(described.config)
    written = max(settings.data.max_target_length, settings.decode.max_new_tokens or 0) if settings.is_written else 0
    if window is not None and settings.prompt.length + settings.data.max_length + written > window:
        raise UserError(
            f"{where}: local layers see {window} tokens, and PEFT's prefix is lost from sight in longer texts, ours never;"
            f" set the longest text to {max(0, window - settings.prompt.length - written)} tokens or less"
        )


def _read_head(stored: Stored, task: str, model_type: str, hidden: int) -> tuple[str | None, dict[str, Tensor]]:
    """Pooling and head; ``base_model.`` stands before every name."""
    if task == "CAUSAL_LM":
        return None, {}
    if task == "QUESTION_ANS":
        return "tokens", stored.linear("base_model.qa_outputs", 2, hidden)
    if task == "TOKEN_CLS":
        return "tokens", stored.linear("base_model.classifier", None, hidden)
    if HEADS[model_type] == "score":
        weight = stored.take("base_model.score.weight", None, hidden)
        return "last", {"weight": weight, "bias": torch.zeros(len(weight))}
    if HEADS[model_type] == "dense":
        dense = stored.linear("base_model.classifier.dense", hidden, hidden, "pooler.")
        return "pooler", stored.linear("base_model.classifier.out_proj", None, hidden) | dense
    head = stored.linear("base_model.classifier", None, hidden)
    pooler = f"base_model.{model_type}.pooler.dense"
    if f"{pooler}.weight" in stored:
        head |= stored.linear(pooler, hidden, hidden, "pooler.")
    return "pooler", head


def write(folder: Path, exported: ExportedPrompt) -> None:
    """Write a prompt as PEFT saves one, with a README that says how it is loaded. Raises :class:`UserError` for what would
    answer otherwise there."""
    recorded, prefix = exported.manifest["backbone"], exported.prompt.prefix
    if prefix is None:
        method = exported.manifest["method"]
        raise UserError(f"{exported.folder}: method {method!r} has no prefix, which alone is written for PEFT")
    described = describe_backbone(BackboneSection(path=exported.backbone_path, revision=recorded["revision"]))
    task = next(name for name, kinds in KINDS.items() if exported.task.kind in kinds)
    _check_is_mapped(exported, described, task)
    tensors, modules = _written_head(exported, described, task)
    tensors["prompt_embeddings"] = prefix.table().reshape(prefix.length, -1)
    shape = prefix.shape
    config = {
        "base_model_name_or_path": exported.backbone_path,
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
        write_text(target / "README.md", _readme(exported, task))


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
            "prompt": {"length": prompt.length},
            "decode": manifest.get("decode", {}),
        }
    )
    assert prompt.prefix is not None
    reasons = {
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
    _check_model(where, described, task, settings)
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


def _readme(exported: ExportedPrompt, task: str) -> str:
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
from transformers import {_CLASSES[task]}

base = {_CLASSES[task]}.from_pretrained({exported.backbone_path!r}{outputs})
model = PeftModel.from_pretrained(base, "this folder").eval()
```

- task: {exported.task.name} ({exported.task.kind}); texts: template {manifest["template"]!r}, max_length {manifest["max_length"]}{target}
- labels, in the order of the logits: {", ".join(exported.labels)}
- trained on: {manifest["backbone"]["model_type"]}, fingerprint {manifest["backbone"]["fingerprint"]}, {manifest["backbone"]["dtype"]}
"""
