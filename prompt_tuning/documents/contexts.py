"""What a document's prompt is worth: the same questions behind nothing, the document's first tokens, all of it, and the prompt.

Everything goes through transformers' own model and cache, whatever stands in front, so that the whole document is read as the
model itself reads it, local layers and all. Shape letters: B rows, C tokens in front, L tokens of a row.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from prompt_tuning.backbone.writer import cache_of, writer
from prompt_tuning.documents.context import context_ids
from prompt_tuning.errors import UserError
from prompt_tuning.forward.write import write_behind
from prompt_tuning.metrics.generation import Written
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.tokens.continuation import leading_tokens
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.passages import Document

TOGETHER = 8
"""Rows that write at once, where so many are of one length."""


@dataclass(frozen=True)
class Context:
    """What stands in front of questions, as a cache that has seen it."""

    name: str
    tokens: int
    start: int
    """Position of the first token behind it."""
    cache: DynamicCache

    @property
    def num_bytes(self) -> int:
        """Of its keys and values, as they lie in memory."""
        return sum(own.nbytes for layer in self.cache.layers for own in (layer.keys, layer.values) if own is not None)


@dataclass(frozen=True)
class Worth:
    """How questions are answered behind a context."""

    context: str
    tokens: int
    num_bytes: int
    metrics: dict[str, float]
    tokens_per_second: float
    """Written for several rows at once."""


def compare_contexts(
    model: AttachedPrompts, document: Document, features: Features, batch: int, written: int
) -> list[Worth]:
    """The four contexts over a split's questions; rates from ``batch`` equal rows that write ``written`` tokens each."""
    backbone, task, prompt = model.backbone, model.tasks[0], model.prompts[0].prompt
    assert prompt.prefix is not None
    ids, length = context_ids(backbone, document.text), prompt.length
    longest = int(np.diff(features.offsets).max()) + max(written, model.prompts[0].encoding.max_target_length)
    limit = backbone.description.family.max_positions(backbone.model.config)
    if len(ids) + longest > limit:
        raise UserError(
            f"the document's {len(ids)} tokens and {longest} behind them do not fit into the {limit} positions of {backbone.path};"
            " compare with a part of it"
        )
    gold = [list(texts) for texts in features.notes.targets]
    found = []
    with backbone.at_work(), writer(backbone, backbone.attention) as stock, torch.no_grad():
        table = cache_of([prompt.prefix.table()], 1, stock.dtype)
        assert table is not None
        contexts = [
            _read("no context", stock, ids[: len(leading_tokens(backbone.tokenizer))]),
            _read(f"first {length} tokens", stock, ids[:length]),
            _read("whole document", stock, ids),
            Context("prompt", length, prompt.text_start, table),
        ]
        for own in contexts:
            outputs = _outputs(model, stock, own, features)
            metrics = {name: metric(gold, outputs) for name, metric in task.metrics.items()}
            rate = _rate(stock, own, features, batch, written)
            found.append(Worth(own.name, own.tokens, own.num_bytes, metrics, rate))
    return found


def _read(name: str, stock: PreTrainedModel, ids: np.ndarray) -> Context:
    """Tokens, read by the model itself."""
    cache = DynamicCache(config=stock.config)
    if len(ids):
        stock(input_ids=torch.from_numpy(ids)[None].to(stock.device), past_key_values=cache, logits_to_keep=1)
    return Context(name, len(ids), len(ids), cache)


def _inputs(context: Context, rows: np.ndarray, device: torch.device) -> dict[str, Any]:
    """Rows [B, L] of one length behind a context: without padding, which local layers would count as text."""
    cache = copy.deepcopy(context.cache)
    if context.tokens:
        cache.batch_repeat_interleave(len(rows))
    ids = torch.from_numpy(rows.astype(np.int64)).to(device)
    positions = context.start + torch.arange(rows.shape[1], device=device).expand(len(rows), -1)
    mask = torch.ones(len(rows), context.tokens + rows.shape[1], dtype=torch.int64, device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}


def _outputs(model: AttachedPrompts, stock: PreTrainedModel, context: Context, features: Features) -> list[Written]:
    """What each row writes behind a context, as the prompt was trained to write, and how likely its target is."""
    exported, counts = model.prompts[0], features.notes.num_labels.tolist()
    rows = [features.tokens[a:b] for a, b in zip(features.offsets[:-1], features.offsets[1:], strict=True)]
    sources = [row[:count] for row, count in zip(rows, features.notes.num_source, strict=True)]
    texts: dict[int, str] = {}
    for length in sorted(set(map(len, sources))):
        alike = [place for place, own in enumerate(sources) if len(own) == length]
        for some in (alike[first : first + TOGETHER] for first in range(0, len(alike), TOGETHER)):
            inputs = _inputs(context, np.stack([sources[place] for place in some]), stock.device)
            found = write_behind(model.backbone, stock, inputs, exported.decode, exported.encoding.max_target_length)
            texts |= {place: own.text for place, own in zip(some, found, strict=True)}
    scores = _scores(stock, context, features, rows)
    return [Written(texts[place], *own) for place, own in enumerate(zip(scores, counts, strict=True))]


def _scores(stock: PreTrainedModel, context: Context, features: Features, rows: Sequence[np.ndarray]) -> list[float]:
    """Natural logarithm of the probability of each row's target; NaN where it has none."""
    found = []
    for place, row in enumerate(rows):
        wanted = features.asked(place)
        if not len(wanted):
            found.append(math.nan)
            continue
        # Each is asked of the token before it, and the last one is asked for and not read.
        logits = stock(**_inputs(context, row[None], stock.device), logits_to_keep=len(wanted)).logits[0]
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu()
        found.append(float(logs[np.arange(len(wanted)), wanted.astype(np.int64)].double().sum()))
    return found


def _rate(stock: PreTrainedModel, context: Context, features: Features, batch: int, written: int) -> float:
    """Tokens a second that equal rows write behind a context, the reading of their source included."""
    source = features.tokens[: int(features.notes.num_source[0])]
    config = GenerationConfig(max_new_tokens=written, min_new_tokens=written, pad_token_id=0)
    started = time.perf_counter()
    stock.generate(**_inputs(context, np.stack([source] * batch), stock.device), generation_config=config)
    return batch * written / (time.perf_counter() - started)
