"""One member's prompt, and the forward pass of a batch that mixes members.

Shape letters: R rows, L padded text length, T text with input prompts in front, P prompt tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone import Backbone
from prompt_tuning.config import RunFile
from prompt_tuning.errors import UserError
from prompt_tuning.heads import Head
from prompt_tuning.kinds import Kind
from prompt_tuning.language import LanguageHead
from prompt_tuning.packing import Batch
from prompt_tuning.prefix import Prefix, gather_rows


class Prompt(nn.Module):
    """Everything trained for one task, and what must travel with it: a prefix or input prompts (or neither) and a head."""

    def __init__(
        self,
        head: Head | LanguageHead,
        prefix: Prefix | None = None,
        inputs: Tensor | None = None,
        positions: str = "after_prefix",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.head = head
        self.prefix = prefix
        self.inputs = None if inputs is None else nn.Parameter(inputs)
        self.positions = positions
        self.dropout = dropout
        self.head_dropout = head_dropout

    @property
    def length(self) -> int:
        """Prompt tokens P; 0 without prompt."""
        if self.prefix is not None:
            return self.prefix.length
        return 0 if self.inputs is None else len(self.inputs)

    @property
    def text_start(self) -> int:
        """Position of the first text token behind a prefix."""
        return self.length if self.prefix is not None and self.positions == "after_prefix" else 0

    @property
    def first_layer(self) -> int:
        """Lowest layer that its gradient reaches; -1: the word embeddings."""
        if self.prefix is None:
            return -1
        return 0 if self.prefix.layers is None else min(self.prefix.layers)

    @property
    def reaches_backbone(self) -> bool:
        """Whether its gradient flows through the backbone."""
        return self.length > 0

    @staticmethod
    def is_split(name: str) -> bool:
        """Whether a tensor rank sees only its own heads' part of the gradient of the trained tensor ``name``."""
        return name.startswith("prefix.")

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and tensors that the optimizer moves."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def build_prompt(config: RunFile, backbone: Backbone, num_labels: int, kind: Kind, is_cloze: bool = False) -> Prompt:
    """The untrained prompt of a member, a function of its settings and seed alone. Raises :class:`UserError`."""
    shape, dtype, seed = backbone.shape, backbone.prompt_dtype, config.train.seed
    head = LanguageHead(backbone.language_head) if is_cloze else _build_head(config, backbone, num_labels, kind)
    prefix = inputs = None
    if config.method == "deep_prompt":
        layers = None if config.prompt.layers is None else _check_layers(config.prompt.layers, shape.num_layers)
        width = config.prompt.projection_width if config.prompt.reparameterisation == "mlp" else None
        prefix = Prefix(shape, config.prompt.length, seed, dtype, layers, width)
    elif config.method == "shallow_prompt":
        inputs = rng.normal(rng.key(seed, "init", "inputs"), config.prompt.length, shape.hidden_size, std=0.02).to(
            dtype
        )
    if prefix is not None or inputs is not None:
        backbone.check_length(config.prompt.length, config.data.max_length, config.prompt.positions)
        if config.prompt.init == "zero":
            (prefix.embedding if prefix is not None else inputs).data.zero_()  # type: ignore[union-attr]
    else:
        backbone.check_length(0, config.data.max_length, "from_zero")
    dropout = config.prompt.dropout
    head_dropout = dropout if kind.drops_hidden and not is_cloze else 0.0
    return Prompt(head, prefix, inputs, config.prompt.positions, dropout, head_dropout)


def _build_head(config: RunFile, backbone: Backbone, num_labels: int, kind: Kind) -> Head:
    shape, dtype, seed = backbone.shape, backbone.prompt_dtype, config.train.seed
    pooling = "tokens" if kind.per_token else config.head.pooling or backbone.family.pooling
    if pooling == "pooler" and backbone.family.pooling != "pooler":
        raise UserError(
            f"head.pooling='pooler': {backbone.path} ({backbone.model.config.model_type}) has no pooler;"
            f" choose {backbone.family.pooling!r}, 'mean' or 'first'"
        )
    full = config.method == "full"
    return Head(
        shape.hidden_size,
        kind.num_outputs(num_labels),
        pooling,
        seed,
        dtype,
        own_pooler=pooling == "pooler" and backbone.pooler is None,
        train_pooler=full,
        train_bias=kind.trains_bias,
    )


def _check_layers(layers: list[int], num_layers: int) -> tuple[int, ...]:
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise UserError(
            f"prompt.layers={layers} is not a set of layers of this backbone; choose from 0 to {num_layers - 1}"
        )
    return tuple(sorted(layers))


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
    arguments: dict,
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
    return output.last_hidden_state


def _with_input_prompts(
    backbone: Backbone,
    prompts: list[Prompt],
    batch: Batch,
    starts: Tensor,
    arguments: dict,
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
