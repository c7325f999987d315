"""Prefix encoders that ChatGLM2-6B's and ChatGLM3-6B's ``ptuning`` code leaves: ``pytorch_model.bin`` with the trained tensors alone.

Their table [P, N * 2 * G * D] is in our own order, with the key/value heads of multi-query attention; the text starts at 0. Keys are
rotated pair by pair, as transformers' GLM does, so only a backbone in that form takes them.
"""

from __future__ import annotations

from pathlib import Path

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.formats._found import Found, check_recorded, read_config, read_tensors
from prompt_tuning.settings.schema import RunFile

NAME = "chatglm"
TOOL = "ChatGLM's P-tuning v2"

ENCODER = "transformer.prefix_encoder"


def is_here(folder: Path) -> bool:
    """Whether a folder holds a prefix encoder of a ChatGLM."""
    config = read_config(folder, "config.json")
    return "pre_seq_len" in config and config.get("model_type") == "chatglm"


def read(folder: Path, settings: RunFile, described: Description, shape: PrefixShape) -> Found:
    """The prefix in a folder. Raises :class:`UserError`."""
    config = read_config(folder, "config.json")
    if "kv_channels" not in config:
        raise UserError(
            f"{folder}: made on ChatGLM-6B, whose positions in two dimensions transformers has no model for; only ChatGLM2's and"
            " ChatGLM3's are imported"
        )
    if described.config.model_type != "glm":
        raise UserError(
            f"{folder}: its keys are rotated as those of GLM are, and {described.path} is {described.config.model_type}; give the"
            " weights of its own ChatGLM in transformers' form of GLM (model_type 'glm')"
        )
    grouped = config.get("multi_query_attention", False)
    heads = config.get("multi_query_group_num") if grouped else config.get("num_attention_heads")
    check_recorded(
        folder,
        described.path,
        {
            "num_layers": (config.get("num_layers"), shape.num_layers),
            "key/value heads": (heads, shape.key_value_heads),
            "kv_channels": (config["kv_channels"], shape.head_size),
            "hidden_size": (config.get("hidden_size"), shape.hidden_size),
        },
    )
    stored = read_tensors(folder, "pytorch_model.bin", "model.safetensors")
    prefix = stored.folded(f"{ENCODER}.embedding.weight", f"{ENCODER}.trans", config["pre_seq_len"], shape)
    remarks = ["what ChatGLM puts around a source ([Round 1], ...) stands in the rows themselves"]
    if stored.names("transformer."):
        remarks.append("the backbone beside it, which has other names there, was not compared")
        stored.drop(name for name in stored.names("transformer.") if not name.startswith(ENCODER))
    stored.done(TOOL)
    return Found(prefix, "from_zero", ("generation",), None, remarks=tuple(remarks))
