"""The other side: PEFT's prefix tuning and full fine-tuning in a plain loop, on the rows that PromptFleet sees in each step.

Batches lie padded on the device before the clock starts, and no Trainer is around the loop: steps cost what the model and
AdamW (fused, as ours) cost, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.ours import CLIP_NORM, LEARNING_RATE, SEED, Step, features
from benchmarks.work import Work
from model_parallel import rng
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.formats import Row
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.rows import template_of

Model = Any
Batch = tuple[dict[str, Tensor], Tensor]
"""A model's arguments [rows, tokens], and labels [examples]."""

FULL_LEARNING_RATE = 2e-5


def batches(work: Work, width: int | None = None, seed: int = SEED) -> list[Batch]:
    """The rows of the member with that seed, step by step, padded to ``width`` or to the longest of the batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_folder(work.backbone))
    own = features(work)
    order = rng.permutation(rng.key(seed, "order", 0), len(own)).numpy()
    found = []
    for examples in np.split(order, work.num_steps):
        rows = (examples[:, None] * own.rows_per_example + np.arange(own.rows_per_example)).reshape(-1)
        lengths = own.lengths(rows)
        columns = np.arange(width or int(lengths.max()))
        real = columns < lengths[:, None]
        place = np.where(real, own.offsets[rows][:, None] + columns, 0)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(work.device)

        inputs = {
            "input_ids": tensor(np.where(real, own.tokens[place], tokenizer.pad_token_id)),
            "attention_mask": tensor(real),
        }
        if own.token_types is not None:
            inputs["token_type_ids"] = tensor(np.where(real, own.token_types[place], 0))
        found.append((inputs, tensor(own.labels[examples])))
    return found


def _classifier(work: Work, dtype: str, dropout: bool) -> Model:
    rates: dict[str, Any] = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        find_folder(work.backbone), num_labels=1 if work.task == "copa" else 2, dtype=getattr(torch, dtype), **rates
    )


def peft_model(work: Work, dtype: str, dropout: bool, checkpointing: bool = False) -> Model:
    """PrefixTuning around a sequence classifier, with whatever attention transformers chooses.

    Raises ValueError for checkpointing, which PEFT refuses.
    """
    from peft import PrefixTuningConfig, get_peft_model

    model = _classifier(work, dtype, dropout)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    prefix = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=work.prompt_length)
    return get_peft_model(model, prefix).to(work.device).train()


def full_model(work: Work, dtype: str, dropout: bool) -> Model:
    """A sequence classifier of which every weight is trained."""
    model = _classifier(work, dtype, dropout).to(work.device).train()
    for parameter in model.parameters():
        # Weights that map their file would become memory of the process in the first step, and be taken for its work.
        parameter.data = parameter.data.clone()
    return model


def step(model: Model, rows: Sequence[Batch]) -> Step:
    """A plain training loop."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_full = not hasattr(model, "prompt_encoder")
    rate = FULL_LEARNING_RATE if is_full else LEARNING_RATE
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    coming = itertools.cycle(rows)

    def take() -> Tensor:
        loss = _loss(model, next(coming))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()[None]

    return take


def one_after_the_other(model: Model, work: Work, width: int | None, members: int) -> Step:
    """A step on each member's rows: one model stands for as many, which take as long."""
    rows = [batches(work, width, SEED + member) for member in range(members)]
    take = step(model, [batch for at_once in zip(*rows, strict=True) for batch in at_once])
    return lambda: torch.cat([take() for _ in range(members)])


def predictor(model: Model, work: Work, by_length: bool) -> Callable[[Sequence[Row]], tuple[np.ndarray, float]]:
    """A plain loop from rows to probabilities [rows, 2], in batches padded to their longest row; also tells the share of padding.

    ``by_length``: rows of like lengths share a batch; else batches follow the order of the rows.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_folder(work.backbone))
    build = template_of(find_task(work.task), None)

    @torch.inference_mode()
    def answer(rows: Sequence[Row]) -> tuple[np.ndarray, float]:
        firsts, seconds = map(list, zip(*(build(row)[0] for row in rows), strict=True))
        pair = None if seconds[0] is None else seconds
        encoded = tokenizer(firsts, pair, truncation=True, max_length=work.max_length)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        order = np.argsort(-lengths, kind="stable") if by_length else np.arange(len(rows))
        found, places = np.zeros((len(rows), 2)), 0
        for start in range(0, len(rows), work.batch_size):
            own = order[start : start + work.batch_size]
            batch = tokenizer.pad(
                {key: [values[i] for i in own] for key, values in encoded.items()}, return_tensors="pt"
            )
            places += batch["input_ids"].numel()
            found[own] = model(**batch.to(work.device)).logits.float().softmax(-1).cpu().numpy()
        return found, 1 - lengths.sum() / places

    return answer


def _loss(model: Model, batch: Batch) -> Tensor:
    inputs, labels = batch
    return cross_entropy(model(**inputs).logits.float().view(len(labels), -1), labels)


def _prefix(model: Model) -> nn.Parameter:
    """PEFT's prefix [P, layers * 2 * heads * head size]: the flat layout of :class:`prompt_tuning.prompt.prefix.Prefix`."""
    return model.prompt_encoder["default"].embedding.weight


@torch.no_grad()
def copy_prompt(prompt: Prompt, model: Model) -> None:
    """Start PEFT from a prompt's numbers, head included."""
    base = model.get_base_model()
    _prefix(model).copy_(prompt.prefix.embedding)
    classifier = base.classifier.modules_to_save["default"]
    classifier.weight.copy_(prompt.head.weight)
    classifier.bias.copy_(prompt.head.bias)
    if prompt.head.pooler is not None:
        base.bert.pooler.dense.load_state_dict(prompt.head.pooler.state_dict())


def first_gradient(model: Model, batch: Batch) -> tuple[float, Tensor]:
    """The loss of a batch and the gradient of the prefix."""
    loss = _loss(model, batch)
    return loss.item(), torch.autograd.grad(loss, _prefix(model))[0]
