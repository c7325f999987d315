"""One prompt in training."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.kinds import Kind, find_kind
from prompt_tuning.prompt.manifest import describe_prompt
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.run import MemberSpec
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features


@dataclass
class Best:
    """The best evaluation so far and the trained tensors it saw."""

    step: int
    metrics: dict[str, float]
    loss: float
    tensors: dict[str, Tensor]


@dataclass
class Member:
    """One prompt in training."""

    spec: MemberSpec
    task: Task
    labels: tuple[str, ...]
    splits: dict[str, Features]
    prompt: Prompt
    backbone: Backbone
    borrowed: list[tuple[str, nn.Parameter]] = field(default_factory=list)
    """Tensors of its prompt that another member trains."""
    status: str = "running"
    """running, finished, stopped (early stopping) or diverged."""
    step: int = 0
    """Steps done."""
    stale: int = 0
    """Evaluations since the last best one."""
    seconds: float = 0.0
    examples: int = 0
    best: Best | None = None
    rungs: dict[int, float] = field(default_factory=dict)
    """Its score on dev at the steps where a search compared it with others."""
    kind: Kind = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)
    parameters: list[tuple[str, nn.Parameter]] = field(init=False)
    _order: tuple[int, rng.Order] | None = None

    def __post_init__(self) -> None:
        settings = self.spec.config.optimizer
        self.kind = find_kind(self.task.kind)
        lent = {id(p) for _, p in self.borrowed}
        self.parameters = [(name, p) for name, p in self.prompt.trained() if id(p) not in lent]
        if self.spec.config.method == "full":
            named = list(self.backbone.model.named_parameters())
            if self.backbone.pooler is not None:
                named += [(f"pooler.{name}", p) for name, p in self.backbone.pooler.named_parameters()]
            self.parameters = self.parameters + [(f"backbone.{name}", p) for name, p in named]
        heads = [p for name, p in self.parameters if name.startswith("head.")]
        beside = [p for name, p in self.parameters if name.startswith("beside.")]
        others = [p for name, p in self.parameters if not name.startswith(("head.", "beside."))]
        decay = settings.weight_decay
        groups = [
            (others, settings.lr, decay),
            (heads, settings.head_lr or settings.lr, decay),
            (beside, settings.also_lr, 0.0),
        ]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": own_decay}
                for parameters, lr, own_decay in groups
                if parameters
            ]
            or [{"params": []}],  # of a model that is only asked
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )

    @property
    def name(self) -> str:
        """Its name in the run folder."""
        return self.spec.name

    @property
    def seed(self) -> int:
        """What all its random numbers follow from."""
        return self.spec.config.train.seed

    @property
    def template(self) -> str:
        """Name of the template that makes its sequences."""
        return self.task.template_name(self.spec.config.data.template)

    def description(self) -> dict[str, Any]:
        """What its exported prompt says of itself, but tensors and best evaluation."""
        return describe_prompt(self.spec.config, self.task, self.labels, self.prompt, self.backbone)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of its training split, the last one short."""
        return math.ceil(len(self.splits["train"]) / self.spec.config.train.batch_size)

    @property
    def total_steps(self) -> int:
        """Where its training and its schedule end; a model that is only asked has none."""
        train = self.spec.config.train
        if self.spec.config.method == "none":
            return 0
        return train.max_steps or train.epochs * self.steps_per_epoch

    def step_examples(self, step: int) -> np.ndarray:
        """Indices of the training examples of a step, over all ranks; the last batch of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, rng.Order(rng.key(self.seed, "order", epoch), len(self.splits["train"])))
        size = self.spec.config.train.batch_size
        return self._order[1].take(place * size, (place + 1) * size).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all trained tensors, those that another member trains included."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters + self.borrowed}

    def part(self) -> None:
        """End the sharing: borrowed tensors become copies of its own, which can be loaded without harm to others."""
        if self.borrowed:
            self.prompt.prefix = copy.deepcopy(self.prompt.prefix)
            own = dict(self.prompt.trained())
            self.borrowed = [(name, own[name]) for name, _ in self.borrowed]

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Set all trained tensors, those that another member trains included."""
        for name, parameter in self.parameters + self.borrowed:
            parameter.copy_(tensors[name])
