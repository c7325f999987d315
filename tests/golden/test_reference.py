"""Numbers recorded from the 2021 reference: logits, gradients and 20 AdamW steps of its BERT, RoBERTa and DeBERTa classes.

Of padded question answering only the logits of real tokens: the reference also lets padding answer, here it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_parallel.grid import Grid
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.forward.loop import targets
from prompt_tuning.forward.run import hidden_states, member_logits
from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.span import END, START
from prompt_tuning.kinds.tagging import Sentences
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.prompt.build import build_prompt
from prompt_tuning.settings.run import MemberSpec
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from tests.support.packed import rows_of_texts, text_rows
from tests.support.tiny import make_tokenizer

REFERENCE = Path(__file__).parent / "reference"
MANIFEST = json.loads((REFERENCE / "cases.json").read_text())
CASES = {case["name"]: case for case in MANIFEST["cases"]}
TOLERANCES = MANIFEST["suggested_tolerances"]
# Reference names of trained tensors, and ours.
NAMES = {
    "prefix_encoder.embedding.weight": "prefix.embedding",
    "prefix_encoder.trans.0.weight": "prefix.projection.0.weight",
    "prefix_encoder.trans.0.bias": "prefix.projection.0.bias",
    "prefix_encoder.trans.2.weight": "prefix.projection.2.weight",
    "prefix_encoder.trans.2.bias": "prefix.projection.2.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
    "qa_outputs.weight": "head.weight",
    "qa_outputs.bias": "head.bias",
    "pooler.dense.weight": "head.pooler.weight",
    "pooler.dense.bias": "head.pooler.bias",
}
KINDS = {
    "sequence_classification": "classification",
    "multiple_choice": "choice",
    "token_classification": "tagging",
    "question_answering": "span",
}


COMPARED = [name for name, case in CASES.items() if case["head"] != "question_answering" or "nopad" in name]


@pytest.fixture
def golden(request, tmp_path, monkeypatch):
    """The case, its recorded tensors, and our fleet of one with the recorded start in place."""
    case, tensors = CASES[request.param], _recorded(request.param)
    base = case["family"].removesuffix("-v2")
    weights = {name: t for name, t in tensors.items() if name.startswith(f"{base}.")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(case["model_config"]))
    make_tokenizer(case["model_config"]["pad_token_id"]).save_pretrained(tmp_path)

    kind = KINDS[case["head"]]
    training = case["training"]
    config = RunFile.model_validate(
        {
            "task": "copa" if kind == "choice" else "boolq",
            "backbone": {"path": str(tmp_path)},
            "data": {"max_length": 20},
            "prompt": {
                "length": case["prompt_length"],
                "reparameterisation": "mlp" if case["prefix_projection"] else "none",
                "projection_width": case["projection_width"] or 512,
            },
            "optimizer": {"lr": training["lr"], "clip_norm": training["clip_grad_norm"], "schedule": "constant"},
            "train": {
                "max_steps": training["steps"],
                "batch_size": 100,
                "backbone_dropout": False,
                "tokens_per_batch": 4096,
            },
        }
    )
    backbone = load_backbone(config.backbone, Grid())
    if case["model_config"].get("conv_kernel_size") and not _real(tensors).all():
        monkeypatch.setattr(
            backbone.model.encoder.conv, "forward", _see_padding(backbone.model, _real(tensors).shape[1])
        )
    outputs = tensors["qa_outputs.weight" if kind == "span" else "classifier.weight"].shape[0]
    prompt = build_prompt(config, backbone, outputs, find_kind(kind))
    parameters = dict(prompt.named_parameters())
    with torch.no_grad():
        for theirs, ours in NAMES.items():
            if theirs in tensors:
                parameters[ours].copy_(tensors[theirs])
    task = Task(kind, kind, None, {"accuracy": accuracy}, (), {})
    member = Member(MemberSpec(kind, {}, config), task, ("a", "b"), {"train": _features(tensors)}, prompt, backbone)
    return case, tensors, Fleet(backbone, [member], Grid())


def _recorded(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a case. Of questions without padding, logits in one and no row whose answer lies outside its window,
    which the reference counts for nothing."""
    tensors = load_file(REFERENCE / f"{name}.safetensors")
    if "input.start_positions" in tensors and name in COMPARED:
        for moment in ("expect", "final"):
            sides = [tensors.pop(f"{moment}.{side}_logits") for side in ("start", "end")]
            tensors[f"{moment}.logits"] = torch.stack(sides, -1)
        inside = tensors["input.start_positions"] < tensors["input.input_ids"].shape[1]
        of_rows = [key for key in tensors if key.startswith("input.") or key.endswith((".logits", "last_hidden_state"))]
        tensors |= {key: tensors[key][inside] for key in of_rows}
    return tensors


def _see_padding(model: Any, longest: int) -> Callable[..., torch.Tensor]:
    """DeBERTa's convolution as the reference has it: behind a short row stands what the embedding makes of padding."""
    conv = model.encoder.conv

    def forward(words: torch.Tensor, hidden: torch.Tensor, rows: PackedRows) -> torch.Tensor:
        padding = model.embeddings.LayerNorm(model.embeddings.word_embeddings.weight[model.config.pad_token_id])
        lengths = torch.tensor([group.length for group in rows.groups for _ in range(group.num_rows)])
        real = torch.arange(longest) < lengths[:, None]
        padded = padding.expand(*real.shape, -1).clone()
        padded[real] = words[0]
        found = torch.nn.functional.gelu(conv.conv(padded.transpose(1, 2)).transpose(1, 2)[real])
        return conv.LayerNorm(hidden + found)

    return forward


def _features(tensors: dict[str, torch.Tensor]) -> Features:
    """The recorded batch without its padding."""
    ids, mask = tensors["input.input_ids"], tensors["input.attention_mask"].bool()
    types = tensors.get("input.token_type_ids")
    choices = ids.shape[1] if ids.dim() == 3 else 1
    tags, notes = None, None
    labels = tensors.get("input.labels", torch.zeros(len(ids), dtype=torch.int64))
    if "input.start_positions" in tensors:
        place = torch.arange(ids.shape[1])
        start, end = (place == tensors[f"input.{side}_positions"][:, None] for side in ("start", "end"))
        tags = (START * start + END * end)[mask].numpy().astype(np.int32)
    elif labels.dim() == 2 and choices == 1:
        effective = tensors["input.labels_effective"]
        tags = effective[mask].numpy().astype(np.int32)
        notes = Sentences([], [], (effective >= 0).sum(1).numpy())
        labels = labels.new_zeros(len(ids))
    lengths = mask.flatten(0, -2).sum(1).numpy()
    return Features(
        tokens=ids[mask].numpy().astype(np.int32),
        token_types=None if types is None else types[mask].numpy().astype(np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        rows_per_example=choices,
        labels=labels.numpy(),
        tags=tags,
        notes=notes,
    )


def _real(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, L] Which tokens are no padding."""
    return tensors["input.attention_mask"].bool().flatten(0, -2)


def _difference(logits: torch.Tensor, expected: torch.Tensor, batch, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of logits in our order of examples; of real tokens only where every token is asked."""
    if expected.dim() == 2:
        return logits[torch.argsort(batch.examples)] - expected
    longest = int(batch.lengths.max())
    rows = rows_of_texts(logits, batch)[torch.argsort(batch.row_examples)]
    return (rows - expected[:, :longest])[_real(tensors)[:, :longest]]


def _whole_batch(fleet: Fleet):
    train = fleet.members[0].splits["train"]
    everything = np.arange(len(train))
    (batch,) = fleet.loops["train"].batches([(0, everything, 1 / train.terms(everything))])
    return batch


@pytest.mark.parametrize("golden", COMPARED, indirect=True)
def test_first_forward_and_gradients_match(golden):
    case, tensors, fleet = golden
    member = fleet.members[0]
    batch = _whole_batch(fleet)
    keys, values = member.prompt.prefix.table()[:, 0].unbind(1)
    assert torch.allclose(keys.transpose(0, 1), tensors["kv.layer_first.key"][0], atol=TOLERANCES["kv"])
    assert torch.allclose(values.transpose(0, 1), tensors["kv.layer_first.value"][0], atol=TOLERANCES["kv"])

    everything = replace(batch, read=None)
    hidden = text_rows(hidden_states(fleet.backbone, [member.prompt], everything), batch)
    rows = torch.argsort(batch.row_examples)
    real = _real(tensors)
    longest = hidden.shape[1]
    expected = tensors["expect.last_hidden_state"][:, :longest]
    assert (hidden[rows] - expected)[real[:, :longest]].abs().max() < TOLERANCES["last_hidden_state"]

    (logits,) = member_logits(fleet.backbone, [member.prompt], batch)
    assert _difference(logits, tensors["expect.logits"], batch, tensors).abs().max() < TOLERANCES["logits"]
    loss = member.kind.loss(logits, targets(batch, 0))
    assert abs(loss.item() - tensors["expect.loss"].item()) < TOLERANCES["loss"]
    loss.backward()
    parameters = dict(member.prompt.named_parameters())
    for theirs, ours in NAMES.items():
        if theirs in tensors and theirs not in case["noise_driven_params"]:
            expected = tensors[f"grad.{theirs}"]
            assert expected.norm() > 1e-4, "the recorded gradient would prove nothing"
            assert (parameters[ours].grad - expected).abs().max() < TOLERANCES["grad"], theirs


@pytest.mark.parametrize("golden", COMPARED, indirect=True)
def test_twenty_steps_match(golden):
    case, tensors, fleet = golden
    member = fleet.members[0]
    for step in range(case["training"]["steps"]):
        record = fleet.train_step([0])
        member.step += 1
        assert abs(record.losses[0].item() - tensors["train.loss"][step].item()) < TOLERANCES["train_loss"]
        assert abs(record.norms[0].item() - tensors["train.grad_norm"][step].item()) < TOLERANCES["train_grad_norm"]
    parameters = dict(member.prompt.named_parameters())
    for theirs, ours in NAMES.items():
        if theirs in tensors and theirs not in case["noise_driven_params"]:
            off = (parameters[ours] - tensors[f"final.{theirs}"]).abs()
            assert off.max() < 2e-3, theirs
            assert (off > 1e-4).float().mean() <= 1e-3, theirs
    batch = _whole_batch(fleet)
    (logits,) = member_logits(fleet.backbone, [member.prompt], batch)
    off = _difference(logits, tensors["final.logits"], batch, tensors)
    if case["head"] == "multiple_choice":
        off = off - off.mean(-1, keepdim=True)
    elif case["head"] == "question_answering":
        rows = off.view(len(batch.lengths), -1, 2)
        off = rows - rows.mean(1, keepdim=True)
    assert off.abs().max() < TOLERANCES["final_logits"]


@pytest.mark.parametrize("golden", sorted(set(CASES) - set(COMPARED)), indirect=True)
def test_logits_of_questions_match(golden):
    _, tensors, fleet = golden
    batch = _whole_batch(fleet)
    (logits,) = member_logits(fleet.backbone, [fleet.members[0].prompt], batch)
    expected = torch.stack([tensors["expect.start_logits"], tensors["expect.end_logits"]], dim=-1)
    assert _difference(logits, expected, batch, tensors).abs().max() < TOLERANCES["logits"]
