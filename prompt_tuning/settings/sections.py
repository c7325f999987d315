"""The sections of a run file, their keys and defaults, and what each key changes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from prompt_tuning.messages import show
from prompt_tuning.section import Section
from prompt_tuning.settings.changes import LAUNCH
from prompt_tuning.settings.search import HalvingSection, RandomSection


class BackboneSection(Section):
    """The frozen model."""

    path: str = Field(
        min_length=1, description="Folder, .gguf file, hub id, or package://module/path of an installed package."
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit); only for hub ids.")
    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="Type of the frozen weights.")
    quantize: Literal["int8", "nf4"] | None = Field(
        None,
        description="Store the weights of linear layers in blocks of 8-bit integers or of 4-bit NormalFloat; null: in `dtype`.",
    )
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="Stock attention kernel that the prefix enters.")
    trust_remote_code: bool = Field(False, description="Run Python code that ships with the backbone.")


class DataSection(Section):
    """Where the rows are, how many are used, and how they become tokens."""

    path: str | None = Field(
        None, min_length=1, description="Folder of the task's files, or a hub id; None: the task's own hub id."
    )
    files: dict[str, str] | None = Field(
        None,
        description="Files by split (train, dev, test, test/<name>) where they have names of their own, below `path` if given.",
    )
    max_length: int = Field(128, gt=0, description="Tokens kept of a text (pair), special tokens included.")
    max_target_length: int = Field(
        128,
        gt=0,
        description="Tokens kept of a target, the end token included (generation tasks); `max_length` is then the source's.",
    )
    stride: int = Field(128, ge=0, description="Tokens that neighbouring windows of a long context share (span tasks).")
    template: str | None = Field(None, description="Name of one of the task's templates; None: the task's first.")
    max_train_examples: int | None = Field(None, gt=0, description="Use only the first so many training examples.")
    max_eval_examples: int | None = Field(None, gt=0, description="Use only the first so many of dev and of test.")
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training rows held out to select on; a dev split, if there is one, is only reported, as test/dev.",
    )
    cache: str | None = Field(
        None,
        min_length=1,
        description="Folder that keeps large data tokenised; null: ~/.cache/promptfleet/data.",
        json_schema_extra=LAUNCH,
    )

    cache_activations: bool | Annotated[str, Field(min_length=1)] = Field(
        False,
        description="Keep hidden states under the lowest of `prompt.layers`: true: in memory; a folder: in files. Same numbers.",
        json_schema_extra=LAUNCH,
    )

    @field_validator("files")
    @classmethod
    def _splits(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        wrong = [split for split in value or {} if not re.fullmatch(r"train|dev|test(/[\w.-]+)?", split)]
        if wrong or value == {}:
            raise ValueError(
                f"{show(wrong[0]) if wrong else 'nothing'} is no split; give train, dev, test or test/<name>"
            )
        return value


class HeadSection(Section):
    """What answers."""

    pooling: Literal["pooler", "context", "first", "mean", "last"] | None = Field(
        None,
        description="What the head sees of a text; None: the family's own. context: the first token behind a trained GELU layer.",
    )


class OptimizerSection(Section):
    """AdamW and the schedule of its rate."""

    lr: float = Field(
        5e-3,
        gt=0,
        description="AdamW learning rate of the prefix (for method full of everything, for lora of its differences).",
    )
    relative: bool = Field(
        False,
        description="lr is a share: 0.01 changes keys and values by about 1 % of the backbone's own (their root mean square) a step.",
    )
    head_lr: float | None = Field(None, gt=0, description="Learning rate of the head; None: the same as lr.")
    also_lr: float = Field(
        3e-3,
        gt=0,
        description="Learning rate of what `train.also` names; neither `relative` nor weight decay concerns it.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW first-moment decay.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW second-moment decay.")
    eps: float = Field(1e-8, gt=0, description="AdamW denominator term.")
    clip_norm: float = Field(1.0, ge=0, description="Largest L2 norm of one member's gradient; 0: no clipping.")
    schedule: Literal["linear", "constant", "exponential"] = Field(
        "linear", description="linear: to 0 at the last step; exponential: times `gamma` once an epoch."
    )
    gamma: float = Field(0.95, gt=0, le=1, description="Decay factor of one epoch for the exponential schedule.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps over which the rate rises from 0.")


class TrainSection(Section):
    """How long to train, and what is kept on the way."""

    also: list[Literal["biases", "norms"]] = Field(
        [],
        description="Frozen vectors that get trained deltas: biases of linear layers, norms; in all or only in `prompt.layers`.",
    )
    epochs: int = Field(10, gt=0, description="Passes over the training examples.")
    max_steps: int | None = Field(None, gt=0, description="Last step and horizon of the schedule, instead of epochs.")
    batch_size: int = Field(32, gt=0, description="Examples of one member in a step, over all ranks.")
    seed: int = Field(11, ge=0, lt=2**63, description="Seed of initial values, data order and prompt dropout.")
    eval_steps: int | None = Field(None, gt=0, description="Steps between evaluations on dev; None: once an epoch.")
    patience: int | None = Field(None, gt=0, description="Stop after so many evaluations without a new best.")
    log_steps: int = Field(
        10, gt=0, description="Steps between lines in metrics.jsonl and throughput.jsonl.", json_schema_extra=LAUNCH
    )
    checkpoint_steps: int | None = Field(
        None,
        gt=0,
        description="Steps between checkpoints; null: once all running members were evaluated since the last one.",
        json_schema_extra=LAUNCH,
    )
    keep_checkpoints: int = Field(
        2, gt=0, description="Newest checkpoints kept; every one holds the best prompts too.", json_schema_extra=LAUNCH
    )
    backbone_dropout: bool | float = Field(
        True, description="true: the backbone's own; false: none; a number: rate of its hidden dropout."
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    tokens_per_batch: int | None = Field(
        None,
        gt=0,
        description="Most tokens, prompts included, of one forward on a rank; None: 2048 on CPU, 16384 on GPU or with ZeRO-3.",
    )

    tensorboard: bool = Field(
        False, description="Write TensorBoard events too (extra `tensorboard`).", json_schema_extra=LAUNCH
    )
    wandb: bool = Field(
        False,
        description="Send metrics and settings to Weights & Biases too (extra `wandb`).",
        json_schema_extra=LAUNCH,
    )
    mlflow: bool = Field(
        False, description="Send metrics and settings to MLflow too (extra `mlflow`).", json_schema_extra=LAUNCH
    )

    @field_validator("backbone_dropout", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        if not isinstance(value, (bool, int, float)) or not (isinstance(value, bool) or 0 <= value < 1):
            raise ValueError(f"{show(value)} is no rate; give true, false or a number from 0 up to, not including, 1")
        return value


class ParallelSection(Section):
    """How the backbone is shared among ranks."""

    tensor: int = Field(1, gt=0, description="Neighbouring ranks that share every layer (tensor parallelism).")
    zero: bool = Field(False, description="Split the frozen backbone over the other ranks too (ZeRO-3 by DeepSpeed).")


class OffloadSection(Section):
    """Parts of the backbone kept off the GPU."""

    device: Literal["cpu", "nvme"] = Field(description="Where each rank keeps its part of the backbone.")
    nvme_path: str | None = Field(None, min_length=1, description="Folder for device `nvme`.")
    pin_memory: bool = Field(False, description="Keep it in page-locked memory, for faster copies to a GPU.")
    buffer_count: int = Field(5, gt=0, description="Buffers for device `nvme`.")
    buffer_size: int = Field(100_000_000, gt=0, description="Numbers in each of these buffers.")

    @model_validator(mode="after")
    def _has_path(self) -> OffloadSection:
        if self.device == "nvme" and self.nvme_path is None:
            raise ValueError("nvme_path is missing; name a folder on the NVMe disk")
        return self


class DeepSpeedSection(Section):
    """Settings of ZeRO-3 in DeepSpeed's own names; only with ``parallel.zero``."""

    offload_param: OffloadSection | None = Field(None, description="Keep the parts off the GPU; None: on it.")
    zero_hpz_partition_size: int = Field(
        1, gt=0, description="hpZ: ranks (of one host) that together keep a second copy, from which they gather."
    )
    zero_quantized_weights: bool = Field(False, description="Gather weights as int8; GPU only, changes the numbers.")
    zero_quantized_nontrainable_weights: bool = Field(
        False, description="Keep and gather frozen weights as int8; GPU only, changes the numbers."
    )
    stage3_prefetch_bucket_size: int = Field(50_000_000, ge=0, description="Numbers gathered ahead of their use.")
    stage3_max_live_parameters: int = Field(
        1_000_000_000, ge=0, description="Nothing is gathered ahead beyond so many gathered numbers."
    )
    stage3_max_reuse_distance: int = Field(
        0, ge=0, description="Weights stay gathered if they are used again within so many numbers; 0: never."
    )


class LaunchSection(Section):
    """How a job watches its ranks."""

    timeout_seconds: float = Field(
        300.0, gt=0, description="A rank that has not answered for so many seconds ends the job, named with its host."
    )


class FleetSection(Section):
    """Members that are trained together."""

    seeds: list[int] | None = Field(None, description="One member per seed (times members, times grid).")
    members: list[dict[str, Any]] | None = Field(
        None, description="Overrides, one object a member; each may have `name` and may extend a run file."
    )
    grid: dict[str, list[Any]] | None = Field(None, description="Values by dotted key; every combination is a member.")
    random: RandomSection | None = Field(None, description="Members drawn at random (times members, grid and seeds).")
    concurrent: int | None = Field(
        None,
        gt=0,
        description="Most members that train at once, the others wait for their places; None: as many as memory has room for.",
    )
    halving: HalvingSection | None = Field(None, description="Successive halving: only the best members go on.")
    shared_prompt: bool = Field(
        False, description="Members train one prefix together, each with its own data and head (MPT-2 of P-tuning v2)."
    )

    @model_validator(mode="after")
    def _sensible(self) -> FleetSection:
        problems = []
        for name in ("seeds", "members", "grid"):
            if getattr(self, name) == ([] if name != "grid" else {}):
                problems.append(f"`{name}` is empty; give at least one entry or leave it out")
        lists: dict[str, list[Any]] = {
            "seeds": self.seeds or [],
            **{f"grid.{k}": v for k, v in (self.grid or {}).items()},
        }
        for name, values in lists.items():
            if name != "seeds" and not values:
                problems.append(f"`{name}` is an empty list; give at least one value or leave it out")
            texts = [repr(value) for value in values]
            twice = [value for i, value in enumerate(values) if texts[i] in texts[:i]]
            if twice:
                problems.append(
                    f"`{name}` has {show(twice[0])} twice; members that are the same would count as several"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self
