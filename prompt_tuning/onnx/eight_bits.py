"""Weights as 8-bit integers: a smaller file, and other answers, of which it is measured how many.

Weights of matrix products are kept in blocks of 32 that share a scale, and word embeddings row by row; what is computed with them
stays in float32. Integers for what passes between the products too would be faster, and change more answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.choice import ABSENT
from prompt_tuning.onnx.check import graph_logits, packed_logits
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.tokens.features import Features

BLOCK = 32
"""Weights that share a scale."""
_LARGE = 100_000
"""Numbers of a table from which on its rows are kept in 8 bits."""


def write_int8(file: Path, target: Path, in_one_file: bool) -> None:
    """Write a graph anew with 8-bit weights; prompts and heads stay as they are."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    model = onnx.load(file)
    _shrink_tables(model.graph)
    blocks = MatMulNBitsQuantizer(model, bits=8, block_size=BLOCK, is_symmetric=True)
    blocks.process()
    blocks.model.save_model_to_file(str(target), not in_one_file)


def _shrink_tables(graph: Any) -> None:
    """Let large tables of vectors have 8-bit rows, each with a scale: the vectors that are looked up are multiplied by theirs."""
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        table = stored.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((own.i for own in node.attribute if own.name == "axis"), 0)
        if table is None or axis != 0 or len(table.dims) != 2 or np.prod(table.dims) < _LARGE:
            nodes.append(node)
            continue
        rows = numpy_helper.to_array(table)
        scale = np.maximum(np.abs(rows).max(1, keepdims=True), np.finfo(np.float32).tiny) / 127
        short, scales = (f"{table.name}.{own}" for own in ("int8", "scale"))
        if short not in stored:
            for name, value in ((short, np.round(rows / scale).astype(np.int8)), (scales, scale.astype(np.float32))):
                stored[name] = numpy_helper.from_array(value, name)
                graph.initializer.append(stored[name])
        index, output = node.input[1], node.output[0]
        nodes += [
            helper.make_node("Gather", [short, index], [f"{output}.int8"]),
            helper.make_node("Cast", [f"{output}.int8"], [f"{output}.vector"], to=1),
            helper.make_node("Gather", [scales, index], [f"{output}.scale"]),
            helper.make_node("Mul", [f"{output}.vector", f"{output}.scale"], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def agreement(file: Path, model: AttachedPrompts, features: Mapping[str, Features]) -> dict[str, Any]:
    """How a graph answers texts beside torch, by prompt: how many answers, which share of them is equal, largest difference.

    A regression's numbers have a difference alone.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    texts = list(features.values())
    expected = packed_logits(model, texts)
    found = graph_logits(session, texts, [own.shape[1] for own in expected], np.random.default_rng(17))
    result = {}
    for name, exported, encoded, a, b in zip(features, model.prompts, texts, found, expected, strict=True):
        own: dict[str, Any] = {"rows": len(encoded), "largest_difference": float(f"{np.abs(a - b).max():.3g}")}
        if exported.task.kind != "regression":
            ours, torchs = (answers_of(exported, encoded, logits) for logits in (a, b))
            own["answers"] = len(ours)
            own["same_answers"] = float(np.mean([x == y for x, y in zip(ours, torchs, strict=True)]))
        result[name] = own
    return {"prompts": result}


def answers_of(exported: ExportedPrompt, features: Features, logits: np.ndarray) -> list[str]:
    """A label an example, a text a question, or a tag a word."""
    kind = find_kind(exported.task.kind)
    if exported.task.kind == "tagging":
        outputs = np.stack([logits.argmax(1), np.zeros(len(logits))], 1)
        sentences = kind.describe(exported.task, features, outputs, exported.labels)
        return [tag for sentence in sentences for tag in sentence["tags"]]
    if exported.task.kind == "span":
        return [own["answer"] for own in kind.describe(exported.task, features, logits, exported.labels)]
    outputs = logits.reshape(len(features), -1)
    if features.tags is not None:
        absent = features.tags[features.offsets[:-1]] == ABSENT
        outputs = np.where(absent.reshape(outputs.shape), -np.inf, outputs)
    return [exported.labels[place] for place in outputs.argmax(1)]
