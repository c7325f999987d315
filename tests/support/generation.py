"""A tiny decoder that can end its texts, rows for it to write, and texts written without a cache, padding or our forward."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tests.support.tiny import WORDS, make_language_backbone, run_json, write_jsonl


def make_writer(folder: Path, model_type: str, **changes: Any) -> Path:
    """A tiny language model whose tokenizer names an end token."""
    make_language_backbone(folder, model_type, **changes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def make_passages(folder: Path, sizes: dict[str, int] | None = None, seed: int = 5) -> Path:
    """Sources of 1 to 7 words; the target is the source's words in reverse, of 1 to 4 words."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 19, "dev": 7, "test": 5}).items():
        rows = []
        for i in range(count):
            words = [WORDS[j] for j in torch.randint(0, 60, (1 + (i * 5) % 7,), generator=generator).tolist()]
            rows.append({"source": " ".join(words), "target": " ".join(words[::-1][:4])})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def writing_run(backbone: Path, data: Path, **sections: Any) -> dict[str, Any]:
    """A small run file of a generation task in float64."""
    own = {"data": {"max_length": 12, "max_target_length": 6}}
    return run_json(backbone, data, **{**own, **sections, "task": {"kind": "generation"}})


@cache
def stock_model(folder: Path) -> Any:
    """transformers' own language model of a folder, float64."""
    # The eager kernel takes its softmax in float32, and is the only one that caps scores.
    is_capped = getattr(AutoConfig.from_pretrained(folder), "attn_logit_softcapping", None)
    kernel = "eager" if is_capped else "sdpa"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation=kernel).eval()


def stock_logits(folder: Path, table: Tensor | None, tokens: list[int], start: int) -> Tensor:
    """Logits [T, vocabulary] of a row alone by transformers' model, float64, the prefix [P, N, 2, G, D] as a cache."""
    model = stock_model(folder)
    seen, length = DynamicCache(), 0
    if table is not None:
        length = len(table)
        for layer in range(table.shape[1]):
            keys, values = table[:, layer].unbind(1)  # [P, G, D]
            seen.update(keys.transpose(0, 1)[None].double(), values.transpose(0, 1)[None].double(), layer)
    positions = start + torch.arange(len(tokens))[None]
    with torch.no_grad():
        found: Tensor = model(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.ones(1, length + len(tokens), dtype=torch.long),
            position_ids=positions,
            past_key_values=seen,
        ).logits[0]
    return found


def three_members(folder: Path, data: Path, model_type: str = "llama", **sections: Any) -> dict[str, Any]:
    """Prompts of unequal length, seed, batch and position policy, large enough to matter."""
    members: list[dict[str, Any]] = [
        {"name": "five", "prompt": {"length": 5}},
        {"name": "two", "prompt": {"length": 2, "positions": "from_zero"}, "train": {"seed": 12, "batch_size": 5}},
        {"name": "seven", "prompt": {"length": 7}, "train": {"seed": 13}, "optimizer": {"lr": 0.01}},
    ]
    return writing_run(make_writer(folder, model_type), data, fleet={"members": members}, **sections)


def enlarge(fleet: Any) -> None:
    """Prompts as large as keys and values, so that they matter."""
    with torch.no_grad():
        for member in fleet.members:
            torch.manual_seed(member.prompt.length)
            member.prompt.prefix.embedding.copy_(torch.randn_like(member.prompt.prefix.embedding))
