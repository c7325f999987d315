"""The tokenizer of a .gguf file, as a tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from prompt_tuning.backbone.tokenizer import space_as_sentencepiece
from prompt_tuning.errors import UserError

_BYTE_LEVEL = ("gpt-2", "llama3", "llama-v3", "llama-bpe", "qwen2", "deepseek-r1-qwen", "tekken")
"""Ways to split texts before byte pairs are merged that transformers knows by llama.cpp's name; another's place it takes GPT-2's."""
_WITH_BOS = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Those for which llama.cpp begins texts with the begin token where the file does not say."""
_REMEDY = "put the model's own tokenizer.json beside the file"


def save_tokenizer(file: Path, facts: Mapping[str, Any], target: Path) -> None:
    """Write the tokenizer of a .gguf file. Raises :class:`UserError` for one that would be read otherwise than llama.cpp does."""
    model, split = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if model not in ("llama", "gpt2") or (model == "gpt2" and split not in _BYTE_LEVEL):
        name = f"{model!r}" if model != "gpt2" else f"gpt2 with texts split as {split!r}"
        raise UserError(f"its tokenizer ({name}) is not understood; {_REMEDY}")
    options = {} if split not in _WITH_BOS or "tokenizer.ggml.add_bos_token" in facts else {"add_bos_token": True}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name, **options)
    if split in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    space_as_sentencepiece(tokenizer.backend_tokenizer, facts.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.save_pretrained(target)
