"""One prefix for several data sets, a head each (MPT-2), then continued for each of them."""

from __future__ import annotations

import json

import pytest
import torch

from launcher import run as worker
from launcher.runs.plan import find_jobs
from prompt_tuning.errors import UserError
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.settings.merge import merge
from tests.support.fleets import follow, open_fleet
from tests.support.tiny import make_backbone, make_tags, make_texts, run_json


@pytest.fixture
def raw(tmp_path):
    """Texts and tags under one prefix, nothing clipped."""
    members = [
        {"name": "texts"},
        {"name": "tags", "task": {"kind": "tagging"}, "data": {"path": str(make_tags(tmp_path / "tags"))}},
    ]
    return run_json(
        make_backbone(tmp_path / "backbone", "bert"),
        make_texts(tmp_path / "data"),
        prompt={"dropout": 0.1},
        optimizer={"clip_norm": 0.0},
        train={"max_steps": 6, "eval_steps": 2},
        fleet={"members": members, "shared_prompt": True},
    )


def test_the_shared_gradient_is_the_sum_over_members(raw):
    shared = follow(open_fleet(raw), 1)
    alone = [follow(open_fleet(raw, only=name), 1) for name in ("texts", "tags")]
    key = "prefix.embedding"
    expected = sum(course.first_gradients[name][key] for course, name in zip(alone, ("texts", "tags"), strict=True))
    assert expected.norm() > 1e-4
    assert torch.allclose(shared.first_gradients["texts"][key], expected, rtol=0, atol=1e-12)
    assert key not in shared.first_gradients["tags"], "the first member alone steps it"
    for course, name in zip(alone, ("texts", "tags"), strict=True):
        assert torch.allclose(
            shared.first_gradients[name]["head.weight"], course.first_gradients[name]["head.weight"], atol=1e-12
        )
        assert shared.losses[name] == pytest.approx(course.losses[name], abs=1e-12)


def test_members_see_the_same_prefix_until_they_part(raw):
    fleet = open_fleet(raw)
    follow(fleet, 3)
    first, second = fleet.members
    assert first.prompt.prefix is second.prompt.prefix
    before = first.tensors()["prefix.embedding"]
    second.part()
    second.load_tensors({**second.tensors(), "prefix.embedding": torch.zeros_like(before)})
    assert torch.equal(first.tensors()["prefix.embedding"], before)
    assert not second.prompt.prefix.embedding.any()


def train(tmp_path, raw, name, **sets):
    (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    assert worker.main(["--config", str(tmp_path / f"{name}.json"), "--output", str(tmp_path / name), *arguments]) == 0
    return tmp_path / name


def test_every_member_is_exported_with_the_prefix_of_its_best_step(raw, tmp_path):
    out = train(tmp_path, raw, "out")
    for name in ("texts", "tags"):
        result = json.loads((out / "members" / name / "result.json").read_text())
        prompt = load_prompt(out / "members" / name / "prompt")
        assert result["trainable_parameters"] == sum(t.numel() for t in prompt.prompt.parameters())
        assert attach(prompt).prompts[0].prompt.prefix is not None
    best = {name: load_prompt(out / "members" / name / "prompt").manifest["best"]["step"] for name in ("texts", "tags")}
    tables = [load_prompt(out / "members" / name / "prompt").prompt.prefix.table() for name in ("texts", "tags")]
    assert torch.equal(*tables) == (best["texts"] == best["tags"])


def test_an_interrupted_shared_run_ends_in_the_same_bits(raw, tmp_path, monkeypatch):
    whole = train(tmp_path, raw, "whole")
    from prompt_tuning.fleet.step import Fleet

    steps = iter(range(4))
    real = Fleet.train_step

    def stop(self, active):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real(self, active)

    monkeypatch.setattr(Fleet, "train_step", stop)
    (tmp_path / "cut.json").write_text(json.dumps({**raw, "name": "whole"}))
    arguments = ["--config", str(tmp_path / "cut.json"), "--output", str(tmp_path / "cut")]
    assert worker.main(arguments) == 130
    monkeypatch.setattr(Fleet, "train_step", real)
    assert worker.main(arguments) == 0
    for file in whole.glob("members/*/prompt/prompt.safetensors"):
        assert (tmp_path / "cut" / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_a_shared_prompt_is_continued_for_each_data_set(raw, tmp_path):
    out = train(tmp_path, raw, "out")
    alone = merge(raw, raw["fleet"]["members"][1])
    alone.pop("fleet")
    source = load_prompt(out / "members" / "tags" / "prompt")
    alone["prompt"] = {**alone["prompt"], "init_from": str(out / "members" / "tags" / "prompt")}
    fleet = open_fleet(alone)
    assert torch.equal(fleet.members[0].prompt.prefix.table(), source.prompt.prefix.table())
    assert torch.equal(fleet.members[0].prompt.head.weight, source.prompt.head.weight)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"method": "head"}, "only members with method 'deep_prompt' have a prefix to share"),
        ({"prompt": {"length": 3}}, "members share all of `prompt`"),
        ({"train": {"max_steps": 9}}, "members end together; set train.max_steps"),
        ({"train": {"patience": 2}}, "leave train.patience out"),
    ],
)
def test_members_that_cannot_share_are_refused(raw, member, message):
    raw["fleet"]["members"].append(member)
    with pytest.raises(UserError, match=message):
        open_fleet(raw)


def test_a_suite_does_not_part_them(raw, tmp_path):
    (tmp_path / "mpt.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="its members train one prompt and cannot be parted"):
        find_jobs([str(tmp_path / "mpt.json")], [], None, baselines=True)
