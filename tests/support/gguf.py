"""Tiny .gguf files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SENTENCES = [
    f"The {a} {b} is {c}." for a in ("old", "new", "red") for b in ("house", "horse") for c in ("here", "there")
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}


OWN = {"llama": {"attention_bias": True, "tie_word_embeddings": False}, "qwen2": {"head_dim": 8}}
OWN |= {"qwen3": {"attention_bias": True}, "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8}}
OWN["gemma3_text"] = OWN["gemma2"]


def make_model(model_type: str, vocabulary: int, **changes: Any) -> PreTrainedModel:
    """A random language model with random norms and biases."""
    sizes = {
        **SIZES,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **OWN.get(model_type, {}),
        **changes,
    }
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_pieces(size: int = 320) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece tokenizer of byte pairs with bytes for what it does not know, as LLaMA's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=written,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    pieces: Any | None = None,
    quantised: bool = False,
    facts: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """A model's .gguf as F32, or with its matrices as Q8_0; returns the file.

    ``facts`` and ``tensors`` are added or, where None, left out.
    """
    import gguf

    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture)
    own = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if architecture != "qwen2":
        own[f"{architecture}.attention.key_length"] = own[f"{architecture}.attention.value_length"] = config.head_dim
    if architecture in ("gemma2", "gemma3"):
        own[f"{architecture}.attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        own["gemma2.attn_logit_softcapping"] = config.attn_logit_softcapping
        own["gemma2.final_logit_softcapping"] = config.final_logit_softcapping
    if architecture == "gemma3":
        own["gemma3.rope.freq_base"] = config.rope_parameters["full_attention"]["rope_theta"]
    for key, value in {**own, **(facts or {})}.items():
        if value is None:
            continue
        add: dict[type, Any] = {
            list: writer.add_array,
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key, value)
    if pieces is not None:
        _add_pieces(writer, pieces)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    written: dict[str, np.ndarray | None] = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            module, _, last = name.rpartition(".")
            value = _as_llama_cpp(tensor.detach().numpy(), name, config, architecture)
            written[f"{names.get_name(module)}.{last}"] = value
    for name, value in {**written, **(tensors or {})}.items():
        if value is None:
            continue
        if quantised and value.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(value, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _as_llama_cpp(value: np.ndarray, name: str, config: Any, architecture: str) -> np.ndarray:
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        value = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        value = value + 1
    return value


def _add_pieces(writer: Any, pieces: Any) -> None:
    count = range(pieces.vocab_size())
    # llama.cpp's numbers for unknown, control, byte and normal tokens.
    kinds = [2 if pieces.IsUnknown(i) else 3 if pieces.IsControl(i) else 6 if pieces.IsByte(i) else 1 for i in count]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in count])
    writer.add_token_scores([pieces.get_score(i) for i in count])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())


def byte_pairs(split: str) -> dict[str, Any]:
    """The facts of a byte-level tokenizer that is split by llama.cpp's rule of that name: all bytes, one pair, a begin token."""
    from tokenizers import pre_tokenizers

    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ã©", "<begin>"],
        "tokenizer.ggml.token_type": [*[1] * 257, 3],
        "tokenizer.ggml.merges": ["Ã ©"],
        "tokenizer.ggml.bos_token_id": 257,
    }
