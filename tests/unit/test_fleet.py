"""A fleet's members do not notice each other, and a member's course is the one an independent loop computes."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, DynamicCache, get_linear_schedule_with_warmup

from model_parallel.grid import Grid
from prompt_tuning import trainer
from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.report import rates
from prompt_tuning.report.holdings import prove_frozen
from prompt_tuning.settings.sections import OptimizerSection
from prompt_tuning.trainer import build_fleet, train
from tests.support.fleets import STEPS, assert_same_course, follow, make_run, open_fleet
from tests.support.tiny import make_backbone, make_copa, make_texts, run_json

NAMES = ["deep", "mlp", "shallow", "choice", "head"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    return {
        "backbone": make_backbone(folder / "backbone", "bert"),
        "texts": make_texts(folder / "texts"),
        "copa": make_copa(folder / "copa"),
    }


def five_members(places, dtype="float64", **train_section):
    """Two tasks, four methods, and nothing that two members have in common by chance."""
    members = [
        {"name": "deep", "prompt": {"length": 5}},
        {
            "name": "mlp",
            "prompt": {"length": 3, "reparameterisation": "mlp", "projection_width": 8, "dropout": 0.2},
            "optimizer": {"lr": 0.01, "head_lr": 0.003, "weight_decay": 0.1},
            "train": {"seed": 12},
        },
        {
            "name": "shallow",
            "method": "shallow_prompt",
            "prompt": {"length": 4, "dropout": 0.1},
            "optimizer": {"schedule": "constant"},
            "train": {"seed": 13, "batch_size": 5},
        },
        {
            "name": "choice",
            "task": "copa",
            "data": {"path": str(places["copa"])},
            "prompt": {"length": 2, "layers": [0, 2], "dropout": 0.3},
            "optimizer": {"warmup": 0.3},
            "train": {"seed": 14, "batch_size": 4},
        },
        {"name": "head", "method": "head", "prompt": {"dropout": 0.2}, "train": {"seed": 15}},
    ]
    train_section = {"max_steps": STEPS, **train_section}
    raw = run_json(places["backbone"], places["texts"], train=train_section, fleet={"members": members})
    raw["backbone"]["dtype"] = dtype
    return raw


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


# ---- Schedules and order


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
        ({"schedule": "linear", "warmup": 0.2}, [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ({"schedule": "constant"}, [1] * 10),
        ({"schedule": "constant", "warmup": 0.4}, [0, 0.25, 0.5, 0.75, *[1] * 6]),
        ({"schedule": "exponential", "gamma": 0.5}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"schedule": "exponential", "gamma": 0.5, "warmup": 0.2}, [0, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_schedules_take_hand_worked_values(settings, expected):
    section = OptimizerSection(**settings)
    found = [learning_rate_factor(section, step, total_steps=10, steps_per_epoch=4) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.06, 50), (0.1, 33), (0.5, 9)])
def test_the_linear_schedule_equals_transformers(warmup, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * total), total)
    section = OptimizerSection(warmup=warmup)
    for step in range(total):
        factor = learning_rate_factor(section, step, total, steps_per_epoch=3)
        assert factor == pytest.approx(schedule.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        schedule.step()


def test_every_epoch_is_another_permutation_of_all_examples(places):
    fleet = open_fleet(five_members(places))
    for member in fleet.members:
        count = len(member.splits["train"])
        epochs = []
        for epoch in range(3):
            steps = range(epoch * member.steps_per_epoch, (epoch + 1) * member.steps_per_epoch)
            batches = [member.step_examples(step) for step in steps]
            size = member.spec.config.train.batch_size
            assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
            epochs.append(np.concatenate(batches).tolist())
            assert sorted(epochs[-1]) == list(range(count))
        assert len({tuple(order) for order in epochs}) == 3
    first, second = (fleet.members[i].step_examples(0).tolist() for i in (0, 1))
    assert first != second, "members of different seeds see different orders"


def test_a_batch_larger_than_the_data_is_the_data(places):
    (member,) = open_fleet(run_json(places["backbone"], places["texts"], train={"batch_size": 1000})).members
    assert member.steps_per_epoch == 1
    assert sorted(member.step_examples(3)) == list(range(22))


# ---- Members that stop before the others


def read_lines(output, name):
    return [json.loads(line) for line in (output / "members" / name / "metrics.jsonl").read_text().splitlines()]


def test_patience_stops_a_member_that_does_not_improve(places, tmp_path):
    raw = five_members(places, max_steps=None, epochs=6)
    raw["fleet"]["members"][0]["optimizer"] = {"lr": 1e-12}
    raw["fleet"]["members"][0]["train"] = {"patience": 2}
    run = make_run(raw, tmp_path / "run")
    result = train(run, Grid())
    stopped, *others = result["members"]
    assert stopped["status"] == "stopped"
    assert stopped["steps"] == 3 * 3, "the first of three epochs' evaluations was the best"
    assert stopped["best"]["step"] == 3
    assert [line["step"] for line in read_lines(tmp_path / "run", "deep") if line["event"] == "dev"] == [3, 6, 9]
    assert {other["status"] for other in others} == {"finished"}
    assert result["status"] == "finished"


def poison(monkeypatch, name):
    """Put a NaN into a member's prefix before training."""

    def build_poisoned(*args):
        fleet = build_fleet(*args)
        for member in fleet.members:
            if member.name == name:
                member.prompt.prefix.embedding.data[0, 0] = float("nan")
        return fleet

    monkeypatch.setattr(trainer, "build_fleet", build_poisoned)


def keep_last_tensors(monkeypatch):
    """Members' tensors at the latest checkpoint, by name: results hold the best ones only."""
    last, save = {}, trainer.checkpoint.save

    def save_and_keep(folder, fleet, *rest):
        last.update({member.name: member.tensors() for member in fleet.members})
        save(folder, fleet, *rest)

    monkeypatch.setattr(trainer.checkpoint, "save", save_and_keep)
    return last


@pytest.fixture(scope="module")
def without_the_sick(places, tmp_path_factory):
    """The course of the four other members where the first does not exist, by dtype."""
    courses = {}
    for dtype in ("float64", "float32"):
        raw = five_members(places, dtype)
        del raw["fleet"]["members"][0]
        courses[dtype] = follow(open_fleet(raw))
    return courses


@pytest.mark.parametrize(("dtype", "cause"), [("float64", "nan"), ("float32", "rate"), ("float32", "nan")])
@pytest.mark.parametrize("eval_steps", [1, 4])
def test_a_diverging_member_is_stopped_without_harm_to_others(
    places, tmp_path, monkeypatch, without_the_sick, dtype, cause, eval_steps
):
    raw = five_members(places, dtype, eval_steps=eval_steps, log_steps=3)
    if cause == "rate":
        raw["fleet"]["members"][0]["optimizer"] = {"lr": 1e30}
    else:
        poison(monkeypatch, "deep")
    last = keep_last_tensors(monkeypatch)
    result = train(make_run(raw, tmp_path / "run"), Grid())
    sick, *others = result["members"]
    assert result["status"] == "diverged"
    assert sick["status"] == "diverged"
    assert sick["steps"] <= 4
    assert json.loads((tmp_path / "run" / "result.json").read_text())["members"][0]["status"] == "diverged"
    assert read_lines(tmp_path / "run", "deep")[-1]["event"] == "diverged"
    expected = without_the_sick[dtype]
    for other in others:
        assert other["status"] == "finished"
        name = other["member"]
        for key, end in expected.end[name].items():
            moved = (end - expected.start[name][key]).norm()
            assert (last[name][key] - end).norm() < (1e-7 if dtype == "float64" else 1e-3) * moved, f"{name}: {key}"


def test_members_share_the_time_of_a_step_by_their_tokens(places, tmp_path, monkeypatch):
    """On a clock that a second passes on at each look; the run's own rate is that of all its members together."""
    ticks = itertools.count()
    monkeypatch.setattr(rates.time, "perf_counter", lambda: float(next(ticks)))
    members = [
        {"name": "deep", "prompt": {"length": 5}},
        {"name": "short", "prompt": {"length": 1}, "train": {"batch_size": 4}},
        {"name": "head", "method": "head"},
    ]
    raw = run_json(
        places["backbone"],
        places["texts"],
        train={"max_steps": 6, "log_steps": 3, "batch_size": 8, "backbone_dropout": False},
        fleet={"members": members},
    )
    run = make_run(raw, tmp_path / "run")
    fleet = build_fleet(run, Grid())
    expected, count = np.zeros(3), 0
    for step in range(6):
        for index, member in enumerate(fleet.members):
            features, examples = member.splits["train"], member.step_examples(step)
            count += len(examples)
            texts = sum(int(np.diff(features.offsets)[example]) for example in examples)
            expected[index] += [texts + 5 * len(examples), texts + len(examples), len(examples)][index]
    expected *= 2 / expected.sum()  # two looks of a second each: steps 1 to 3, and 4 to 6
    result = train(run, Grid())
    found = [member["seconds"] for member in result["members"]]
    assert result["seconds"] == 2.0 and sum(found) == pytest.approx(2, abs=0.002)
    assert found == pytest.approx(expected.tolist(), rel=0.2)  # shares of each three steps
    assert result["examples_per_second"] == count / 2 and found[2] < found[0] / 5


def test_a_checkpoint_waits_until_all_running_members_were_evaluated(places, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(trainer.checkpoint, "save", lambda folder, fleet, step, *_: saved.append(step))
    members = [
        {"name": "often", "train": {"eval_steps": 2}},
        {"name": "seldom", "train": {"eval_steps": 5}},
        {"name": "short", "train": {"max_steps": 3, "eval_steps": 3}},
    ]
    raw = run_json(places["backbone"], places["texts"], train={"max_steps": 12}, fleet={"members": members})
    train(make_run(raw, tmp_path / "run"), Grid())
    assert saved == [5, 10, 12]  # not 2, 3, 4, 5, 6, 8, 10, 12


def plant(fleet, where, monkeypatch):
    """Let the first member meet a NaN in its third step alone: in a value of its prompt, a gradient, or its loss."""
    member = fleet.members[0]
    if where == "gradient":
        member.prompt.head.bias.register_hook(lambda g: g * float("nan") if member.step == 2 else g)
    elif where == "loss":
        loss = member.kind.loss

        def planted(logits, wanted):
            return loss(logits, wanted) * (float("inf") if member.step == 2 else 1)

        monkeypatch.setattr(member, "kind", replace(member.kind, loss=planted))
    else:
        head = member.prompt.head.forward

        def forward(pooled, *rest):
            return head(pooled * (float("nan") if member.step == 2 else 1), *rest)

        monkeypatch.setattr(member.prompt.head, "forward", forward)


@pytest.mark.parametrize("where", ["value", "gradient", "loss"])
def test_a_member_takes_no_step_from_the_first_number_that_is_not_finite(places, monkeypatch, where):
    """It keeps the tensors of its last good step though later ones are finite; the others have the bits they would have had."""
    raw = five_members(places, "float32")
    healthy, fleet = open_fleet(raw), open_fleet(raw)
    plant(fleet, where, monkeypatch)
    courses = []
    for one in (healthy, fleet):
        courses.append([])
        for _ in range(5):
            one.train_step(list(range(len(one.members))))
            for member in one.members:
                member.step += 1
            courses[-1].append([member.tensors() for member in one.members])
    for step, (expected, found) in enumerate(zip(*courses, strict=True)):
        wanted = [courses[0][min(step, 1)][0], *expected[1:]]
        for own, other in zip(found, wanted, strict=True):
            assert all(torch.equal(own[name], other[name]) for name in other), step
    assert fleet.updater.sick.tolist() == [1, 0, 0, 0, 0]
