"""The untrained prompt of a member."""

from __future__ import annotations

from model_parallel import rng
from prompt_tuning.backbone.families import SITES, find_family
from prompt_tuning.backbone.find import Description
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.errors import UserError
from prompt_tuning.kinds import Kind
from prompt_tuning.prompt.beside import build_beside
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.lora import start_lora
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.find import find_task


def build_prompt(config: RunFile, backbone: Backbone, num_labels: int, kind: Kind) -> Prompt:
    """The untrained prompt of a member, a function of its settings and seed alone; LoRA's is put into the backbone too.

    Raises :class:`UserError`.
    """
    shape, dtype, seed = backbone.shape, backbone.prompt_dtype, config.train.seed
    head: Head | LanguageHead
    if config.asks_language_model:
        head = LanguageHead(backbone.language_head)
    else:
        head = _build_head(config, backbone, num_labels, kind)
    layers = _reached(config, backbone)
    prefix = inputs = None
    if config.method == "deep_prompt":
        width = config.prompt.projection_width if config.prompt.reparameterisation == "mlp" else None
        relative, frozen = config.optimizer.relative, config.prompt.frozen_tokens
        prefix = Prefix(shape, config.prompt.length, seed, dtype, layers, width, relative, frozen)
    elif config.method == "shallow_prompt":
        drawn = rng.normal(rng.key(seed, "init", "inputs"), config.prompt.length, backbone.word_size, std=0.02)
        inputs = drawn.to(dtype)
    if (prefix is not None or inputs is not None) and config.prompt.init == "zero":
        (prefix.embedding if prefix is not None else inputs).data.zero_()  # type: ignore[union-attr]
    dropout = config.prompt.dropout
    head_dropout = dropout if kind.drops_hidden and not config.asks_language_model else 0.0
    also = config.train.also
    beside = build_beside(also, layers, backbone.deltas, dtype, backbone.path) if also else None
    lora = start_lora(backbone, seed) if config.method == "lora" else None
    return Prompt(head, prefix, inputs, config.prompt.positions, dropout, head_dropout, beside, lora)


def check_lengths(config: RunFile, described: Description) -> None:
    """Raise :class:`UserError` where a member's prompt and texts together outgrow the backbone's positions, or the backbone is
    none that writes texts to a member that asks for them."""
    has_prompt = config.method in ("deep_prompt", "shallow_prompt")
    positions = config.prompt.positions if has_prompt else "from_zero"
    length = config.prompt.length if has_prompt else 0
    target = 0
    _check_sides(config, described)
    if config.is_written:
        target = max(config.data.max_target_length, config.decode.max_new_tokens or 0)
        described.check_writes(length + config.data.max_length + target)
    described.check_length(length, config.data.max_length, positions, target)


def _check_sides(config: RunFile, described: Description) -> None:
    """Raise :class:`UserError` for what an encoder-decoder does not do, or it alone."""
    if described.has_encoder and not config.is_written:
        raise UserError(
            f"backbone.path={described.path}: {described.config.model_type} is an encoder-decoder, which is for tasks of kind"
            f" 'generation' alone; {_instead(described)}"
        )
    if described.has_encoder and find_task(config.task).goes_on:
        raise UserError(
            f"backbone.path={described.path}: {described.config.model_type} is an encoder-decoder, whose decoder does not read"
            " documents; choose a decoder such as 'llama' for a task of kind 'document'"
        )
    if config.prompt.sites is not None and not described.has_encoder:
        raise UserError(
            f"prompt.sites names attentions of an encoder-decoder that writes texts, and {described.path} is none here; leave it out"
        )
    if described.has_encoder and config.data.cache_activations:
        raise UserError(
            f"data.cache_activations: of {described.path}, an encoder-decoder, no hidden states are kept; leave it out"
        )


def _reached(config: RunFile, backbone: Backbone) -> tuple[int, ...] | None:
    """The layers that get a prefix; None: all."""
    chosen, sites = config.prompt.layers, config.prompt.sites
    if sites is not None:
        sizes = backbone.family.site_sizes(backbone.model)
        levels = iter(range(sum(sizes)))
        owned = {site: [next(levels) for _ in range(size)] for site, size in zip(SITES, sizes, strict=True)}
        return tuple(level for site, own in owned.items() if site in sites for level in own)
    return None if chosen is None else _check_layers(chosen, backbone.shape.num_layers)


def _instead(described: Description) -> str:
    if find_family(described.config.model_type).sites:
        return "choose an encoder such as 'roberta' for this task"
    return "run this task apart from those of that kind"


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
