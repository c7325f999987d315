"""The forward pass of a batch that mixes members.

Shape letters: T tokens of a batch end to end, R rows, P prompt tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_parallel import rng
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.forward.batch import Batch
from prompt_tuning.prompt.prompt import Prompt


def hidden_states(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> Tensor:
    """Last hidden states of the tokens [T, H], every row under its own member's prompt; of use where ``batch.read`` says.

    ``prompts`` are those of ``batch.members``. Prompt dropout is on where ``row_keys`` [R] are given. ``from_input`` takes
    the gradient down to the word embeddings whatever the prompts need.
    """
    dropout = None if row_keys is None else batch.rates
    place: Callable[[Tensor], Tensor] | None = _start_gradient if from_input and torch.is_grad_enabled() else None
    if batch.fronts is not None:
        place = _put_vectors(prompts, batch, row_keys, dropout)
    rows = _packed_rows(backbone, prompts, batch, row_keys, dropout)
    arguments: dict[str, Any] = {"rows": rows}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = batch.token_type_ids
    if getattr(backbone.model.config, "use_cache", False):
        arguments["use_cache"] = False
    hook = None
    if place is not None:
        # Inside the forward, so that under ZeRO-3 all ranks gather the same weights in the same order.
        hook = backbone.model.get_input_embeddings().register_forward_hook(lambda module, args, words: place(words))
    try:
        positions = backbone.family.positions(batch.positions, backbone.model.config)
        with backbone.deltas.of(rows), backbone.family.layers_from(backbone.model, batch.layer, batch.states):
            output = backbone.model(input_ids=batch.input_ids, position_ids=positions, **arguments)
    finally:
        if hook is not None:
            hook.remove()
    states: Tensor = output.last_hidden_state[0]
    return states


def _start_gradient(words: Tensor) -> Tensor:
    return words.detach().requires_grad_()


def _packed_rows(
    backbone: Backbone, prompts: list[Prompt], batch: Batch, row_keys: Tensor | None, dropout: Tensor | None
) -> PackedRows:
    """The rows of a batch with the prefixes of their members, and what these add to the backbone's vectors."""
    tables = tuple(None if p.prefix is None else p.prefix.by_layer(backbone.local_heads) for p in prompts)
    deltas = tuple(None if p.beside is None else backbone.deltas.share(p.beside.vectors()) for p in prompts)
    if dropout is None or row_keys is None:
        return PackedRows(batch.groups, batch.read, tables, heads=backbone.local_heads, deltas=deltas)
    return PackedRows(
        batch.groups,
        batch.read,
        tables,
        row_keys[batch.standing],
        dropout[batch.standing],
        backbone.local_heads,
        backbone.shape.key_value_heads,
        deltas=deltas,
    )


def _put_vectors(
    prompts: list[Prompt], batch: Batch, row_keys: Tensor | None, dropout: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """What puts some members' vectors in front of their rows' word embeddings [1, T, H] (Lester et al. 2021)."""
    fronts = batch.fronts
    assert fronts is not None
    tables: list[Tensor] = [prompt.inputs for prompt in prompts if prompt.inputs is not None]
    vectors = torch.cat(tables)[fronts.vectors]
    if dropout is not None and row_keys is not None:
        longest, hidden = max(map(len, tables)), vectors.shape[1]
        keep = rng.keep_mask(rng.fold(row_keys, 0), longest * hidden, dropout).view(-1, longest, hidden)
        kept = keep[fronts.rows, fronts.columns]
        vectors = vectors * kept / (1 - dropout)[fronts.rows, None].to(vectors.dtype)

    def place(words: Tensor) -> Tensor:
        return words.index_copy(1, fronts.places, vectors.to(words.dtype)[None])

    return place


def member_logits(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> list[Tensor]:
    """Logits of each of ``batch.members``: [its examples, classes or choices], or [its text tokens, outputs] per token."""
    logits = []
    pooled = pooled_texts(backbone, prompts, batch, row_keys, from_input)
    for place, (prompt, texts, span) in enumerate(zip(prompts, pooled, batch.spans, strict=True)):
        keys = None if row_keys is None else row_keys[span.rows]
        found = prompt.head(texts, batch.rows_of(place), keys, prompt.head_dropout)
        logits.append(
            found if prompt.head.pooling == "tokens" else found.view(span.examples.stop - span.examples.start, -1)
        )
    return logits


def pooled_texts(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> list[Tensor]:
    """What each of ``batch.members`` sees, pooled texts [its rows, H] or tokens [its text tokens, H].

    Without gradient where nothing below the head trains.
    """
    needs_gradient = torch.is_grad_enabled() and (
        any(prompt.reaches_backbone for prompt in prompts) or backbone.is_trained
    )
    with torch.set_grad_enabled(needs_gradient):
        hidden = hidden_states(backbone, prompts, batch, row_keys, from_input)
        return [prompt.head.pool(hidden, batch.rows_of(place), backbone.pooler) for place, prompt in enumerate(prompts)]
