"""Folders that the released code of P-tuning v2 (Liu et al. 2022) leaves: a whole model in ``pytorch_model.bin``, prefix included.

``prefix_encoder.embedding.weight`` is the table [P, N * 2 * H], or [P, H] before ``prefix_encoder.trans``; the text starts at P. The
backbone beside it is compared with the one given.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.formats._found import Found, Stored, check_recorded, names_of, read_config, read_tensors
from prompt_tuning.settings.schema import RunFile

NAME = "p_tuning_v2"
TOOL = "P-tuning v2's own code"

BASES = {"bert": "bert.", "roberta": "roberta.", "deberta": "deberta.", "deberta-v2": "deberta."}
"""Model types of its classes, and what stands before the backbone's names."""
POOLED = ("classification", "choice", "regression")


def is_here(folder: Path) -> bool:
    """Whether a folder holds a model with a prefix encoder of that code."""
    config = read_config(folder, "config.json")
    return "pre_seq_len" in config and config.get("model_type") in BASES


def read(folder: Path, settings: RunFile, described: Description, shape: PrefixShape) -> Found:
    """The prompt in a folder. Raises :class:`UserError`."""
    config = read_config(folder, "config.json")
    own = described.config
    check_recorded(
        folder,
        described.path,
        {
            "model_type": (config["model_type"], own.model_type),
            "num_hidden_layers": (config.get("num_hidden_layers"), shape.num_layers),
            "num_attention_heads": (config.get("num_attention_heads"), shape.key_value_heads),
            "hidden_size": (config.get("hidden_size"), shape.hidden_size),
        },
    )
    stored = read_tensors(folder, "pytorch_model.bin", "model.safetensors")
    if "prefix_encoder.weight" in stored:
        raise UserError(
            f"{folder}: prompts at the input (--prompt), whose texts pass the embedding layer twice there; only those of --prefix"
            " are imported"
        )
    prefix = stored.folded("prefix_encoder.embedding.weight", "prefix_encoder.trans", config["pre_seq_len"], shape)
    kinds, pooling, head = _head(folder, stored, own.model_type, shape.hidden_size)
    base = BASES[own.model_type]
    stored.drop(f"{base}embeddings.{name}" for name in ("position_ids", "token_type_ids"))
    frozen = {name.removeprefix(base): stored.take_as_is(name) for name in stored.names(base)}
    stored.done(TOOL)
    remarks: tuple[str, ...] = ()
    if getattr(own, "conv_kernel_size", 0):
        remarks = (
            "its convolution sees what the embedding makes of padding behind short texts, ours sees nothing there",
        )
    return Found(prefix, "after_prefix", kinds, pooling, head, labels=names_of(config), frozen=frozen, remarks=remarks)


def _head(folder: Path, stored: Stored, model_type: str, hidden: int) -> tuple[tuple[str, ...], str, dict[str, Tensor]]:
    """Kinds, pooling and head. A pooler, drawn and frozen there, stands beside the heads that see one vector of a text."""
    if "qa_outputs.weight" in stored:
        return ("span",), "tokens", stored.linear("qa_outputs", 2, hidden)
    if "classifier.weight" not in stored:
        raise UserError(
            f"{folder}: no head (classifier or qa_outputs) is in it; the files are not whole, copy them anew"
        )
    head = stored.linear("classifier", None, hidden)
    if "pooler.dense.weight" in stored:
        return POOLED, "context", head | stored.linear("pooler.dense", hidden, hidden, "pooler.")
    pooler = f"{BASES[model_type]}pooler.dense"
    if f"{pooler}.weight" in stored:
        return POOLED, "pooler", head | stored.linear(pooler, hidden, hidden, "pooler.")
    return ("tagging",), "tokens", head
