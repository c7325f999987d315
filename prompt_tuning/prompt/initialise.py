"""Where prompts start: from the backbone's own view of training text, or from an exported prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model_parallel import rng
from model_parallel.collectives import gather_over_tensor_ranks
from prompt_tuning.backbone.find import Description
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.backbone.rows import Group, PackedRows
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.start import StartText
from prompt_tuning.tokens.continuation import text_ids
from prompt_tuning.tokens.features import Features

logger = logging.getLogger(__name__)

TOKENS_MEASURED = 512


@torch.no_grad()
def start_from_data(prompt: Prompt, backbone: Backbone, features: Features, seed: int) -> None:
    """Set a prompt to the keys and values (or, at the input, the word embeddings) of training text.

    The text is training rows in a random order of the seed's, joined until they have as many tokens as the prompt. It
    stands at positions 0 to P - 1, in front of where ``after_prefix`` puts the task's text.
    """
    start_from_ids(prompt, backbone, _some_tokens(features, prompt.length, rng.key(seed, "init", "text")))


@torch.no_grad()
def start_from_ids(prompt: Prompt, backbone: Backbone, tokens: np.ndarray) -> None:
    """Set a prompt of length P to the keys and values (or, at the input, the word embeddings) of P token ids at positions 0
    to P - 1. Ranks call it together.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(backbone.grid.device)
    if prompt.inputs is not None:
        with backbone.at_work() as model:
            prompt.inputs.copy_(model.get_input_embeddings()(ids)[0])
        return
    assert prompt.prefix is not None
    table = text_table(backbone, ids, [ids.shape[1]])
    prompt.prefix.fill(table.to(prompt.prefix.embedding.dtype))


@torch.no_grad()
def measure_scale(prefix: Prefix, backbone: Backbone, features: Features) -> None:
    """Set a relative prefix's scale to the root mean square of the backbone's own keys and values on training text.

    For each layer, and for keys and values apart, over all heads and over some ``TOKENS_MEASURED`` tokens of training rows,
    the same ones whatever the seed.
    """
    assert prefix.scale is not None
    rows, have = [], 0
    for row in rng.permutation(rng.key(0, "scale"), len(features.offsets) - 1).numpy():
        tokens = features.tokens[features.offsets[row] : features.offsets[row + 1]][: TOKENS_MEASURED - have]
        rows.append(tokens)
        have += len(tokens)
        if have == TOKENS_MEASURED:
            break
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(backbone.grid.device)
    found = text_table(backbone, ids, [len(row) for row in rows if len(row)])
    scale = found.to(prefix.scale.dtype).square().mean((0, 3, 4)).sqrt()  # [N, 2]
    if prefix.layers is not None:
        scale = scale[list(prefix.layers)]
    prefix.scale.copy_(scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, :, None, None])


@torch.no_grad()
def text_table(backbone: Backbone, ids: Tensor, lengths: list[int]) -> Tensor:
    """The backbone's keys and values of tokens [1, T], rows of these lengths end to end, as a table [T, N, 2, G, D] of all
    heads in the backbone's type. Ranks call it together.
    """
    captured: dict[int, Tensor] = {}
    index = torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None]
    positions = backbone.family.positions(index, backbone.model.config)
    groups: list[tuple[int, ...]] = [(0, length) for length in lengths]
    if backbone.description.has_encoder:  # it reads each row and writes it again
        ids = torch.cat([part for row in ids[0].split(lengths) for part in (row, row[:-1])])[None]
        groups = [(0, 2 * length - 1, length) for length in lengths]
    rows = PackedRows(Group.neighbours(groups))
    backbone.model.eval()
    with backbone.at_work() as model:
        model(input_ids=ids, position_ids=positions, rows=rows, captured=captured)
    backbone.model.train()
    # [N, 2, G, T, D] of this tensor rank's heads G; where ranks share a head, the first of them has it for all.
    mine = torch.stack([captured[layer] for layer in sorted(captured)])[:, :, 0]
    pieces = gather_over_tensor_ranks(mine, backbone.grid)
    shared = max(1, len(pieces) // backbone.shape.key_value_heads)
    return torch.cat(pieces[::shared], dim=2).permute(3, 0, 1, 2, 4)


def start_ids(configs: Sequence[RunFile], described: Description) -> list[np.ndarray | None]:
    """For each of some members the first P token ids of the text that its ``prompt.init`` names; None: it names none, or there
    is no prompt. A text that many name is read and said once.

    Raises :class:`UserError` where a text has fewer, or other tokens than the backbone.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    starts: list[np.ndarray | None] = []
    for config in configs:
        init, length = config.prompt.init, config.prompt.length
        if not isinstance(init, StartText) or config.method not in ("deep_prompt", "shallow_prompt"):
            starts.append(None)
            continue
        key = init.model_dump_json(), length
        if key not in found:
            found[key] = _first_ids(init, length, described.tokenizer)
            described.check_tokens(int(found[key].max()))
        starts.append(found[key])
    return starts


def _first_ids(init: StartText, length: int, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The first token ids of a text, behind what the tokenizer puts in front of one."""
    ids = text_ids(tokenizer, init.read())
    if len(ids) < length:
        raise UserError(
            f"prompt.init: its text has {len(ids)} tokens, fewer than prompt.length={length}; set prompt.length={len(ids)},"
            " or give a longer text"
            if len(ids)
            else "prompt.init: its text has no tokens; give it words"
        )
    logger.info("prompt.init: the prompt starts from the first %d of its text's %d tokens", length, len(ids))
    return ids[:length]


def _some_tokens(features: Features, count: int, key: int) -> np.ndarray:
    order = rng.permutation(key, len(features.offsets) - 1).numpy()
    pieces, have = [], 0
    while have < count:
        for row in order:
            pieces.append(features.tokens[features.offsets[row] : features.offsets[row + 1]])
            have += len(pieces[-1])
            if have >= count:
                break
    return np.concatenate(pieces)[:count]


@torch.no_grad()
def start_from_prompt(prompt: Prompt, source: Prompt, where: str) -> None:
    """Copy prefix or input prompts, what was trained beside them, and the head where it has the same outputs, from an exported
    prompt."""
    if _kind(source) != _kind(prompt):
        raise UserError(
            f"prompt.init_from={where}: it is a {_kind(source)}, but this run trains a {_kind(prompt)};"
            " set prompt.length and method to match"
        )
    if source.beside is not None:
        own = {} if prompt.beside is None else prompt.beside.lengths
        lost = [name for name in source.beside.lengths if name not in own]
        if lost:
            raise UserError(
                f"prompt.init_from={where}: it was trained together with deltas of {len(lost)} vectors, such as {lost[0]}, which"
                " this run would not train; set train.also and prompt.layers as it had them"
            )
        assert prompt.beside is not None
        prompt.beside.fill(source.beside.vectors())
    if prompt.prefix is not None and source.prefix is not None:
        if prompt.prefix.projection is not None:
            raise UserError(
                f"prompt.init_from={where}: an exported prompt is a plain table; set prompt.reparameterisation 'none'"
            )
        prompt.prefix.fill(source.prefix.table())
    if prompt.inputs is not None and source.inputs is not None:
        prompt.inputs.copy_(source.inputs)
    if not isinstance(source.head, Head) or not isinstance(prompt.head, Head):
        return  # the language model answers for one of them; it has no head to start from
    if source.head.weight.shape == prompt.head.weight.shape and source.head.pooling == prompt.head.pooling:
        prompt.head.weight.copy_(source.head.weight)
        prompt.head.bias.copy_(source.head.bias)
    if prompt.head.pooler is not None and source.head.pooler is not None:
        prompt.head.pooler.load_state_dict(source.head.pooler.state_dict())


def _kind(prompt: Prompt) -> str:
    if prompt.lora is not None:
        return "prompt of method lora"
    if prompt.length == 0:
        return "head alone"
    return f"{'prefix' if prompt.prefix is not None else 'input prompt'} of length {prompt.length}"
