"""Quantised weights: the codes by their definitions, and a backbone of them against one written out in float64."""

from __future__ import annotations

import json
import logging
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_parallel.grid import Grid
from model_parallel.layers import FrozenLinear, full_precision
from model_parallel.memory import resident_bytes
from model_parallel.quantise import SCHEMES, block_size, nf4_levels
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.fidelity import gradient_cosine, say_fidelity
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt, write_prompt
from prompt_tuning.prompt.manifest import describe_prompt
from prompt_tuning.trainer import train
from tests.support.fleets import make_run, open_fleet
from tests.support.tiny import make_any, make_backbone, make_texts, run_json
from tests.support.topologies import digest, one_pass, open_sharded

NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434
0.5626170039176941 0.7229568362236023 1.0"""
"""As published (Dettmers et al. 2023, appendix E)."""


def written_out(weight, quantize, block):
    """A float64 weight [out, in] quantised and back, number by number."""
    levels = np.arange(-127, 128) / 127 if quantize == "int8" else np.array([float(x) for x in NF4.split()])
    result = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], block):
            own = weight[row, start : start + block]
            largest = np.abs(own).max()
            for i, number in enumerate(own):
                result[row, start + i] = largest * levels[np.abs(levels * largest - number).argmin()]
    return result


def test_levels_of_nf4_are_the_published_ones():
    assert np.allclose(nf4_levels(), [float(x) for x in NF4.split()], rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantize", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_number_becomes_the_nearest_of_its_block(quantize, dtype):
    weight = torch.randn(12, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[3] *= 1000
    weight[4, :16] = 0
    weight = weight.to(dtype)
    found = SCHEMES[quantize].dense(*SCHEMES[quantize].quantise(weight, 16))
    expected = torch.from_numpy(written_out(weight.double().numpy(), quantize, 16))
    assert found.dtype == dtype and not found[4, :16].any()
    bound = {torch.float64: 2e-6, torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
    largest = weight.double().unflatten(1, (-1, 16)).abs().amax(2).repeat_interleave(16, 1)
    if dtype == torch.bfloat16:  # a scale that is rounded moves numbers near the middle of two levels to the other one
        bound += 1 / 127 if quantize == "int8" else 0
        found, expected, largest = (
            torch.where((found - expected).abs() < 0.02 * largest, x, 0) for x in (found, expected, largest)
        )
        assert (largest > 0).double().mean() > 0.9
    assert bool(((found - expected).abs() <= bound * largest + 1e-300).all())


@pytest.mark.parametrize("quantize", SCHEMES)
def test_codes_of_what_codes_say_are_the_same(quantize):
    scheme = SCHEMES[quantize]
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    codes, scales = scheme.quantise(weight, 64)
    again, _ = scheme.quantise(scheme.dense(codes, scales), 64)
    assert torch.equal(again, codes)


def test_long_weights_are_converted_in_parts_alike(monkeypatch):
    weight = torch.randn(40, 64)
    for scheme in SCHEMES.values():
        whole = scheme.quantise(weight, 16)
        dense = scheme.dense(*whole)
        monkeypatch.setattr("model_parallel.quantise._CHUNK", 3 * 64)
        parts = scheme.quantise(weight, 16)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
        assert torch.equal(scheme.dense(*parts), dense)
        monkeypatch.undo()


NO_LINEAR = ("embed", "wte", "wpe", "pooler", "shared", "relative_attention_bias", "lm_head", "final_logits_bias")
"""Parts of the names of matrices that are no linear layer's, or a head's."""


def dequantised(folder, target, quantize, name):
    """A folder with the same model, each linear layer's weight quantised and back by ``written_out``."""
    tensors = {key: value.double() for key, value in load_file(folder / "model.safetensors").items()}
    for key, value in tensors.items():
        if value.dim() == 2 and not any(part in key for part in NO_LINEAR):
            matrix = value.t() if name == "gpt2" else value
            changed = torch.from_numpy(written_out(matrix.numpy(), quantize, block_size(matrix.shape[1])))
            tensors[key] = (changed.t() if name == "gpt2" else changed).contiguous()
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("quantize", SCHEMES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart to write", "umt5 to write"])
def test_forward_and_gradients_are_those_of_the_written_out_weights(tmp_path, name, quantize):
    folder = make_any(tmp_path / "model", name)
    stock = one_pass(open_sharded(dequantised(folder, tmp_path / "dense", quantize, name), Grid(), 1, False))
    backbone = open_sharded(folder, Grid(), 1, False, quantize=quantize)
    before = digest(backbone)
    plain = one_pass(open_sharded(folder, Grid(), 1, False))
    far = 0.0
    for found, expected, full in zip(one_pass(backbone), stock, plain, strict=True):
        assert ((found - expected).norm() / expected.norm()).item() < (1e-10 if quantize == "int8" else 1e-5)
        far = max(far, ((found - full).norm() / full.norm()).item())
    assert far > 1e-3, "nothing is quantised"
    assert digest(backbone) == before
    with full_precision(backbone.model):
        for found, full in zip(one_pass(backbone), plain, strict=True):
            assert ((found - full).norm() / full.norm()).item() < 1e-12


@pytest.mark.parametrize("quantize", SCHEMES)
def test_checkpointing_gives_the_same_bits(tmp_path, quantize):
    folder = make_backbone(tmp_path, "bert")
    plain, again = (
        one_pass(open_sharded(folder, Grid(), 1, False, "float32", quantize=quantize, activation_checkpointing=c), 0.3)
        for c in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("nf4", 4)])
def test_only_codes_stay_and_one_layer_at_a_time_is_dense(tmp_path, monkeypatch, quantize, bits):
    """Counted: bytes held, dense weights alive while another is loaded, and what autograd keeps for the backward."""
    folder = make_backbone(tmp_path, "llama", hidden_size=256, intermediate_size=512)
    alive, most, take = [], [], FrozenLinear.take

    def watched(layer, weight, read, **given):
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(weight))
        return take(layer, weight, read, **given)

    monkeypatch.setattr(FrozenLinear, "take", watched)
    backbone = open_sharded(folder, Grid(), 1, False, "bfloat16", quantize=quantize)
    assert len(most) == 7 * 3 and max(most) == 0
    linear = [module for module in backbone.model.modules() if isinstance(module, FrozenLinear)]
    numbers = sum(layer.scales.numel() * layer.block for layer in linear)
    scales = sum(layer.scales.numel() for layer in linear)
    others = sum(p.numel() for name, p in backbone.model.named_parameters() if not name.endswith(("codes", "scales")))
    assert resident_bytes(backbone.model) == numbers * bits // 8 + 2 * scales + 2 * others
    largest = max(layer.scales.numel() * layer.block for layer in linear)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        one_pass(backbone)
    assert kept and max(kept) < largest


def test_embeddings_norms_and_biases_stay(tmp_path):
    model = open_sharded(make_backbone(tmp_path, "bert"), Grid(), 1, False, "bfloat16", quantize="nf4").model
    types = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert types == {"weight": torch.bfloat16, "bias": torch.bfloat16, "codes": torch.uint8, "scales": torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())


def raw_run(tmp_path, **sections):
    data = make_texts(tmp_path / "texts", {"train": 17, "dev": 10})
    return run_json(make_backbone(tmp_path / "bert", "bert"), data, **sections)


@pytest.mark.parametrize(
    ("method", "why"),
    [("full", r"trains the weights themselves, and codes cannot be"), ("lora", r"is done by PEFT on layers")],
)
def test_trained_backbones_are_refused_with_the_reason(tmp_path, method, why):
    raw = raw_run(tmp_path, backbone={"dtype": "float32", "quantize": "int8"}, method=method)
    with pytest.raises(UserError, match=rf"backbone.quantize='int8' does not fit method '{method}', which {why}"):
        make_run(raw)


def test_odd_inputs_cannot_be_stored_in_pairs(tmp_path):
    folder = make_backbone(tmp_path, "bert", intermediate_size=45)
    with pytest.raises(
        UserError, match=r"'nf4' stores inputs in pairs, and encoder.layer.0.output.dense has 45; use 'int8'"
    ):
        open_sharded(folder, Grid(), 1, False, quantize="nf4")
    open_sharded(folder, Grid(), 1, False, quantize="int8")


def test_codes_are_the_nearest_for_the_scale_that_is_kept():
    """In bfloat16 a scale is off by up to one part in 512, a quarter of a step of the largest codes."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scales = SCHEMES["int8"].quantise(weight, 64)
    blocks, steps = weight.double().unflatten(1, (-1, 64)), scales.double()[:, :, None]
    errors = (codes.double().unflatten(1, (-1, 64)) * steps - blocks).abs()
    assert (errors <= (0.5 + 1e-6) * steps).all()


def test_fidelity_is_said_and_leaves_no_gradient(tmp_path, caplog):
    caplog.set_level("INFO")
    fleet = open_fleet(raw_run(tmp_path, backbone={"dtype": "float32", "quantize": "int8"}))
    say_fidelity(fleet)
    assert "backbone in int8: the first prompt's gradient has a cosine of 0.99" in caplog.text
    assert all(p.grad is None for _, p in fleet.members[0].prompt.trained()) and fleet.backbone.model.training
    for layer in fleet.backbone.model.modules():
        if isinstance(layer, FrozenLinear):
            layer.scales.data.mul_(-1)
    assert gradient_cosine(fleet) < 0.9, "weights of the wrong sign went unnoticed"


def test_a_quantised_run_is_continued_to_the_same_bits_and_by_no_other_quantisation(tmp_path, caplog):
    caplog.set_level("INFO")
    raw = raw_run(
        tmp_path, backbone={"quantize": "int8"}, train={"max_steps": 4, "checkpoint_steps": 2, "log_steps": 1}
    )
    (whole,) = train(make_run(raw, tmp_path / "whole"), Grid())["members"]
    caplog.clear()
    asked = iter([False, False, True] + [False] * 9)
    assert train(make_run(raw, tmp_path / "cut"), Grid(), lambda: next(asked)) is None
    other = {**raw, "backbone": {**raw["backbone"], "quantize": "nf4"}}
    with pytest.raises(UserError, match=r"backbone\.quantize"):
        train(make_run(other, tmp_path / "cut"), Grid())
    (again,) = train(make_run(raw, tmp_path / "cut"), Grid())["members"]
    assert again["best"] == whole["best"]
    assert caplog.text.count("has a cosine of") == 1, "a continued run has said it before"
    one, two = (next((tmp_path / part).glob("members/*/prompt/prompt.safetensors")) for part in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()


def test_a_prompt_names_its_quantisation_and_another_one_warns(tmp_path, caplog):
    raw = raw_run(tmp_path, backbone={"dtype": "float32", "quantize": "nf4"})
    fleet = open_fleet(raw)
    member, config = fleet.members[0], make_run(raw).members[0].config
    description = describe_prompt(config, member.task, member.labels, member.prompt, fleet.backbone)
    write_prompt(tmp_path / "prompt", member.prompt, description)
    assert json.loads((tmp_path / "prompt" / "prompt.json").read_text())["backbone"]["quantize"] == "nf4"
    exported = load_prompt(tmp_path / "prompt")
    assert attach(exported).backbone.quantize == "nf4"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    full = open_sharded(tmp_path / "bert", Grid(), 1, False, "float32")
    assert full.fingerprint == fleet.backbone.fingerprint
    attach(exported, full)
    assert "trained on a backbone with quantize nf4, and this one has null; its answers may differ" in caplog.text
