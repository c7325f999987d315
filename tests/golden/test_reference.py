"""Numbers recorded from the 2021 reference: logits, gradients and 20 AdamW steps of its BERT and RoBERTa classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_parallel.grid import Grid
from prompt_tuning.backbone import load_backbone
from prompt_tuning.config import RunFile
from prompt_tuning.features import Features
from prompt_tuning.fleet import Fleet, Member
from prompt_tuning.kinds import find_kind
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.model import build_prompt, hidden_states, member_logits
from prompt_tuning.runfile import MemberSpec
from prompt_tuning.tasks import Task
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
}


@pytest.fixture(params=CASES)
def golden(request, tmp_path):
    """The case, its recorded tensors, and our fleet of one with the recorded start in place."""
    case, tensors = CASES[request.param], load_file(REFERENCE / f"{request.param}.safetensors")
    base = case["family"]
    weights = {name: t for name, t in tensors.items() if name.startswith(f"{base}.")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(case["model_config"]))
    make_tokenizer(case["model_config"]["pad_token_id"]).save_pretrained(tmp_path)

    is_choice = case["head"] == "multiple_choice"
    training = case["training"]
    config = RunFile.model_validate(
        {
            "task": "copa" if is_choice else "boolq",
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
    outputs = tensors["classifier.weight"].shape[0]
    kind = "choice" if is_choice else "classification"
    prompt = build_prompt(config, backbone, outputs, find_kind(kind))
    parameters = dict(prompt.named_parameters())
    with torch.no_grad():
        for theirs, ours in NAMES.items():
            if theirs in tensors:
                parameters[ours].copy_(tensors[theirs])
    task = Task(kind, kind, None, {"accuracy": accuracy}, (), {})
    member = Member(MemberSpec(kind, {}, config), task, ("a", "b"), {"train": _features(tensors)}, prompt, backbone)
    return case, tensors, Fleet(backbone, [member], Grid())


def _features(tensors: dict[str, torch.Tensor]) -> Features:
    """The recorded batch without its padding."""
    ids, mask = tensors["input.input_ids"], tensors["input.attention_mask"].bool()
    types = tensors.get("input.token_type_ids")
    choices = ids.shape[1] if ids.dim() == 3 else 1
    lengths = mask.flatten(0, -2).sum(1).numpy()
    return Features(
        tokens=ids[mask].numpy().astype(np.int32),
        token_types=None if types is None else types[mask].numpy().astype(np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        rows_per_example=choices,
        labels=tensors["input.labels"].numpy(),
    )


def _whole_batch(fleet: Fleet):
    (batch,) = fleet.batches("train", [(0, np.arange(len(fleet.members[0].splits["train"])), 1.0)])
    order = torch.argsort(batch.examples)
    return batch, order


def test_first_forward_and_gradients_match(golden):
    case, tensors, fleet = golden
    member = fleet.members[0]
    batch, order = _whole_batch(fleet)
    keys, values = member.prompt.prefix.table()[:, 0].unbind(1)
    assert torch.allclose(keys.transpose(0, 1), tensors["kv.layer_first.key"][0], atol=TOLERANCES["kv"])
    assert torch.allclose(values.transpose(0, 1), tensors["kv.layer_first.value"][0], atol=TOLERANCES["kv"])

    hidden = hidden_states(fleet.backbone, [member.prompt], batch)
    rows = torch.argsort(batch.row_examples)
    real = tensors["input.attention_mask"].bool().flatten(0, -2)
    longest = hidden.shape[1]
    expected = tensors["expect.last_hidden_state"][:, :longest]
    assert (hidden[rows] - expected)[real[:, :longest]].abs().max() < TOLERANCES["last_hidden_state"]

    (logits,) = member_logits(fleet.backbone, [member.prompt], batch)
    assert (logits[order] - tensors["expect.logits"]).abs().max() < TOLERANCES["logits"]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    assert abs(loss.item() - tensors["expect.loss"].item()) < TOLERANCES["loss"]
    loss.backward()
    parameters = dict(member.prompt.named_parameters())
    for theirs, ours in NAMES.items():
        if theirs in tensors and theirs not in case["noise_driven_params"]:
            expected = tensors[f"grad.{theirs}"]
            assert expected.norm() > 1e-4, "the recorded gradient would prove nothing"
            assert (parameters[ours].grad - expected).abs().max() < TOLERANCES["grad"], theirs


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
    batch, order = _whole_batch(fleet)
    (logits,) = member_logits(fleet.backbone, [member.prompt], batch)
    off = logits[order] - tensors["final.logits"]
    if case["head"] == "multiple_choice":
        off = off - off.mean(-1, keepdim=True)
    assert off.abs().max() < TOLERANCES["final_logits"]
