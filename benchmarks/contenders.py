"""What the benchmarks compare: training steps of PromptFleet and of PEFT's PrefixTuning on the same rows of BoolQ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.forward.run import member_logits
from prompt_tuning.prompt.build import build_prompt
from prompt_tuning.settings.members import RunFile
from prompt_tuning.settings.run import MemberSpec, Run
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from prompt_tuning.trainer import build_fleet

MAX_LENGTH = 128
LEARNING_RATE = 5e-3
CLIP_NORM = 1.0
SEED = 11
FLEET_SIZE = 4
WARM_UP_STEPS = 1
WHOLE_BATCH = 1 << 40
"""A token budget that no batch exceeds: one micro-batch a step."""

Step = Callable[[], Tensor]
"""One training step: forward, backward, clipping, AdamW. Returns its members' mean losses [members]."""


@dataclass(frozen=True)
class Settings:
    """What all contenders share."""

    backbone: str
    data: str
    prompt_length: int
    batch_size: int
    repeats: int
    dtype: str
    threads: int
    device: str

    @property
    def num_steps(self) -> int:
        return self.repeats + WARM_UP_STEPS

    @property
    def member_batch_size(self) -> int:
        """Rows of one of ``FLEET_SIZE`` members that share the work of a batch."""
        return max(1, self.batch_size // FLEET_SIZE)

    def run(self, members: int, batch_size: int, dropout: bool, tokens_per_batch: int | None) -> Run:
        """A run of ``members`` seeds, with a schedule and a head that a plain PEFT loop has too."""
        sections: dict[str, Any] = {
            "task": "boolq",
            "backbone": {"path": self.backbone, "dtype": self.dtype},
            "data": {
                "path": self.data,
                "max_length": MAX_LENGTH,
                "max_train_examples": self.num_steps * batch_size,
                "max_eval_examples": 1,
            },
            "prompt": {"length": self.prompt_length},
            "head": {"pooling": "pooler"},
            "optimizer": {"lr": LEARNING_RATE, "clip_norm": CLIP_NORM, "schedule": "constant"},
        }
        train = {"batch_size": batch_size, "backbone_dropout": dropout, "tokens_per_batch": tokens_per_batch}
        specs = [
            MemberSpec(f"seed{seed}", {}, RunFile.model_validate({**sections, "train": {**train, "seed": seed}}))
            for seed in range(SEED, SEED + members)
        ]
        return Run("step_time", Path("runs/step_time"), tuple(specs))

    def fleet(self, members: int, batch_size: int, dropout: bool, tokens_per_batch: int | None) -> Fleet:
        return build_fleet(
            self.run(members, batch_size, dropout, tokens_per_batch), Grid(device=torch.device(self.device))
        )


def fleet_step(fleet: Fleet) -> Step:
    """Steps as the trainer takes them, batch assembly included."""

    def step() -> Tensor:
        active = fleet.running()
        losses = fleet.train_step(active).losses
        for index in active:
            fleet.members[index].step += 1
        return losses

    return step


def separate_fleets(fleet: Fleet) -> list[Fleet]:
    """Every member's like, untrained and alone, over the same backbone."""
    alone = []
    for member in fleet.members:
        prompt = build_prompt(member.spec.config, fleet.backbone, len(member.labels), member.kind)
        prompt.to(fleet.grid.device)
        like = Member(member.spec, member.task, member.labels, member.splits, prompt, fleet.backbone)
        alone.append(Fleet(fleet.backbone, [like], fleet.grid))
    return alone


def peft_batches(settings: Settings, static_padding: bool) -> list[dict[str, Tensor]]:
    """The first member's rows, step by step, already on the device: PEFT's timed steps assemble nothing.

    Padded to the longest row of the batch, or all to ``MAX_LENGTH``.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_folder(settings.backbone))
    limits = {"train": settings.num_steps * settings.batch_size, "dev": 1, "test": 1}
    features = load_task_data(
        find_task("boolq"), tokenizer, Source(settings.data), Encoding(MAX_LENGTH), limits=limits
    ).splits["train"]
    order = rng.permutation(rng.key(SEED, "order", 0), len(features)).numpy()
    batches = []
    for examples in np.split(order, settings.num_steps):
        lengths = features.lengths(examples)
        width = MAX_LENGTH if static_padding else int(lengths.max())
        real = np.arange(width) < lengths[:, None]
        place = features.offsets[examples][:, None] + np.arange(width)

        def padded(values: np.ndarray, padding: int) -> Tensor:
            rows = np.where(real, values[np.where(real, place, 0)], padding)  # noqa: B023
            return torch.from_numpy(rows.astype(np.int64)).to(settings.device)

        batch = {
            "input_ids": padded(features.tokens, tokenizer.pad_token_id),
            "attention_mask": torch.from_numpy(real.astype(np.int64)).to(settings.device),
            "labels": torch.from_numpy(features.labels[examples]).to(settings.device),
        }
        if features.token_types is not None:
            batch["token_type_ids"] = padded(features.token_types, 0)
        batches.append(batch)
    return batches


def peft_model(settings: Settings, dropout: bool, attention: str | None = None) -> Any:
    """PrefixTuning around a sequence classifier; ``attention`` None: whatever transformers chooses."""
    from peft import PrefixTuningConfig, get_peft_model

    choices: dict[str, Any] = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if attention is not None:
        choices["attn_implementation"] = attention
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_folder(settings.backbone), num_labels=2, dtype=getattr(torch, settings.dtype), **choices
    )
    model = get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=settings.prompt_length))
    return model.to(settings.device).train()


def peft_step(model: Any, batches: list[dict[str, Tensor]]) -> Step:
    """A plain training loop around PEFT with PromptFleet's AdamW and clipping, without a Trainer's overhead."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    rows = iter(batches)

    def step() -> Tensor:
        loss = model(**next(rows)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()[None]

    return step


def peft_prefix(model: Any) -> nn.Parameter:
    """PEFT's prefix [P, layers * 2 * heads * head size]: the flat layout of :class:`prompt_tuning.prefix.Prefix`."""
    return model.prompt_encoder["default"].embedding.weight


@torch.no_grad()
def copy_prompt(fleet: Fleet, model: Any) -> None:
    """Start PEFT from the numbers of the fleet's first member, head included."""
    prompt, base = fleet.members[0].prompt, model.get_base_model()
    peft_prefix(model).copy_(prompt.prefix.embedding)
    classifier = base.classifier.modules_to_save["default"]
    classifier.weight.copy_(prompt.head.weight)
    classifier.bias.copy_(prompt.head.bias)
    if prompt.head.pooler is not None:
        base.bert.pooler.dense.load_state_dict(prompt.head.pooler.state_dict())


def first_batch_differences(fleet: Fleet, model: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """Difference of the first batch's loss, and of its prefix gradient (relative L2), before anything has moved."""
    member = fleet.members[0]
    (rows,) = fleet.loops["train"].batches([(0, member.step_examples(0), 1.0)])
    (logits,) = member_logits(fleet.backbone, [member.prompt], rows)
    ours = nn.functional.cross_entropy(logits, rows.labels)
    theirs = model(**batch).loss
    (our_gradient,) = torch.autograd.grad(ours, member.prompt.prefix.embedding)
    (their_gradient,) = torch.autograd.grad(theirs, peft_prefix(model))
    difference = (our_gradient - their_gradient).double().norm() / their_gradient.double().norm()
    return {"first_loss": abs(ours.item() - theirs.item()), "first_prefix_gradient": difference.item()}
