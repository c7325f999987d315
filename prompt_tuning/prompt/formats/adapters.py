"""Adapters' prefix tuning: ``adapter_config.json``, ``pytorch_adapter.bin``, and a head in ``pytorch_model_head.bin``.

``control_trans`` is the table in our own order, one vector [P * N * 2 * G * D], or a projection behind ``wte``; which of them is told
by the tensors, because a config says ``flat: false`` also of an ejected prefix. The text starts at 0. What has been compared with
Adapters 1.3.0 is in ``COMPARED``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.formats._found import Found, Stored, check_recorded, names_of, read_config, read_tensors
from prompt_tuning.settings.schema import RunFile

NAME = "adapters"
TOOL = "Adapters' prefix tuning"

COMPARED = ("bert", "roberta", "llama")
_Head = tuple[tuple[str, ...], str | None, dict[str, Tensor]]


def is_here(folder: Path) -> bool:
    """Whether a folder holds what Adapters saves."""
    return isinstance(read_config(folder, "adapter_config.json").get("config"), dict)


def read(folder: Path, settings: RunFile, described: Description, shape: PrefixShape) -> Found:
    """The prompt in a folder. Raises :class:`UserError`."""
    whole = read_config(folder, "adapter_config.json")
    config, model_type = whole["config"], described.config.model_type
    if config.get("architecture") != "prefix_tuning":
        raise UserError(
            f"{folder}: {config.get('architecture')!r} is no prefix tuning, which alone is imported from Adapters"
        )
    if config.get("use_gating"):
        raise UserError(f"{folder}: use_gating: its prefix depends on the text, and ours does not; train it without")
    if model_type not in COMPARED:
        raise UserError(
            f"{folder}: Adapters' prefix on {model_type} has not been compared with PromptFleet's; choose one of"
            f" {', '.join(COMPARED)}"
        )
    check_recorded(
        folder,
        described.path,
        {
            "model_type": (whole.get("model_type"), model_type),
            "hidden_size": (whole.get("hidden_size"), shape.hidden_size),
        },
    )
    stored = read_tensors(folder, "pytorch_adapter.bin", "adapter.safetensors")
    left_out = set(config.get("leave_out") or ())
    layers = tuple(i for i in range(shape.num_layers) if i not in left_out) if left_out else None
    prefix = _prefix(folder, stored, config["prefix_length"], shape)
    stored.done(TOOL)
    kinds, pooling, head = _head(folder, whole["name"], model_type, shape.hidden_size)
    remarks: tuple[str, ...] = ()
    if model_type == "llama":
        remarks = (
            "Adapters' prefix on LLaMA is right with attention 'eager' alone: trained with its default, this prompt has learned"
            " little or something else",
        )
    labels = _names(read_config(folder, "head_config.json"))
    return Found(prefix, "from_zero", kinds, pooling, head, layers, labels, remarks=remarks)


def _prefix(folder: Path, stored: Stored, length: int, shape: PrefixShape) -> Tensor:
    """[P, layers * 2 * G * D]. Every layer holds the same tensors once more, under ``pool``."""
    stored.drop([name for name in stored.names() if ".prefix_tuning.pool." in name])
    starts = {name.split(".self_prefix.")[0] for name in stored.names() if ".self_prefix." in name}
    if len(starts) != 1:
        raise UserError(f"{folder}: holds {len(starts)} prefixes, where one belongs; save one adapter by itself")
    start = f"{starts.pop()}.self_prefix"
    if f"{start}.wte.weight" in stored:
        return stored.folded(f"{start}.wte.weight", f"{start}.control_trans", length, shape)
    flat = stored.take(f"{start}.control_trans", None)
    if len(flat) % length:
        raise UserError(f"{folder}: {len(flat)} numbers are not those of {length} prompt tokens; copy it anew")
    return flat.view(length, -1)


def _names(config: dict[str, Any]) -> tuple[str, ...] | None:
    inner = config.get("config")
    return names_of(inner if isinstance(inner, dict) else config)


def _head(folder: Path, name: str, model_type: str, hidden: int) -> _Head:
    """Kinds, pooling and head; no file of a head: none."""
    whole = read_config(folder, "head_config.json")
    if not whole:
        return (), None, {}
    stored = read_tensors(folder, "pytorch_model_head.bin", "model_head.safetensors")
    if model_type == "llama":
        raise UserError(
            f"{folder}: its head on a decoder has not been compared; save the adapter without (with_head=False)"
        )
    config = whole.get("config")
    found = (
        _of_their_own(folder, stored, config, name, hidden)
        if isinstance(config, dict)
        else _of_transformers(folder, stored, str(whole.get("model_class")), hidden)
    )
    stored.done(TOOL)
    return found


def _of_their_own(folder: Path, stored: Stored, config: dict[str, Any], name: str, hidden: int) -> _Head:
    kind, layers = config.get("head_type"), config.get("layers")
    unlike = [key for key in ("use_pooler", "multilabel") if config.get(key)]
    if (
        kind not in ("classification", "tagging")
        or unlike
        or layers not in (1, 2)
        or (kind == "tagging" and layers == 2)
    ):
        what = ", ".join([f"head_type {kind!r}", f"layers {layers}", *unlike])
        raise UserError(
            f"{folder}: {what}: ours has no such head; train one of 'classification', or 'tagging' with one layer"
        )
    if layers == 1:
        pooling = "first" if kind == "classification" else "tokens"
        return (kind,), pooling, stored.linear(f"heads.{name}.1", None, hidden)
    if config.get("activation_function") != "tanh":
        raise UserError(
            f"{folder}: activation_function {config.get('activation_function')!r}, and ours is tanh; train with that"
        )
    pooler = stored.linear(f"heads.{name}.1", hidden, hidden, "pooler.")
    return (kind,), "pooler", stored.linear(f"heads.{name}.4", None, hidden) | pooler


def _of_transformers(folder: Path, stored: Stored, model_class: str, hidden: int) -> _Head:
    if model_class.endswith("ForTokenClassification"):
        return ("tagging",), "tokens", stored.linear("classifier", None, hidden)
    if model_class.endswith("ForQuestionAnswering"):
        return ("span",), "tokens", stored.linear("qa_outputs", 2, hidden)
    if model_class == "BertForSequenceClassification":
        return ("classification", "regression"), "pooler", stored.linear("classifier", None, hidden)
    if model_class == "RobertaForSequenceClassification":
        pooler = stored.linear("classifier.dense", hidden, hidden, "pooler.")
        return ("classification", "regression"), "pooler", stored.linear("classifier.out_proj", None, hidden) | pooler
    raise UserError(
        f"{folder}: a head of {model_class} has not been compared; use a class for sequences, tokens or questions"
    )
