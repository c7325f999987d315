"""What one part of the program writes to a file for another to read, as types that both sides use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

Metrics = dict[str, float]


class BestRecord(TypedDict):
    """A member's best evaluation on dev."""

    step: int
    metrics: Metrics


class MemberResult(TypedDict):
    """``members/<member>/result.json``. Extra test splits stand beside ``test`` as ``test/<name>``: :func:`split_metrics`."""

    member: str
    status: str
    task: str
    method: str
    seed: int
    overrides: dict[str, Any]
    selects_by: str
    best: BestRecord | None
    best_loss: float | None
    test: Metrics | None
    test_loss: float | None
    majority: dict[str, Metrics]
    trainable_parameters: int
    backbone_parameters: int
    exported_bytes: int | None
    steps: int
    seconds: float
    examples_per_second: float | None


class RunResult(TypedDict):
    """``result.json`` of a run, its last file."""

    name: str
    status: str
    seconds: float
    examples_per_second: float | None
    peak_bytes: int | None
    """Largest memory of a rank since its process began: :func:`model_parallel.memory.peak_memory`."""
    members: list[MemberResult]


class MemberRecord(TypedDict):
    """A member in ``run.json``: its settings, resolved."""

    name: str
    overrides: dict[str, Any]
    config: dict[str, Any]


class RunRecord(TypedDict):
    """``run.json``, without the folder that it lies in. Earlier versions wrote no ``halving`` and no ``concurrent``."""

    name: str
    shared_prompt: bool
    members: list[MemberRecord]
    halving: dict[str, Any] | None
    concurrent: int | None


class SavedBest(BestRecord):
    """A best evaluation in a checkpoint, beside whose tensors it stands."""

    loss: float


class MemberState(TypedDict, total=False):
    """What a checkpoint says of a member beside its tensors. ``data`` and ``prompt`` are missing in those of version 0.1.0."""

    name: str
    data: dict[str, Any]
    prompt: dict[str, Any]
    status: str
    step: int
    stale: int
    seconds: float
    examples: int
    best: SavedBest | None
    rungs: dict[str, float]


class SavedMember(MemberState, total=False):
    """A member in a checkpoint's ``state.json``. Version 0.1.0 wrote no ``identity``, and no ``file``: it followed from the place."""

    identity: str
    file: str


class MetricsLine(TypedDict, total=False):
    """A line of ``members/<member>/metrics.jsonl``; ``event`` is ``train``, ``dev`` or ``diverged``."""

    step: int
    event: str
    loss: float | None
    gradient_norm: float | None
    learning_rate: float
    epoch: float
    metrics: Metrics


class ThroughputLine(TypedDict):
    """A line of ``throughput.jsonl``: the fleet's steps since the line before, counted when the device had done them."""

    step: int
    """The fleet's, which is that of a member that was there from the start."""
    seconds: float
    examples_per_second: float | None
    tokens_per_second: float | None
    """Of texts and prompts, over all ranks; padding there is none."""
    waiting_for_data: float | None
    """Share of the time in which the first rank laid out batches, between 0 and 1."""


def split_metrics(result: Mapping[str, Any], split: str) -> Metrics:
    """A member's metrics on dev or a test split; {} where it has none."""
    if split == "dev":
        return dict(result["best"]["metrics"]) if result["best"] is not None else {}
    return dict(result.get(split) or {})


def tested_splits(result: Mapping[str, Any]) -> Iterator[str]:
    """The test splits that a member's result has metrics of."""
    return (key for key in result if (key == "test" or key.startswith("test/")) and result[key])
