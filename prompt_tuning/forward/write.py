"""Texts that the language model writes behind prompts and sources; rows of different prompts share a batch.

Shape letters: B rows of a batch, L tokens of its longest source, P of its longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from model_parallel import rng
from model_parallel.collectives import gather_over_data_ranks
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.backbone.writer import cache_of, put_in_front, writer
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.tokens.continuation import end_token
from prompt_tuning.tokens.features import Features

Source = tuple[int, np.ndarray]
"""A prompt, by its place among those given, and the tokens behind which it writes."""


@dataclass(frozen=True)
class Text:
    """What was written behind a source."""

    text: str
    num_tokens: int
    """Without the end token."""
    has_ended: bool
    """By its end token or at one of the texts at which writing ends, and not because it may have no more tokens."""


def sources_of(prompt: int, features: Features, count: int | None = None) -> list[Source]:
    """The sources of a split's first ``count`` examples."""
    ends = features.offsets[:-1] + features.notes.num_source
    return [
        (prompt, features.tokens[first:end]) for first, end in zip(features.offsets[:count], ends[:count], strict=False)
    ]


@torch.no_grad()
def write_texts(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    sources: Sequence[Source],
    settings: DecodeSection,
    max_new_tokens: int,
    budget: int,
    seed: int = 0,
    streamer: Any = None,
) -> list[Text]:
    """A text for each source, the same on every rank. Every rank calls this.

    ``max_new_tokens`` counts where ``settings`` names none; ``budget``: most tokens of a batch, over prompts, texts and beams.
    ``streamer``: gets the tokens of the only source as they come, as transformers' streamers do.
    """
    if not sources:
        return []
    most = settings.max_new_tokens or max_new_tokens
    longest: dict[int, int] = {}
    for p, tokens in sources:
        longest[p] = max(longest.get(p, 0), len(tokens))
    for p, length in longest.items():
        check_positions(backbone, prompts[p], length, most)
    lengths = np.array([prompts[p].length + len(tokens) for p, tokens in sources])
    mine: list[tuple[int, Text]] = []
    tables = {p: _table(prompts[p], backbone.local_heads) for p in sorted({p for p, _ in sources})}
    batches = _batches(backbone, lengths, most, budget // settings.num_beams)
    with backbone.at_work(), writer(backbone, backbone.attention) as model:
        for batch in batches:
            some = [sources[i] for i in batch]
            inputs = _inputs(backbone, prompts, tables, some, settings.num_beams)
            with torch.random.fork_rng([backbone.grid.device] if backbone.grid.device.type == "cuda" else []):
                torch.manual_seed(rng.key(seed, "write", int(batch[0])))
                # Under ZeRO-3 no rank can go through the layers by itself.
                is_together = backbone.zero is not None and backbone.grid.size > 1
                found = write_behind(
                    backbone, model, inputs, settings, most, streamer=streamer, synced_gpus=is_together
                )
            mine += zip(batch.tolist(), found, strict=True)
    whole = dict(pair for part in gather_over_data_ranks(mine, backbone.grid) for pair in part)
    return [whole[i] for i in range(len(sources))]


def write_behind(
    backbone: Backbone,
    model: PreTrainedModel,
    inputs: dict[str, Any],
    settings: DecodeSection,
    most: int,
    **how: Any,
) -> list[Text]:
    """What the backbone's language model, a :func:`writer`, writes to each row of inputs of `generate`, a cache perhaps among them."""
    config, stops = _generation_config(backbone, settings, most), _Stops(backbone.tokenizer, settings.stop)
    return _texts(backbone, _generate(model, inputs, config, stops, **how), settings.stop)


def write(
    backbone: Backbone, prompts: Sequence[Prompt], sources: Sequence[Source], *how: Any, **more: Any
) -> list[str]:
    """As :func:`write_texts`, the texts alone."""
    return [own.text for own in write_texts(backbone, prompts, sources, *how, **more)]


def _generation_config(backbone: Backbone, settings: DecodeSection, most: int) -> GenerationConfig:
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.sample else {}
    return GenerationConfig(
        max_new_tokens=most,
        num_beams=settings.num_beams,
        do_sample=settings.sample,
        eos_token_id=end_token(backbone.tokenizer),
        pad_token_id=backbone.description.pad_token,
        decoder_start_token_id=getattr(backbone.model.config, "decoder_start_token_id", None),
        **drawn,
    )


def _batches(backbone: Backbone, lengths: np.ndarray, most: int, budget: int) -> list[np.ndarray]:
    """Places of sources that this data rank writes together, the longest first; under ZeRO-3 as many batches as any rank has."""
    order, ranks = np.argsort(-lengths, kind="stable"), backbone.grid.data

    def cut(places: np.ndarray) -> list[np.ndarray]:
        found = []
        while len(places):
            count = max(1, budget // int(lengths[places[0]] + most))
            found.append(places[:count])
            places = places[count:]
        return found

    shares = [cut(order[rank::ranks]) for rank in range(ranks)]
    own = shares[backbone.grid.data_rank]
    # Written once more, so that this rank helps the others.
    spare = max(map(len, shares)) - len(own) if backbone.zero is not None else 0
    return own + [order[:1]] * spare


def _table(prompt: Prompt, heads: slice) -> Tensor | None:
    return None if prompt.prefix is None else prompt.prefix.table()[..., heads, :]


def _inputs(
    backbone: Backbone, prompts: Sequence[Prompt], tables: dict[int, Tensor | None], sources: list[Source], beams: int
) -> dict[str, Any]:
    """What `generate` takes: sources padded in front, a mask over prompts and sources, positions, and the prompts as a cache."""
    if backbone.description.has_encoder:
        return _encoder_inputs(backbone, prompts, tables, sources)
    device = backbone.grid.device
    longest, front = max(len(tokens) for _, tokens in sources), max(prompts[p].length for p, _ in sources)
    ids = np.full((len(sources), longest), backbone.description.pad_token, np.int64)
    mask = np.zeros((len(sources), front + longest), np.int64)
    positions = np.zeros((len(sources), longest), np.int64)
    for row, (p, tokens) in enumerate(sources):
        ids[row, longest - len(tokens) :] = tokens
        mask[row, front - prompts[p].length : front] = 1
        mask[row, front + longest - len(tokens) :] = 1
        positions[row, longest - len(tokens) :] = prompts[p].text_start + np.arange(len(tokens))
    whole = [tables[p] for p, _ in sources]
    cache = None
    if front:
        shape = backbone.shape
        heads = len(range(shape.key_value_heads)[backbone.local_heads])
        none = torch.zeros(0, shape.num_layers, 2, heads, shape.head_size, device=device)
        cache = cache_of([none if table is None else table for table in whole], beams, backbone.model.dtype)
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: torch.from_numpy(value).to(device) for name, value in found.items()} | {"past_key_values": cache}


def _encoder_inputs(
    backbone: Backbone, prompts: Sequence[Prompt], tables: dict[int, Tensor | None], sources: list[Source]
) -> dict[str, Any]:
    """The same for an encoder, whose positions begin with a row: padded behind, prompts in front of each attention's keys."""
    ids = np.full((len(sources), max(len(tokens) for _, tokens in sources)), backbone.description.pad_token, np.int64)
    for row, (_, tokens) in enumerate(sources):
        ids[row, : len(tokens)] = tokens
    mask = np.arange(ids.shape[1]) < np.array([[len(tokens)] for _, tokens in sources])
    prefixes = [prompts[p].prefix for p, _ in sources]
    reached = [None if prefix is None else prefix.layers for prefix in prefixes]
    put_in_front(backbone, [tables[p] for p, _ in sources], reached)
    found = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    return {name: torch.from_numpy(value).to(backbone.grid.device) for name, value in found.items()}


class _Stops:
    """Which rows have written one of some texts; transformers' own criterion does not know every tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts, self.start = tokenizer, texts, 0

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        written = self.tokenizer.batch_decode(ids[:, self.start :], skip_special_tokens=True)
        found = [any(text in own for text in self.texts) for own in written]
        return torch.tensor(found, device=ids.device)


def _generate(
    model: PreTrainedModel, inputs: dict[str, Any], config: GenerationConfig, stops: _Stops, **how: Any
) -> np.ndarray:
    """Tokens written to each row [B, at most max_new_tokens]."""
    # A decoder that looks at an encoder begins with its start token alone.
    stops.start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    criteria = StoppingCriteriaList([stops] if stops.texts else [])
    found: Tensor = model.generate(**inputs, generation_config=config, stopping_criteria=criteria, **how)
    return found[:, stops.start :].cpu().numpy()


def _texts(backbone: Backbone, ids: np.ndarray, stop: Sequence[str]) -> list[Text]:
    """Texts of rows [B, tokens written], which are filled behind their ends."""
    found = []
    for row in ids:
        tokens, has_ended = _up_to_end(backbone.tokenizer, row)
        whole = str(backbone.tokenizer.decode(tokens, skip_special_tokens=True))
        count = len(tokens)
        if not has_ended and any(piece in whole for piece in stop):
            # Padding stands behind such a text.
            has_ended, count = True, len(np.trim_zeros(tokens != backbone.description.pad_token, "b"))
        found.append(Text(_cut(whole, stop), count, has_ended))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, stop: Sequence[str]) -> str:
    """Written tokens as a text, up to the end token and to the first of the texts at which writing ends."""
    return _cut(str(tokenizer.decode(_up_to_end(tokenizer, tokens)[0], skip_special_tokens=True)), stop)


def _up_to_end(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> tuple[np.ndarray, bool]:
    """What stands in front of the end token, and whether there is one."""
    ends = np.flatnonzero(tokens == end_token(tokenizer))
    return (tokens[: ends[0]], True) if len(ends) else (tokens, False)


def _cut(text: str, stop: Sequence[str]) -> str:
    for piece in stop:
        text = text.partition(piece)[0]
    return text.strip()


def check_positions(backbone: Backbone, prompt: Prompt, source: int, most: int) -> None:
    """Raise :class:`UserError` where a source of some tokens and ``most`` behind it have no room behind a prompt."""
    described = backbone.description
    described.check_writes(prompt.length + source + most)
    if described.has_encoder:
        described.check_length(prompt.length, source, "from_zero", most)
        return
    limit = described.family.max_positions(described.config)
    if prompt.text_start + source + most > limit:
        raise UserError(
            f"{prompt.text_start} tokens of the prompt, {source} of the text and max_new_tokens={most} need"
            f" {prompt.text_start + source + most} positions, and the backbone has {limit}; write fewer tokens or behind a"
            " shorter text"
        )
