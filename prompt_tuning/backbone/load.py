"""The frozen backbone, loaded once: this rank's share of it, opened for prefixes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model_parallel.apply import shard_modules
from model_parallel.collectives import broadcast_object
from model_parallel.grid import Grid, TopologyError
from model_parallel.loading import WeightsError, check_all_taken, check_stored, load_weights, stored_tensors
from model_parallel.plan import Sizes, check_heads, head_range
from model_parallel.room import check_room
from model_parallel.zero import ZeroShards
from prompt_tuning.backbone.attention import PrefixShape, open_door
from prompt_tuning.backbone.deltas import Deltas
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.find import Description, describe_backbone, other_weights_hint, set_dropout
from prompt_tuning.backbone.fingerprint import Identity, identify
from prompt_tuning.backbone.language_head import load_language_head, tied_embedding, word_embedding_name
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.sections import BackboneSection


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone and what prompts need to know about it."""

    model: PreTrainedModel
    family: Family
    description: Description
    identity: Identity
    pooler: nn.Module | None
    """The pretrained pooler; None where the backbone's file has none (then every prompt brings its own)."""
    language_head: nn.Module | None
    """Frozen head of the language model; None where it was not asked for."""
    grid: Grid
    zero: ZeroShards | None
    bytes_read: int
    """Bytes that this rank requested of the weight files."""
    num_parameters: int
    """Of the whole model, over all ranks, without its pooler."""
    quantize: str | None
    """How the weights of its linear layers are stored; None: as they are."""
    attention: str
    """The stock attention kernel that prefixes enter."""
    deltas: Deltas
    """Its bias and norm vectors, to which prompts may add."""

    @property
    def path(self) -> str:
        """As the run file names it."""
        return self.description.path

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's own."""
        return self.description.tokenizer

    @property
    def fingerprint(self) -> str:
        """Weights, config and tokenizer in one, as hex digits."""
        return self.identity.fingerprint

    @property
    def shape(self) -> PrefixShape:
        """Sizes of the whole model, over all tensor ranks."""
        return prefix_shape(self.family, self.model.config)

    @property
    def word_size(self) -> int:
        """Numbers of a word's embedding, which need not be the hidden size."""
        return self.family.word_size(self.model.config)

    @property
    def local_heads(self) -> slice:
        """Key/value heads of this tensor rank."""
        return slice(*head_range(self.shape.key_value_heads, self.grid.tensor_rank, self.grid.tensor))

    @property
    def is_trained(self) -> bool:
        """Whether the backbone's own weights are trained (method `full`)."""
        return any(weight.requires_grad for weight in self.model.parameters())

    @contextmanager
    def at_work(self) -> Iterator[PreTrainedModel]:
        """The model for some forwards and backwards; whatever happens in them, no gathered weight outlives them."""
        failed = True
        try:
            yield self.model
            failed = False
        finally:
            if self.zero is not None:
                self.zero.release(failed)

    @property
    def prompt_dtype(self) -> torch.dtype:
        """Type of prompts, heads and their optimizer: float32, or float64 if the backbone is."""
        return torch.float64 if self.model.dtype == torch.float64 else torch.float32

    @property
    def drops(self) -> bool:
        """Whether a training forward drops anything of the backbone's own."""
        names = (*self.family.hidden_dropout, *self.family.attention_dropout)
        return any(getattr(self.model.config, name, 0) for name in names)


def load_backbone(
    section: BackboneSection,
    grid: Grid,
    dropout: bool | float = False,
    activation_checkpointing: bool = False,
    trainable: bool = False,
    zero: dict[str, Any] | None = None,
    language: bool = False,
    description: Description | None = None,
) -> Backbone:
    """Load this rank's share of the base model (its LM head only for ``language``), freeze it unless ``trainable``, open it to prefixes.

    ``dropout``: True keeps the config's own rates, False sets all to 0, a number sets the hidden rate. ``zero``: split the
    weights over the data axis too, with these DeepSpeed settings. Every rank calls this. Raises :class:`UserError`.
    ``description``: where it is known already.
    """
    described = description or describe_backbone(section, writes=language)
    config = copy.deepcopy(described.config)
    set_dropout(config, described.family, dropout, section.path)
    try:
        check_heads(sizes_of(config), grid.tensor, section.path)
        return _load(described, config, section, grid, trainable, activation_checkpointing, zero, language)
    except TopologyError as error:
        raise UserError(str(error)) from None
    except WeightsError as error:
        raise UserError(f"backbone.path={section.path}: {error}{other_weights_hint(described.folder)}") from None


def _load(
    described: Description,
    config: Any,
    section: BackboneSection,
    grid: Grid,
    trainable: bool,
    checkpointing: bool,
    zero: dict[str, Any] | None,
    language: bool,
) -> Backbone:
    """Build on ``meta``, cut the layers, read their slices, split over the data axis, let prefixes in, in this order.

    So nothing is allocated before it is as small as it gets, and ZeRO-3 sees ordinary modules.
    """
    folder, family = described.folder, described.family
    model = model_on_meta(config, family, section)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = stored_tensors(folder, set(shapes), model.base_model_prefix)
    is_pooled = {name for name in shapes if name.startswith("pooler.")} <= set(stored)
    pooler, model.pooler = (getattr(model, "pooler", None) if is_pooled else None), None
    check_all_taken(folder, stored, model._keys_to_ignore_on_load_unexpected or ())
    stored |= tied_embedding(folder, model, stored)
    check_stored(stored, {name: shape for name, shape in shapes.items() if pooler or not name.startswith("pooler.")})
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(trainable)
    cuts = shard_modules(model, family.plan, sizes_of(config), grid, zero is not None, section.quantize)
    if zero is None or "offload_param" not in zero:
        check_room(model, grid, splits=zero is not None)
    deltas = Deltas(model, family, shapes, cuts, grid)
    shards = None if zero is None else ZeroShards(grid, zero, model.dtype)
    bytes_read = load_weights(model, stored, cuts, grid, shards.partition if shards else None)
    rebuild_buffers(model, grid.device)
    if pooler is not None:
        pooler.requires_grad_(trainable)
        bytes_read += load_weights(pooler, stored, {}, grid, prefix="pooler")
    language_head = None
    if language:
        words = None if shards is None else stored[word_embedding_name(model)]
        language_head, size = load_language_head(folder, config, model, family, grid, words)
        bytes_read += size
    if shards is not None:
        shards.attach(model)
    tensor_rank = grid.tensor_rank if grid.tensor > 1 else None
    modules, across = family.attention_modules(model), family.across_modules(model)
    open_door(model, modules, section.attention, tensor_rank, across)
    family.narrow_last_layer(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": deltas.checkpointing})
    model.train()
    # One rank reads all weights for their digest, the others only their shares.
    own = identify(stored, described.config, described.tokenizer) if grid.is_first else None
    identity: Any = broadcast_object(own, grid)
    return Backbone(
        model,
        family,
        described,
        identity,
        pooler,
        language_head,
        grid,
        shards,
        bytes_read,
        num_parameters,
        section.quantize,
        section.attention,
        deltas,
    )


def model_on_meta(config: Any, family: Family, section: BackboneSection) -> PreTrainedModel:
    """The base model of a config, whole and without storage, ready to be cut. Raises :class:`UserError`."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = family.auto.from_config(
                config, dtype=getattr(torch, section.dtype), trust_remote_code=section.trust_remote_code
            )
    except Exception as error:  # the modelling files raise kinds of their own
        raise UserError(f"backbone.path={section.path}: its config.json cannot be used: {reason(error)}") from None
    family.open(model)
    return model


def rebuild_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give buffers that no file holds (rotary frequencies, position ids) their values, which ``meta`` has lost."""
    for module in model.modules():
        names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if names:
            for parameter in module.parameters(recurse=False):
                # Transformers' mark of what is loaded: an embedding that has its scale as a buffer is not drawn anew.
                setattr(parameter, "_is_hf_initialized", True)  # noqa: B010  mypy
            model._init_weights(module)


def sizes_of(config: Any) -> Sizes:
    """Sizes of the attention that a config describes."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return Sizes(heads, groups, getattr(config, "head_dim", None) or config.hidden_size // heads)


def prefix_shape(family: Family, config: Any) -> PrefixShape:
    """Sizes of the prefixes that a config takes."""
    sizes = sizes_of(config)
    return PrefixShape(family.num_layers(config), sizes.key_value_heads, sizes.head_size, config.hidden_size)
