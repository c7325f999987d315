"""A run's backbone and prompts without a weight: their shapes, and one batch of a step taken through them on paper."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from model_parallel.apply import shard_modules
from model_parallel.collectives import PaperGroup
from model_parallel.grid import Grid, TopologyError
from model_parallel.layers import VocabularyParallelEmbedding, quantised
from model_parallel.paper import Tally, on_paper
from model_parallel.plan import check_heads, vocabulary_range
from model_parallel.vocabulary import VocabularyParallelOutput
from prompt_tuning.backbone.attention import open_door
from prompt_tuning.backbone.deltas import Deltas
from prompt_tuning.backbone.find import Description, checked_config, set_dropout
from prompt_tuning.backbone.load import Backbone, model_on_meta, rebuild_buffers, sizes_of
from prompt_tuning.backbone.places import locate
from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.run import member_logits
from prompt_tuning.kinds import Targets, find_kind
from prompt_tuning.placement.counted import Pass, Weights
from prompt_tuning.prompt.build import build_prompt
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.run import Run
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.features import NO_TAG, Features

DEPTHS = (2, 4)
"""Layers of the models that stand for deep ones."""


@dataclass(frozen=True)
class _Notes:
    num_encoded: np.ndarray
    """[rows] Tokens that an encoder reads."""


class Outline:
    """What can be counted of a run whose weights are not there; every member as the first, for which most steps are alike.

    ``text`` tokens are in every row: ``data.max_length``, and ``data.max_target_length`` where texts are written, unless given. Of
    them an encoder reads its part.
    """

    def __init__(self, run: Run, text: int | None = None) -> None:
        """Reads config.json alone. Raises :class:`UserError`."""
        self.run, self.config = run, run.shared
        section = self.config.backbone
        place = locate(section.path, section.revision)
        if place.gguf:
            raise UserError(
                f"backbone.path={section.path}: plan reads config.json, which a .gguf file has not; give a folder"
            )
        raw, self.family = checked_config(place.folder, section, run.writes)
        self.backbone_config = copy.deepcopy(raw)
        set_dropout(self.backbone_config, self.family, self.config.train.backbone_dropout, section.path)
        self.folder = place.folder
        self.sizes = sizes_of(self.backbone_config)
        task = find_task(self.config.task)
        self.kind = find_kind(task.kind)
        self.num_labels = len(task.labels) if task.labels else 2
        self.rows_per_example = 2 if task.kind == "choice" else 1
        limit = self.family.max_positions(self.backbone_config)
        target = self.config.data.max_target_length if task.is_written else 0
        source = self.config.data.max_length
        if self.family.sites:
            # A decoder reads its start token in the place of the source's last.
            source, target = min(source, limit), min(target, limit)
            whole = source + target - 1
            self.text = min(text or whole, whole)
            self.encoded = min(self.text, -(-source * self.text // whole))
        else:
            self.text, self.encoded = min(text or source + target, limit), 0
        self.num_members = min(len(run.members), run.concurrent or len(run.members))

    @property
    def examples(self) -> int:
        """Of a step, over all members and ranks."""
        return self.num_members * self.config.train.batch_size

    @property
    def tokens_per_example(self) -> int:
        """Of texts and prompts."""
        return self.rows_per_example * (self.text + self.prompt_length)

    @property
    def prompt_length(self) -> int:
        """Prompt tokens of a row."""
        return self.config.prompt.length if self.config.method in ("deep_prompt", "shallow_prompt") else 0

    @cache  # noqa: B019
    def fits_heads(self, tensor: int) -> bool:
        """Whether so many tensor ranks can share the backbone."""
        try:
            check_heads(self.sizes, tensor, self.config.backbone.path)
            self._cut(self.backbone_config, tensor, False, None)
        except TopologyError:
            return False
        return True

    @cache  # noqa: B019
    def weights(self, tensor: int, quantize: str | None = None) -> Weights:
        """What a rank of ``tensor`` tensor ranks has of the backbone."""
        model = self._cut(self.backbone_config, tensor, False, quantize)[0]
        parameters = list(model.parameters())
        own = {m: sum(p.nbytes for p in m.parameters(recurse=False)) for m in model.modules()}
        embedded = {m: size for m, size in own.items() if isinstance(m, nn.Embedding | VocabularyParallelEmbedding)}
        return Weights(
            sum(p.nbytes for p in parameters),
            sum(embedded.values()),
            max(size for m, size in own.items() if m not in embedded),
            sum(p.numel() for p in parameters),
        )

    def head_bytes(self, tensor: int, zero: bool) -> int:
        """Of a language head that is not the word embedding itself, which ZeRO-3 does not split."""
        if not self.config.asks_language_model or (self.backbone_config.tie_word_embeddings and not zero):
            return 0
        model = model_on_meta(self.backbone_config, self.family, self.config.backbone)
        words: torch.Tensor = model.get_input_embeddings().weight
        return -(-words.shape[0] // tensor) * words[0].nbytes

    @cached_property
    def trained_bytes(self) -> int:
        """Of one member's prompt and head."""
        with on_paper():
            backbone = self._open(self.backbone_config, 1, False, False, None)
            return sum(p.nbytes for _, p in self._prompt(backbone).trained())

    def _cut(
        self, config: Any, tensor: int, freeze: bool, quantize: str | None
    ) -> tuple[PreTrainedModel, dict[str, Any], dict[str, Any], Grid]:
        """The model of the first of ``tensor`` ranks, on meta. Raises :class:`TopologyError`."""
        model = model_on_meta(config, self.family, self.config.backbone)
        if hasattr(model, "pooler"):
            model.pooler = None
        model.requires_grad_(self.config.method == "full")
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        group = PaperGroup(tensor)
        grid = Grid(size=tensor, tensor=tensor, tensor_group=group)
        cuts = shard_modules(model, self.family.plan, self.sizes, grid, freeze, quantize)
        for layer in quantised(model):
            assert layer.weight is not None
            layer.take(layer.weight, None, is_loaded=False)
        return model, cuts, shapes, grid

    def _open(self, config: Any, tensor: int, checkpointing: bool, zero: bool, quantize: str | None) -> Backbone:
        """The backbone of the first of ``tensor`` ranks, as :mod:`prompt_tuning.backbone.load` opens it, on paper."""
        section = self.config.backbone
        model, cuts, shapes, grid = self._cut(config, tensor, zero, quantize)
        deltas = Deltas(model, self.family, shapes, cuts, grid)
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        rebuild_buffers(model, torch.device("cpu"))
        modules, across = self.family.attention_modules(model), self.family.across_modules(model)
        open_door(model, modules, section.attention, 0 if tensor > 1 else None, across)
        self.family.narrow_last_layer(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": deltas.checkpointing})
        model.train()
        # Nothing here asks for a tokenizer or for what tells backbones apart.
        described = Description(section.path, self.folder, config, self.family, cast(Any, None))
        numel = sum(p.numel() for p in model.parameters())
        head = self._language_head(model, grid, zero) if self.config.asks_language_model else None
        return Backbone(
            model,
            self.family,
            described,
            cast(Any, None),
            None,
            head,
            grid,
            None,
            0,
            numel,
            quantize,
            section.attention,
            deltas,
        )

    def _language_head(self, model: PreTrainedModel, grid: Grid, zero: bool) -> nn.Module:
        """Products with an output embedding, which is most of any language head."""
        words, size = model.get_input_embeddings().weight, self.backbone_config.vocab_size
        weight = words
        if zero or not self.backbone_config.tie_word_embeddings:
            first, end = vocabulary_range(size, grid.tensor_rank, grid.tensor)
            weight = nn.Parameter(torch.empty(end - first, words.shape[1], dtype=words.dtype), requires_grad=False)
        if len(weight) < size:
            return VocabularyParallelOutput(weight, None, size, grid)
        head = nn.Linear(words.shape[1], size, bias=False, device="meta")
        head.weight = weight
        return head

    def _prompt(self, backbone: Backbone) -> Prompt:
        prompt = build_prompt(self.config, backbone, self.num_labels, self.kind)
        for module in prompt.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        return prompt

    @cache  # noqa: B019  an outline lives as long as the program
    def run_batch(
        self, examples: int, tensor: int, checkpointing: bool, zero: bool, quantize: str | None = None
    ) -> Pass:
        """One batch of so many of a member's examples, forward and backward, on the first of ``tensor`` ranks.

        Of deep models whose layers are alike, shallow ones are run, and what their layers differ by goes for the others.
        """
        setting = examples, tensor, checkpointing, zero, quantize
        whole = [int(getattr(self.backbone_config, name)) for name in self.family.depths]
        least, more = DEPTHS
        if sum(whole) <= more * len(whole) or min(whole) < least or not self._layers_are_alike(whole):
            return self._run(self.backbone_config, *setting)
        found = shallow = self._run(self._of_depth([least] * len(whole)), *setting)
        for place, layers in enumerate(whole):
            if layers > least:  # of each stack
                depths = [more if stack == place else least for stack in range(len(whole))]
                deeper = self._run(self._of_depth(depths), *setting)
                found = found.further(deeper, shallow, (layers - least) // (more - least))
        return found

    def _layers_are_alike(self, depths: list[int]) -> bool:
        kinds = set(getattr(self.backbone_config, "layer_types", None) or [None])
        is_whole = all((layers - DEPTHS[0]) % (DEPTHS[1] - DEPTHS[0]) == 0 for layers in depths)
        return len(kinds) == 1 and self.config.prompt.layers is None and is_whole

    def _of_depth(self, depths: list[int]) -> Any:
        config = copy.deepcopy(self.backbone_config)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: depths[0]]
        for name, layers in zip(self.family.depths, depths, strict=True):
            setattr(config, name, layers)
        return config

    def _run(
        self, config: Any, examples: int, tensor: int, checkpointing: bool, zero: bool, quantize: str | None
    ) -> Pass:
        features = self._features(examples)
        with on_paper():
            backbone = self._open(config, tensor, checkpointing, zero, quantize)
            prompt = self._prompt(backbone)
            pool = Pool([features], PromptShapes.of([prompt]))
            items = Items.of([(0, np.arange(examples), 1.0 / examples)])
            with Tally() as tally:
                batch = lay_out(pool, items, 0, torch.device("cpu"))
                keys = torch.zeros(len(batch.lengths), dtype=torch.int64) if prompt.dropout else None
                (logits,) = member_logits(backbone, [prompt], batch, keys)
                loss = self.kind.loss(logits, Targets(batch.labels, batch.weights, batch.rows_of(0)))
                loss.backward()
        group = backbone.grid.tensor_group
        work = tuple((operations, size, count) for (operations, size), count in tally.work.items())
        return Pass(tally.peak_bytes, work, group.calls, group.num_bytes)

    def _features(self, examples: int) -> Features:
        rows = examples * self.rows_per_example
        tokens = np.zeros(rows * self.text, np.int32)
        tags = None
        if self.kind.per_token or self.config.asks_language_model:
            tags = np.zeros(rows * self.text, np.int64)
            if self.encoded:
                # Each token of the target is foretold from the place before it.
                tags.reshape(rows, -1)[:, : self.encoded - 1] = NO_TAG
            else:
                tags[self.text - 1 :: self.text] = NO_TAG
        offsets = np.arange(rows + 1, dtype=np.int64) * self.text
        labels = np.zeros(examples, np.int64 if self.kind.asks_classes or self.kind.per_token else np.float64)
        notes = _Notes(np.full(rows, self.encoded)) if self.encoded else None
        return Features(tokens, None, offsets, self.rows_per_example, labels, tags, notes)
