"""The config of a .gguf file's model, from what the file says; what it says beyond that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from prompt_tuning.errors import UserError

ARCHITECTURES = {
    "llama": ("llama", "mistral"),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3_text",),
}
"""By llama.cpp's name: the model types that it may stand for, the first where no config.json lies beside the file."""

_VALUES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_READ_APART = {"rope.freq_base", "rope.freq_base_swa", "rope.scaling.type", "rope.scaling.factor"}
_READ_APART |= {
    "rope.scaling.original_context_length",
    "rope.scale_linear",
    "rope.dimension_count",
    "attention.value_length",
}
_NO_NUMBERS = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_OWN_SCALE = {"gemma2": 46, "gemma3": 62}
"""Layers of the Gemma (27B) whose attention scores are scaled by hidden size / heads instead of by the head size, which
no file says and llama.cpp tells by these too."""


def config_of(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """A config of transformers from a file's facts and tensors. Raises :class:`UserError`."""
    architecture = facts["general.architecture"]
    own = {key.removeprefix(f"{architecture}."): v for key, v in facts.items() if key.startswith(f"{architecture}.")}
    # A file has 1e-06 in float32, which is 9.99999997e-07.
    own = {key: float(str(np.float32(v))) if isinstance(v, float) else v for key, v in own.items()}
    unknown = [key for key in own if own[key] and key not in {*_VALUES, *_READ_APART, *_NO_NUMBERS}]
    if unknown:
        raise UserError(
            f"it says {architecture}.{unknown[0]}={own[unknown[0]]!r}, which is not understood; give the model in safetensors"
        )
    values = {name: own[key] for key, name in _VALUES.items() if key in own}
    missing = [key for key in list(_VALUES)[:5] if key not in own]
    if missing:
        raise UserError(f"it does not say {architecture}.{missing[0]}; get the file anew, or the model in safetensors")
    heads = values["num_attention_heads"]
    values.setdefault("num_key_value_heads", heads)
    head_size = values.setdefault("head_dim", own.get("rope.dimension_count") or values["hidden_size"] // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if own.get(key, head_size) != head_size:
            raise UserError(
                f"it says {architecture}.{key}={own[key]} beside heads of {head_size}, which is not understood;"
                " give the model in safetensors"
            )
    values |= {name: facts[f"tokenizer.ggml.{key}"] for key, name in _IDS.items() if f"tokenizer.ggml.{key}" in facts}
    values["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    values["tie_word_embeddings"] = "output.weight" not in tensors
    values["rope_parameters"] = _rope(own, values, tensors)
    if architecture.startswith("gemma"):
        is_largest = values["num_hidden_layers"] == _OWN_SCALE[architecture]
        values["query_pre_attn_scalar"] = values["hidden_size"] // heads if is_largest else head_size
    if architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": own.get("rope.freq_base_swa", 10000.0)}
        values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}
    if "blk.0.attn_q.bias" in tensors and architecture in ("llama", "qwen3"):
        values["attention_bias"] = True
    if architecture == "llama" and "blk.0.ffn_up.bias" in tensors:
        values["mlp_bias"] = True
    return AutoConfig.for_model(ARCHITECTURES[architecture][0], **values)


def _rope(own: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary frequencies, as transformers says them. Raises :class:`UserError` for those that it has no words for."""
    theta = {"rope_theta": float(own.get("rope.freq_base", 10000.0))}
    if "rope_freqs.weight" in tensors:
        return theta | _llama3(np.array(tensors["rope_freqs.weight"].data, np.float32), theta, values)
    kind = own.get("rope.scaling.type", "linear" if own.get("rope.scale_linear") else "none")
    factor = float(own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1)
    if kind == "none" or factor == 1:
        return {"rope_type": "default", **theta}
    if kind == "linear":
        return {"rope_type": kind, "factor": factor, **theta}
    original = own.get("rope.scaling.original_context_length")
    if kind == "yarn" and original:
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original, **theta}
    raise UserError(f"it says rope.scaling.type={kind!r}, which is not understood; give the model in safetensors")


def _llama3(divisors: np.ndarray, theta: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """LLaMA 3.1's scaling, of which a file has only the divisors of the frequencies."""
    said = {"rope_type": "llama3", "factor": float(divisors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    said["original_max_position_embeddings"] = 8192
    config = AutoConfig.for_model("llama", **values, rope_parameters={**said, **theta})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = values["head_dim"]
    plain = theta["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    if len(divisors) != size // 2 or not torch.allclose(plain / scaled, torch.from_numpy(divisors), rtol=1e-3):
        raise UserError("its rope_freqs are not LLaMA 3's, which is not understood; give the model in safetensors")
    return said
