"""Hidden states under the lowest prompt: what no prompt changes is computed once for each example and kept.

A prompt in the upper layers alone (``prompt.layers``) leaves the layers under it to the text. Without backbone dropout
their hidden states are the same in every step, so that a step may begin at the lowest prompt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_parallel.collectives import broadcast_object, gather_over_data_ranks, wait_long
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.bars import RowsBar
from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Batch, Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out, ranges
from prompt_tuning.forward.plan import plan
from prompt_tuning.storage.atomic import expand
from prompt_tuning.tokens.features import Features

logger = logging.getLogger(__name__)

Where = bool | str
"""``data.cache_activations``: not at all, in memory, or a folder."""


@dataclass(frozen=True)
class Depth:
    """Which hidden states: those that enter ``layer``, of texts that begin at a position."""

    layer: int
    text_start: int


def kept_states(backbone: Backbone, features: Features, depth: Depth, where: Where, budget: int) -> Tensor:
    """Hidden states [tokens of the split, H] that enter a layer, on the CPU; all ranks call this. Raises :class:`UserError`.

    In a folder they lie under a name that follows from backbone, tokens, layer, position and type, and are mapped.
    """
    size = (len(features.tokens), backbone.shape.hidden_size)
    if where is True:
        return _compute(backbone, features, depth, budget, torch.empty(size, dtype=backbone.model.dtype))
    file = expand(str(where)) / f"{_key(backbone, features, depth)}.bin"
    try:
        is_there = broadcast_object(file.is_file(), backbone.grid)
        if not is_there:
            _write(file, backbone, features, depth, budget, size)
        return _mapped(file, size, backbone.model.dtype)
    except OSError as error:
        raise UserError(
            f"data.cache_activations={where}: {error.strerror or error}; give a folder that all hosts share and can write"
        ) from None


def put_states(batch: Batch, pool: Pool, layer: int, states: Mapping[tuple[int, int], Tensor]) -> Batch:
    """A batch on the CPU that begins at ``layer``, with ``states`` by source and position of the first text token."""
    members = np.array(batch.members)[batch.member_of_row.numpy()]
    sources, starts = pool.source_of[members], pool.shapes.starts[members]
    first, lengths, rows = batch.first.numpy(), batch.lengths.numpy(), batch.row_examples.numpy()
    some = next(iter(states.values()))
    found = torch.empty(batch.input_ids.shape[1], some.shape[1], dtype=some.dtype)
    for source, start in sorted(set(zip(sources.tolist(), starts.tolist(), strict=True))):
        own = np.flatnonzero((sources == source) & (starts == start))
        read = ranges(pool.sources[source].offsets[rows[own]], lengths[own])
        found[torch.from_numpy(ranges(first[own], lengths[own]))] = states[source, start][torch.from_numpy(read)]
    return replace(batch, layer=layer, states=found[None])


@torch.no_grad()
def _compute(backbone: Backbone, features: Features, depth: Depth, budget: int, into: Tensor) -> Tensor:
    """Fill ``into`` [tokens, H]; each data rank runs its share, and every rank gets all."""
    grid, started = backbone.grid, time.monotonic()
    zero, one = np.zeros(1, np.int64), np.ones(len(features))
    pool = Pool([features], replace(PromptShapes.none(1), starts=zero + depth.text_start))
    items = Items(np.zeros(len(features), np.int64), np.arange(len(features)), one)
    was_training = backbone.model.training
    backbone.model.eval()
    with backbone.at_work() as model, RowsBar(len(features), title="hidden states under the prompts") as bar:
        done = 0
        for chosen in plan(pool, items, budget, grid.data_rank, grid.data):
            batch = lay_out(pool, chosen, backbone.description.pad_token, torch.device("cpu"))
            rows = batch.row_examples.numpy()
            places = ranges(features.offsets[rows], batch.lengths.numpy())
            here = batch.to(grid.device)
            with backbone.family.layers_until(model, depth.layer) as entering:
                positions = backbone.family.positions(here.positions, model.config)
                types = {} if here.token_type_ids is None else {"token_type_ids": here.token_type_ids}
                model(input_ids=here.input_ids, position_ids=positions, rows=PackedRows(here.groups), **types)
            mine = places, entering[0][0, here.tokens].cpu()
            for where, states in gather_over_data_ranks(mine, grid):
                into[torch.from_numpy(where)] = states
            done += len(chosen) * grid.data
            bar.show(min(done, len(features)))
    backbone.model.train(was_training)
    logger.info(
        "hidden states that enter layer %d are kept for %d examples: %.1f MB, computed in %.0f s",
        depth.layer,
        len(features),
        into.numel() * into.element_size() / 1e6,
        time.monotonic() - started,
    )
    return into


def _write(
    file: Path, backbone: Backbone, features: Features, depth: Depth, budget: int, size: tuple[int, int]
) -> None:
    """Compute states into a file, which has its name only when it is whole; the first rank's own."""
    grid, dtype = backbone.grid, backbone.model.dtype
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{grid.rank}.tmp")
    try:
        with temporary.open("wb") as made:
            # Room that a mapped file lacked would end the process without a word.
            os.posix_fallocate(made.fileno(), 0, size[0] * size[1] * dtype.itemsize)
        _compute(backbone, features, depth, budget, _mapped(temporary, size, dtype, writes=True))
        if grid.is_first:
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    wait_long(grid)


def _mapped(file: Path, size: tuple[int, int], dtype: torch.dtype, writes: bool = False) -> Tensor:
    """A tensor that lies in a file. Raises :class:`OSError` where the file is not whole."""
    if file.stat().st_size != size[0] * size[1] * dtype.itemsize:
        raise OSError(f"{file} has another size than it was written with; remove it")
    return torch.from_file(str(file), shared=writes, size=size[0] * size[1], dtype=dtype).view(size)


def _key(backbone: Backbone, features: Features, depth: Depth) -> str:
    facts = [backbone.fingerprint, str(backbone.model.dtype), features.digest, depth.layer, depth.text_start]
    if backbone.quantize is not None:
        facts.append(backbone.quantize)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
