"""The forward pass of a batch that mixes members.

Shape letters: R rows, L padded text length, T text with input prompts in front, P prompt tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.forward.batch import Batch
from prompt_tuning.prompt.prefix import gather_rows
from prompt_tuning.prompt.prompt import Prompt


def hidden_states(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> Tensor:
    """Last hidden states of the text tokens [R, L, H], every row under its own member's prompt.

    ``prompts`` are those of ``batch.members``. Prompt dropout is on where ``row_keys`` [R] are given. ``from_input`` takes
    the gradient down to the word embeddings whatever the prompts need.
    """
    device = batch.input_ids.device
    members = batch.member_of_row
    rates = [prompt.dropout for prompt in prompts]
    dropout = None
    if row_keys is not None and any(rates):
        dropout = torch.tensor(rates, dtype=torch.float64, device=device)[members]
    prefix = gather_rows([prompt.prefix for prompt in prompts], members, row_keys, dropout, backbone.local_heads)
    starts = torch.tensor([prompt.text_start for prompt in prompts], device=device)[members][:, None]
    arguments = {} if prefix is None else {"prefix": prefix}
    if any(prompt.inputs is not None for prompt in prompts):
        return _with_input_prompts(backbone, prompts, batch, starts, arguments, row_keys, dropout)
    column = torch.arange(batch.input_ids.shape[1], device=device)
    real = column < batch.lengths[:, None]
    place = _start_gradient if from_input and torch.is_grad_enabled() else None
    return _run(backbone, batch.input_ids, batch.token_type_ids, column + starts, real, arguments, place)


def _start_gradient(words: Tensor) -> Tensor:
    return words.detach().requires_grad_()


def _run(
    backbone: Backbone,
    ids: Tensor,
    types: Tensor | None,
    index: Tensor,
    real: Tensor,
    arguments: dict[str, Any],
    place: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The backbone's last hidden states [R, T, H]; ``place`` changes its word embeddings [R, T, H] on their way."""
    # Padding gets index 0: in a mixed batch it may lie beyond what the member's own length check allows.
    positions = backbone.family.positions(index.masked_fill(~real, 0), real, backbone.model.config)
    if types is not None:
        arguments = {**arguments, "token_type_ids": types}
    if getattr(backbone.model.config, "use_cache", False):
        arguments = {**arguments, "use_cache": False}
    hook = None
    if place is not None:
        # Inside the forward, so that under ZeRO-3 all ranks gather the same weights in the same order.
        hook = backbone.model.get_input_embeddings().register_forward_hook(lambda module, args, words: place(words))
    try:
        output = backbone.model(input_ids=ids, attention_mask=real.long(), position_ids=positions, **arguments)
    finally:
        if hook is not None:
            hook.remove()
    states: Tensor = output.last_hidden_state
    return states


def _with_input_prompts(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    starts: Tensor,
    arguments: dict[str, Any],
    row_keys: Tensor | None,
    dropout: Tensor | None,
) -> Tensor:
    """As :func:`hidden_states`, with some members' vectors in front of the word embeddings (Lester et al. 2021)."""
    device, members = batch.input_ids.device, batch.member_of_row
    widths = [0 if prompt.inputs is None else prompt.length for prompt in prompts]
    width = torch.tensor(widths, device=device)[members][:, None]
    text = torch.arange(batch.input_ids.shape[1], device=device).expand_as(batch.input_ids)
    column = torch.arange(batch.input_ids.shape[1] + max(widths), device=device)
    source = (column - width).clamp(0, batch.input_ids.shape[1] - 1)
    dtype, hidden = backbone.prompt_dtype, backbone.shape.hidden_size
    padded = [
        torch.zeros(max(widths), hidden, dtype=dtype, device=device)
        if prompt.inputs is None
        else nn.functional.pad(prompt.inputs, (0, 0, 0, max(widths) - prompt.length))
        for prompt in prompts
    ]
    vectors = torch.stack(padded)[members]
    if dropout is not None and row_keys is not None:
        keep = rng.keep_mask(rng.fold(row_keys, 0), vectors[0].numel(), dropout).view(vectors.shape)
        vectors = vectors * keep / (1 - dropout).to(dtype)[:, None, None]
    vectors = nn.functional.pad(vectors, (0, 0, 0, batch.input_ids.shape[1]))

    def place(words: Tensor) -> Tensor:
        return torch.where((column < width)[..., None], vectors.to(words.dtype), words)

    ids = batch.input_ids.gather(1, source)
    types = batch.token_type_ids
    if types is not None:
        types = types.gather(1, source).masked_fill(column < width, 0)
    real = column < width + batch.lengths[:, None]
    states = _run(backbone, ids, types, column + starts, real, arguments, place)
    return states.gather(1, (text + width)[..., None].expand(-1, -1, hidden))


def member_logits(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> list[Tensor]:
    """Logits of each of ``batch.members``: [its examples, classes or choices], or [its rows, L, outputs] per token."""
    logits = []
    pooled = pooled_texts(backbone, prompts, batch, row_keys, from_input)
    for prompt, texts, (examples, rows) in zip(prompts, pooled, batch.spans, strict=True):
        keys = None if row_keys is None else row_keys[rows]
        found = prompt.head(texts, keys, prompt.head_dropout, None if batch.tags is None else batch.tags[rows])
        logits.append(found if found.dim() == 3 else found.view(examples.stop - examples.start, -1))
    return logits


def pooled_texts(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    row_keys: Tensor | None = None,
    from_input: bool = False,
) -> list[Tensor]:
    """What each of ``batch.members`` sees, pooled texts [its rows, H] or tokens [its rows, L, H].

    Without gradient where nothing below the head trains.
    """
    needs_gradient = torch.is_grad_enabled() and (
        any(prompt.reaches_backbone for prompt in prompts) or backbone.is_trained
    )
    with torch.set_grad_enabled(needs_gradient):
        hidden = hidden_states(backbone, prompts, batch, row_keys, from_input)
        return [
            prompt.head.pool(hidden[rows], batch.lengths[rows], backbone.pooler)
            for prompt, (_, rows) in zip(prompts, batch.spans, strict=True)
        ]
