"""A fleet's members do not notice each other, and a member's course is the one an independent loop computes."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, DynamicCache, get_linear_schedule_with_warmup

from prompt_tuning.report.holdings import prove_frozen
from tests.support.fleets import STEPS, assert_same_course, five_members, follow, open_fleet
from tests.support.tiny import run_json

NAMES = ["deep", "mlp", "shallow", "choice", "head"]


@pytest.fixture(scope="module", params=["float64", "float32"])
def together(request, places):
    raw = five_members(places, request.param)
    return request.param, raw, follow(open_fleet(raw))


@pytest.mark.parametrize("name", NAMES)
def test_a_member_of_a_fleet_equals_itself_alone(together, name):
    """Fails if losses are divided by the batch's rows, clipping sees all gradients, or dropout counts rows of the batch."""
    dtype, raw, course = together
    alone = follow(open_fleet(raw, only=name))
    assert_same_course(course, alone, dtype, [name])
    assert np.abs(course.dev_logits[name] - alone.dev_logits[name]).max() < (1e-8 if dtype == "float64" else 1e-2)


def test_few_tokens_a_forward_change_nothing(places, together):
    """Micro-batches of a step add up to the step."""
    dtype, _, course = together
    small = five_members(places, dtype, tokens_per_batch=60)
    assert_same_course(follow(open_fleet(small)), course, dtype)


def test_every_trained_tensor_moves_and_no_backbone_byte_does(places):
    fleet = open_fleet(five_members(places))
    modules = (fleet.backbone.model, fleet.backbone.pooler)
    before = [_digest(module) for module in modules]
    course = follow(fleet, 5)
    assert [_digest(module) for module in modules] == before
    for name, tensors in course.end.items():
        for key, tensor in tensors.items():
            assert not torch.equal(tensor, course.start[name][key]), f"{name}: {key} stands still"
    assert "head.bias" not in course.end["choice"], "a shift of all choices has no gradient but rounding noise"


def _digest(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_backbone_holds_no_gradient(places):
    fleet = open_fleet(five_members(places))
    follow(fleet, 2)
    prove_frozen(fleet)
    weights = [*fleet.backbone.model.parameters(), *fleet.backbone.pooler.parameters()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)


@pytest.mark.parametrize("damage", ["requires_grad", "gradient", "optimizer"])
def test_the_start_up_check_sees_an_unfrozen_backbone(places, damage):
    fleet = open_fleet(five_members(places), only="deep")
    weight = next(fleet.backbone.model.parameters())
    if damage == "requires_grad":
        weight.requires_grad_(True)
    elif damage == "gradient":
        weight.grad = torch.zeros_like(weight)
    else:
        fleet.members[0].optimizer.param_groups[0]["params"].append(weight)
    with pytest.raises(AssertionError, match="not frozen"):
        prove_frozen(fleet)


def test_texts_kept_for_heads_give_what_the_backbone_gives(places):
    """A head's member without and with the shortcut of pooled texts computed once; two like members share them."""
    raw = five_members(places)
    raw["fleet"]["members"] = [
        raw["fleet"]["members"][4],
        {"name": "like", "method": "head", "train": {"seed": 3}},
        {"name": "mean", "method": "head", "head": {"pooling": "mean"}},
        {"name": "choice", "method": "head", "task": "copa", "data": {"path": str(places["copa"])}},
    ]
    short = open_fleet(raw)
    assert short.frozen.members == {0, 1, 2, 3}
    kept = follow(short)
    assert short.frozen.of(0, "train") is short.frozen.of(1, "train")
    assert short.frozen.of(0, "train") is not short.frozen.of(2, "train")
    long = open_fleet(raw)
    long.frozen.members = set()
    assert_same_course(kept, follow(long), "float64")


def test_backbone_dropout_leaves_no_text_fixed(places):
    raw = five_members(places, backbone_dropout=True)
    assert open_fleet(raw).frozen.members == set()


# ---- One member by hand: transformers' own model and cache, torch's own optimizer, clipping and schedule.


def test_a_member_equals_a_loop_written_by_hand(places):
    """AdamW with decay, a head rate, clipping, warm-up and linear decay over 20 steps, from our start and order alone."""
    settings = {"lr": 0.02, "head_lr": 0.005, "weight_decay": 0.05, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6}
    raw = run_json(
        places["backbone"],
        places["texts"],
        optimizer={**settings, "clip_norm": 0.3, "warmup": 0.2},
        train={"max_steps": STEPS, "batch_size": 6},
    )
    fleet = open_fleet(raw)
    (member,) = fleet.members
    orders = [member.step_examples(step).tolist() for step in range(STEPS)]
    course = follow(fleet)
    assert min(course.norms[member.name]) < 0.3 < max(course.norms[member.name]), "clipping must matter, and not always"

    model = AutoModel.from_pretrained(places["backbone"], dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(places["backbone"])
    rows = [json.loads(line) for line in (places["texts"] / "train.jsonl").read_text().splitlines()]
    embedding, weight, bias = (
        nn.Parameter(course.start[member.name][name].clone())
        for name in ("prefix.embedding", "head.weight", "head.bias")
    )
    rates = {key: settings[key] for key in ("eps", "weight_decay")}
    optimizer = torch.optim.AdamW(
        [{"params": [embedding], "lr": 0.02}, {"params": [weight, bias], "lr": 0.005}], betas=(0.8, 0.99), **rates
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    for step, order in enumerate(orders):
        texts = tokenizer([rows[i]["text"] for i in order], padding=True, return_tensors="pt")
        labels = torch.tensor([int(rows[i]["label"].removeprefix("class")) for i in order])
        cache = DynamicCache()
        for layer, (key, value) in enumerate(embedding.view(5, 3, 2, 4, 8).permute(1, 2, 3, 0, 4)):
            cache.update(key.expand(len(order), -1, -1, -1), value.expand(len(order), -1, -1, -1), layer)
        mask = torch.cat([torch.ones(len(order), 5, dtype=torch.long), texts.pop("attention_mask")], 1)
        pooled = model(**texts, attention_mask=mask, past_key_values=cache).pooler_output
        loss = nn.functional.cross_entropy(pooled @ weight.T + bias, labels)
        assert abs(loss.item() - course.losses[member.name][step]) < 1e-10
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_([embedding, weight, bias], 0.3)
        assert abs(norm.item() - course.norms[member.name][step]) < 1e-9
        optimizer.step()
        schedule.step()
    for name, tensor in zip(("prefix.embedding", "head.weight", "head.bias"), (embedding, weight, bias), strict=True):
        assert (course.end[member.name][name] - tensor).abs().max() < 1e-8, name


def test_each_member_is_clipped_by_its_own_norm(places):
    """Against torch's clipping of one member's gradients; a neighbour with a huge gradient has no say."""
    raw = five_members(places)
    unclipped = copy.deepcopy(raw)
    for member in raw["fleet"]["members"]:
        member.setdefault("optimizer", {})["clip_norm"] = 0.05 if member["name"] == "deep" else 0.2
    unclipped["optimizer"]["clip_norm"] = 0
    clipped, whole = follow(open_fleet(raw), 1), follow(open_fleet(unclipped), 1)
    assert max(clipped.norms[name][0] for name in NAMES) > 0.2, "nothing would be clipped"
    for name in NAMES:
        parameters = []
        for gradient in whole.first_gradients[name].values():
            parameters.append(nn.Parameter(torch.zeros_like(gradient)))
            parameters[-1].grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(parameters, 0.05 if name == "deep" else 0.2)
        assert abs(clipped.norms[name][0] - norm.item()) < 1e-12
        for found, expected in zip(clipped.first_gradients[name].values(), parameters, strict=True):
            assert torch.allclose(found, expected.grad, rtol=1e-12, atol=0)
