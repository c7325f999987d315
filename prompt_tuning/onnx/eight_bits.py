"""Weights as 8-bit integers: smaller and faster, and other answers, of which it is measured how many."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.onnx.check import graph_logits, packed_logits
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.tokens.features import Features


def write_int8(file: Path, target: Path) -> None:
    """Write a graph anew whose matrix products take 8-bit weights, with a scale for each output, and inputs scaled as they come.

    Embeddings, prompts and heads stay as they are.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger("root").setLevel(logging.ERROR)
    quantize_dynamic(
        file, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )


def agreement(file: Path, model: AttachedPrompts, features: Mapping[str, Features]) -> dict[str, Any]:
    """How a graph answers texts beside torch, by prompt: rows, share of equal answers of classifications, largest difference."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    texts = list(features.values())
    expected = packed_logits(model, texts)
    found = graph_logits(session, texts, [own.shape[1] for own in expected], np.random.default_rng(17))
    result = {}
    for name, task, a, b in zip(features, model.tasks, found, expected, strict=True):
        own: dict[str, Any] = {"rows": len(a), "largest_difference": float(f"{np.abs(a - b).max():.3g}")}
        if task.kind == "classification":
            own["same_answers"] = float((a.argmax(1) == b.argmax(1)).mean())
        result[name] = own
    return {"prompts": result}
