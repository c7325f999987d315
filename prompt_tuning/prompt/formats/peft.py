"""PEFT's prefix tuning: ``adapter_config.json`` and ``adapter_model.safetensors`` (older: ``.bin``), read and written.

Its prefix is one table ``prompt_embeddings`` [P, N * 2 * G * D] in our own order, any projection folded in, behind rotary
positions as ours is; the text starts at P. What was compared is in ``_peft_models.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.formats._found import Found, Stored, check_recorded, read_config, read_tensors
from prompt_tuning.prompt.formats._peft_models import HEADS, KINDS, check_model
from prompt_tuning.prompt.formats._peft_writer import write
from prompt_tuning.settings.schema import RunFile

__all__ = ["NAME", "TOOL", "is_here", "read", "write"]

NAME = "peft"
TOOL = "PEFT's prefix tuning"


def is_here(folder: Path) -> bool:
    """Whether a folder holds what PEFT saves."""
    return "peft_type" in read_config(folder, "adapter_config.json")


def read(folder: Path, settings: RunFile, described: Description, shape: PrefixShape) -> Found:
    """The prompt in a folder. Raises :class:`UserError` for what another method, model or head would need."""
    config = read_config(folder, "adapter_config.json")
    task = _checked_task(folder, config)
    model_type = described.config.model_type
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
    check_model(str(folder), described, task, settings, len(prefix))
    pooling, head = _read_head(stored, task, model_type, shape.hidden_size)
    stored.done(TOOL)
    base = config.get("base_model_name_or_path")
    known = base in (None, described.path, str(described.folder)) or Path(str(base)).name == Path(described.path).name
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
