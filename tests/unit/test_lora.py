"""Method `lora`: LoRA on queries and values as PEFT has it, beside a head of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from launcher import cli
from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.backbone.families import families
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.prompt.lora import RANK
from prompt_tuning.report.holdings import prove_frozen
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet, train
from tests.support.tiny import make_backbone, make_texts, run_json
from tests.support.topologies import exact_norms

peft = pytest.importorskip("peft")
TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "albert": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}


def write(folder, value):
    file = folder / "run.json"
    file.write_text(json.dumps(value))
    return file


def lora_json(folder, family="bert", **sections):
    backbone = make_backbone(folder / "backbone", family, with_pooler=False)
    sections = {"head": {"pooling": "mean"}, "optimizer": {"lr": 0.01, "clip_norm": 0.0}, **sections}
    return run_json(backbone, make_texts(folder / "data"), method="lora", **sections)


def open_lora(folder, family="bert", **sections):
    return build_fleet(resolve(lora_json(folder, family, **sections), folder / "run.json"), Grid())


def theirs(folder, family, fleet):
    """PEFT's model over the stock backbone, with our trained numbers."""
    stock = AutoModel.from_pretrained(folder / "backbone", dtype=torch.float64, attn_implementation="eager")
    config = peft.LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS[family])
    model = peft.get_peft_model(stock, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
                parameter.copy_(fleet.members[0].prompt.lora[f"{module.replace('.', '/')}/{part[0]}"])
    return model


def their_logits(model, head, features, pad):
    """A padded batch of all rows under a mean-pooling head."""
    lengths = np.diff(features.offsets)
    ids = torch.full((len(lengths), int(lengths.max())), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths.tolist()):
        start = int(features.offsets[row])
        ids[row, :length] = torch.from_numpy(features.tokens[start : start + length].astype(np.int64))
        mask[row, :length] = 1
    types = {} if features.token_types is None else {"token_type_ids": torch.zeros_like(ids)}
    states = model(input_ids=ids, attention_mask=mask, **types).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.linear(pooled, head.weight, head.bias)


@pytest.mark.parametrize("family", TARGETS)
def test_loss_and_gradients_are_pefts_on_the_stock_model(tmp_path, family):
    fleet = open_lora(tmp_path, family, train={"batch_size": 22})
    (member,) = fleet.members
    exact_norms(fleet.backbone.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in member.prompt.lora.items():
            if name.endswith("/B"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model, features = theirs(tmp_path, family, fleet), member.splits["train"]
    exact_norms(model)
    head = nn.Linear(32, 3, dtype=torch.float64)
    head.load_state_dict({"weight": member.prompt.head.weight, "bias": member.prompt.head.bias})
    logits = their_logits(model, head, features, fleet.backbone.description.pad_token)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(features.labels).long())
    loss.backward()
    expected = {"head.weight": head.weight.grad, "head.bias": head.bias.grad}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            expected[f"lora.{module.replace('.', '/')}/{part[0]}"] = parameter.grad
    found = {}
    member.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: p.grad.clone() for name, p in member.parameters})
    )
    record = fleet.train_step([0])
    # Of float32 in stock code: rotary cosines, whose last bit depends on how many stand beside each other; DeBERTa's scale.
    bound = 1e-6 if family in ("llama", "deberta-v2") else 1e-10
    assert abs(record.losses.item() - loss.item()) < bound
    assert set(found) == set(expected) and len(found) == 2 + len(member.prompt.lora)
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-4, name
        assert (found[name] - gradient).norm() < bound * gradient.norm(), name


def test_lora_starts_without_effect_and_from_its_seed(tmp_path):
    first, again = open_lora(tmp_path), open_lora(tmp_path)
    other = open_lora(tmp_path, train={"seed": 12})
    head = open_lora(tmp_path)
    a, b, c = (fleet.members[0].prompt.lora for fleet in (first, again, other))
    names = [name for name in a if name.endswith("/A")]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(not torch.equal(a[name], c[name]) for name in names)
    assert all(a[name].abs().max() <= 32**-0.5 and a[name].std() > 0.09 for name in names)
    assert all(not a[name].any() for name in a if name.endswith("/B"))
    with torch.no_grad():
        for name in names:
            head.members[0].prompt.lora[name].zero_()
    assert np.array_equal(split_outputs(first, [0], "dev")[0], split_outputs(head, [0], "dev")[0])


def test_the_backbone_stays_frozen_beside_lora(tmp_path):
    fleet = open_lora(tmp_path)
    prove_frozen(fleet)
    lora = {id(p) for p in fleet.members[0].prompt.lora.values()}
    weights = {n: p.clone() for n, p in fleet.backbone.model.named_parameters() if id(p) not in lora}
    fleet.train_step([0])
    assert all(torch.equal(dict(fleet.backbone.model.named_parameters())[n], p) for n, p in weights.items())
    next(p for p in fleet.backbone.model.parameters() if id(p) not in lora).requires_grad_(True)
    with pytest.raises(AssertionError, match="not frozen"):
        prove_frozen(fleet)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_exported_lora_gives_the_same_logits(tmp_path, family):
    fleet = open_lora(tmp_path, family)
    before = split_outputs(fleet, [0], "dev")[0]
    for _ in range(2):
        fleet.train_step([0])
        fleet.members[0].step += 1
    expected = split_outputs(fleet, [0], "dev")[0]
    assert np.abs(expected - before).max() > 1e-3
    export_member(tmp_path / "prompt", fleet.members[0])
    exported = load_prompt(tmp_path / "prompt")
    (found,) = attach(exported).outputs([0], [fleet.members[0].splits["dev"]])
    assert np.abs(found - expected).max() < 1e-10
    with pytest.raises(UserError, match="attach it alone"):
        attach([exported, exported])
    with pytest.raises(UserError, match="attach it alone"):
        attach(exported, fleet.backbone)


def test_a_stopped_lora_run_resumes_to_the_same_bits(tmp_path):
    raw = lora_json(tmp_path, train={"backbone_dropout": 0.1, "max_steps": 6, "checkpoint_steps": 3, "eval_steps": 3})
    file = write(tmp_path, raw)
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "whole")]) == 0
    (tmp_path / "parts").mkdir()
    asked = iter([False, False, False, False, True])
    assert train(resolve(raw, file, output=str(tmp_path / "parts")), Grid(), stop=lambda: next(asked)) is None
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "parts")]) == 0
    for part in ("prompt/prompt.safetensors", "metrics.jsonl"):
        whole, parts = (tmp_path / name / "members" / "texts-lora-seed11" / part for name in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    result = json.loads((tmp_path / "whole/members/texts-lora-seed11/result.json").read_text())
    assert result["trainable_parameters"] == 3 * 2 * RANK * (32 + 32) + 3 * 32 + 3
    assert cli.main(["export", str(tmp_path / "parts"), "--output", str(tmp_path / "exported")]) == 0
    exported = (tmp_path / "exported/texts-lora-seed11/prompt.safetensors").read_bytes()
    assert exported == (tmp_path / "parts/members/texts-lora-seed11/prompt/prompt.safetensors").read_bytes()


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"parallel": {"tensor": 2}}, "parallel: method 'lora' trains differences of the weights"),
        ({"parallel": {"zero": True}}, "parallel: method 'lora' trains differences of the weights"),
        ({"fleet": {"seeds": [1, 2]}}, "method: 'lora' trains inside the backbone itself, so it is a fleet of exactly one"),
        ({"optimizer": {"relative": True}}, "which method 'lora' does not train themselves"),
        ({"prompt": {"init_from": "x"}}, "prompt.init_from does not fit method 'lora'"),
    ],
)  # fmt: skip
def test_what_lora_cannot_do_is_refused_in_a_sentence(tmp_path, sections, said):
    with pytest.raises(UserError) as refused:
        resolve(run_json(tmp_path, tmp_path, method="lora", **sections), tmp_path / "run.json")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_family_whose_queries_and_values_are_not_named_refuses_lora(tmp_path, monkeypatch):
    from dataclasses import replace

    from prompt_tuning.backbone import find

    known = find.find_family
    monkeypatch.setattr(find, "find_family", lambda name: replace(known(name), query_and_value=()))
    with pytest.raises(UserError, match="which layers of bert make queries and values is not known"):
        open_lora(tmp_path)


def test_without_peft_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"promptfleet\[lora\]"):
        open_lora(tmp_path)


@pytest.mark.parametrize("family", sorted(name for name, family in families().items() if not family.sites))
def test_every_familys_queries_and_values_learn(tmp_path, family):
    fleet = open_lora(tmp_path, family)
    (member,) = fleet.members
    attention = {id(module) for module in fleet.backbone.family.attention_modules(fleet.backbone.model)}
    fused = len(member.prompt.lora) == 2 * len(attention)
    assert fused or len(member.prompt.lora) == 4 * len(attention)
    for _ in range(2):
        fleet.train_step([0])
        member.step += 1
    assert all(member.optimizer.state[p]["exp_avg"].norm() > 1e-7 for p in member.prompt.lora.values())
    assert all(p.any() for p in member.prompt.lora.values())


def test_no_other_method_starts_from_lora(tmp_path):
    fleet = open_lora(tmp_path)
    export_member(tmp_path / "prompt", fleet.members[0])
    raw = {**lora_json(tmp_path), "method": "head", "prompt": {"init_from": str(tmp_path / "prompt")}}
    with pytest.raises(UserError, match="it is a prompt of method lora, but this run trains a head alone"):
        build_fleet(resolve(raw, tmp_path / "run.json"), Grid())
