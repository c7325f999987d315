"""Checkpoints know members by their settings: moved, renamed and added ones go on, unchanged ones share a file."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint
from prompt_tuning.fleet.evaluate import evaluate
from prompt_tuning.fleet.member import Best
from prompt_tuning.fleet.saved_member import state_of
from prompt_tuning.settings import identity
from prompt_tuning.trainer import build_fleet
from tests.support.fleets import follow, make_run, open_fleet
from tests.support.tiny import make_backbone, make_texts, run_json

NEW = {"name": "new", "prompt": {"length": 4}, "train": {"seed": 14}}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two deep prompts and a head, with both kinds of dropout."""
    folder = tmp_path_factory.mktemp("members")
    members = [
        {"name": "deep", "prompt": {"length": 3, "dropout": 0.2}},
        {"name": "other", "prompt": {"length": 2}, "train": {"seed": 12}},
        {"name": "head", "method": "head", "train": {"seed": 13}},
    ]
    return run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "texts"),
        train={"backbone_dropout": True, "max_steps": 12},
        fleet={"members": members},
    )


def with_members(raw, *members, **sections):
    """The run file with other members, those given by name as they were."""
    known = {member["name"]: member for member in raw["fleet"]["members"]}
    chosen = [known[member] if isinstance(member, str) else member for member in members]
    return {**copy.deepcopy(raw), **sections, "fleet": {"members": chosen}}


def experiment(raw):
    return identity.experiment(make_run(raw))


def save(folder, fleet, step, raw, keep=9):
    checkpoint.save(folder, fleet, step, experiment(raw), keep)
    return folder / f"step-{step:06d}"


@pytest.fixture
def fleet(raw):
    """After two steps, two members evaluated."""
    fleet = open_fleet(raw)
    follow(fleet, 2)
    for index, (metrics, loss) in evaluate(fleet, [0, 1], "dev").items():
        fleet.members[index].best = Best(2, metrics, loss, fleet.members[index].tensors())
    return fleet


def assert_same_bits(found, expected):
    assert set(found.end) == set(expected.end)
    for name, tensors in expected.end.items():
        assert found.losses[name] == expected.losses[name]
        assert all(torch.equal(found.end[name][key], tensor) for key, tensor in tensors.items()), name


# ---- Who is who


def test_reordered_members_resume_to_the_same_bits(raw, fleet, tmp_path):
    """In their old order within the fleet: dropout of the backbone, and sums, follow from the order in a batch."""
    path = save(tmp_path, fleet, 2, raw)
    expected = follow(fleet, 4)
    run = checkpoint.in_order(path, make_run(with_members(raw, "head", "other", "deep")))
    assert [spec.name for spec in run.members] == ["deep", "other", "head"]
    again = build_fleet(run, Grid())
    assert checkpoint.load(path, again, identity.experiment(run)) == 2
    assert_same_bits(follow(again, 4), expected)


@pytest.mark.parametrize("version", [1, 2])
def test_members_are_found_wherever_they_stand(raw, fleet, tmp_path, version):
    path = save(tmp_path, fleet, 2, raw)
    if version == 1:
        as_format_1(path)
    other = with_members(raw, NEW, "head", "deep", "other")
    again = open_fleet(other)
    fresh = again.members[0].tensors()
    checkpoint.load(path, again, experiment(other))
    by_name = {member.name: member for member in again.members}
    for member in fleet.members:
        assert by_name[member.name].step == 2
        found = by_name[member.name].tensors()
        assert all(torch.equal(found[name], tensor) for name, tensor in member.tensors().items())
    assert (by_name["new"].step, by_name["new"].optimizer.state) == (0, {})
    assert all(torch.equal(again.members[0].tensors()[name], tensor) for name, tensor in fresh.items())


def as_format_1(path):
    """Rewrite a checkpoint as earlier versions wrote it: members and files by their place."""
    state = json.loads((path / "state.json").read_text())
    del state["sha256_of_state"]
    state["format"], checksums = 1, {}
    for place, saved in enumerate(state["members"]):
        name = f"member-{place:04d}.safetensors"
        (path / saved["file"]).rename(path / name)
        checksums[name] = state["sha256"][saved["file"]]
        del saved["file"], saved["identity"]
    state["sha256"] = checksums
    state["sha256_of_state"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(state))


def test_format_1_resumes_to_the_same_bits_and_is_written_anew(raw, fleet, tmp_path):
    path = save(tmp_path, fleet, 2, raw)
    as_format_1(path)
    assert checkpoint.newest(tmp_path) == path
    again = open_fleet(raw)
    checkpoint.load(path, again, experiment(raw))
    newer = save(tmp_path, again, 3, raw)
    assert not {file.stat().st_ino for file in newer.iterdir()} & {file.stat().st_ino for file in path.iterdir()}
    assert checkpoint.read_state(newer)["format"] == 2
    assert_same_bits(follow(again, 3), follow(fleet, 3))


def test_an_added_member_has_the_course_that_it_has_alone_and_the_others_theirs(raw, tmp_path):
    """Members at different steps in one batch; without dropout of the backbone, which depends on the batch."""
    raw = with_members(raw, "deep", "other", "head", train={**raw["train"], "backbone_dropout": False})
    more = with_members(raw, NEW, "deep", "other", "head", train=raw["train"])
    fleet = open_fleet(raw)
    follow(fleet, 3)
    path = save(tmp_path, fleet, 3, raw)
    expected, alone = follow(fleet, 6), follow(open_fleet(more, only="new"), 6)
    run = checkpoint.in_order(path, make_run(more))
    again = build_fleet(run, Grid())
    checkpoint.load(path, again, identity.experiment(run))
    assert [member.step for member in again.members] == [3, 3, 3, 0]
    found = follow(again, 6)
    for course, names in ((expected, ("deep", "other", "head")), (alone, ("new",))):
        for name in names:
            assert found.losses[name] == pytest.approx(course.losses[name], abs=1e-10)
            for key, tensor in course.end[name].items():
                assert (found.end[name][key] - tensor).abs().max() < 1e-8


def test_missing_members_are_named(raw, fleet, tmp_path):
    path = save(tmp_path, fleet, 2, raw)
    for rest in (["head"], ["head", NEW], ["head", NEW, {**NEW, "name": "newer", "prompt": {"length": 1}}]):
        other = with_members(raw, *rest)
        with pytest.raises(UserError, match=r"members that are missing now: deep, other.*--fresh"):
            checkpoint.load(path, open_fleet(other), experiment(other))


def test_changed_settings_of_one_member_are_shown(raw, fleet, tmp_path):
    path = save(tmp_path, fleet, 2, raw)
    changed = {**raw["fleet"]["members"][1], "prompt": {"length": 7}}
    other = with_members(raw, "head", changed, "deep", NEW)
    with pytest.raises(UserError, match=r"members\[1\].config.prompt.length: 2 there, 7 now"):
        checkpoint.load(path, open_fleet(other), experiment(other))


def test_a_renamed_member_is_the_same_but_names_are_not_exchanged(raw):
    renamed = with_members(raw, {**raw["fleet"]["members"][0], "name": "d"}, "other", "head")
    found = identity.compare(experiment(raw), experiment(renamed), may_move=True)
    assert (found.difference, found.places, found.added) == (None, (0, 1, 2), ())
    exchanged = [
        {**member, "name": name} for member, name in zip(raw["fleet"]["members"], ("other", "x", "head"), strict=True)
    ]
    phrase = identity.compare(experiment(raw), experiment(with_members(raw, *exchanged)), may_move=True).difference
    assert phrase == "deep is now called other, which is another member's name there"


def test_members_that_share_a_prompt_stay_together(raw):
    together = with_members(raw, "deep", {**raw["fleet"]["members"][0], "name": "too", "train": {"seed": 12}})
    more = copy.deepcopy(together)
    more["fleet"]["members"].append({**together["fleet"]["members"][0], "name": "more", "train": {"seed": 15}})
    turned = with_members(raw, *reversed(together["fleet"]["members"]))
    for file in (together, more, turned):
        file["fleet"]["shared_prompt"] = True
    assert identity.compare(experiment(together), experiment(together), may_move=True).difference is None
    for other in (more, turned):
        phrase = identity.compare(experiment(together), experiment(other), may_move=True).difference
        assert "train one prompt together" in phrase
    apart = copy.deepcopy(together)
    apart["fleet"]["shared_prompt"] = False
    assert "shared_prompt: true there" in identity.compare(experiment(together), experiment(apart), True).difference


def test_identity_is_of_what_changes_the_numbers(raw):
    run = make_run(raw)
    elsewhere = {**raw, "data": {**raw["data"], "path": "x"}, "parallel": {"zero": True}, "launch": {}}
    assert identity.identities(make_run(elsewhere).members) == identity.identities(run.members)
    assert len(set(identity.identities(run.members))) == 3
    member = raw["fleet"]["members"][0]
    twice = make_run(with_members(raw, "deep", {**member, "name": "again"}, "head"))
    first, second, _ = identity.identities(twice.members)
    assert second == f"{first}-2"


def test_two_members_with_equal_settings_keep_apart(raw, tmp_path):
    raw = with_members(raw, "deep", {**raw["fleet"]["members"][0], "name": "again"})
    fleet = open_fleet(raw)
    fleet.members[1].stale = 5
    fleet.members[1].parameters[0][1].data.fill_(3)
    path = save(tmp_path, fleet, 1, raw)
    other = {**raw, "fleet": {"members": raw["fleet"]["members"][::-1]}}
    again = open_fleet(other)
    checkpoint.load(path, again, experiment(other))
    assert [member.stale for member in again.members] == [5, 0]
    assert (again.members[0].parameters[0][1] == 3).all() and not (again.members[1].parameters[0][1] == 3).all()


def test_members_that_differ_in_their_data_alone_are_told_by_path_or_name(raw, tmp_path):
    """Both places have moved in the last case, and the names are all that is left."""

    def two(first, second):
        return with_members(raw, *[{**raw["fleet"]["members"][0], **member} for member in (first, second)])

    a, b = ({"name": name, "data": {"path": name}} for name in ("a", "b"))
    recorded = experiment(two(a, b))
    for file, expected in (
        (two(b, a), (1, 0)),
        (two({**a, "name": "x"}, {**b, "name": "y"}), (0, 1)),
        (two({**b, "name": "x"}, {**a, "name": "y"}), (1, 0)),
        (two({**b, "data": {"path": "c"}}, {**a, "data": {"path": "d"}}), (1, 0)),
    ):
        assert identity.compare(recorded, experiment(file), may_move=True).places == expected


# ---- What is written


def file_of(path, name):
    return next(path / saved["file"] for saved in checkpoint.read_state(path)["members"] if saved["name"] == name)


def inode(path, name):
    return file_of(path, name).stat().st_ino


def test_a_member_is_written_when_it_has_changed(raw, fleet, tmp_path, monkeypatch):
    fleet.members[0].status = "stopped"
    first = save(tmp_path, fleet, 2, raw)
    read = []
    monkeypatch.setattr(checkpoint, "sha256", lambda file, digest=checkpoint.sha256: read.append(file) or digest(file))
    fleet.members[1].step += 1
    second = save(tmp_path, fleet, 3, raw)
    assert inode(first, "deep") == inode(second, "deep") and inode(first, "head") == inode(second, "head")
    assert inode(first, "other") != inode(second, "other")
    assert [file.name for file in read] == [file_of(second, "other").name], "other checksums are known"
    assert checkpoint.newest(tmp_path) == second
    state, before = checkpoint.read_state(second), checkpoint.read_state(first)
    assert state["sha256"][file_of(first, "deep").name] == before["sha256"][file_of(first, "deep").name]


@pytest.mark.parametrize("change", ["step", "stale", "seconds", "examples", "status", "best", "no best"])
def test_every_change_of_a_member_is_written(raw, fleet, tmp_path, change):
    first = save(tmp_path, fleet, 2, raw)
    member = fleet.members[0]
    if change == "status":
        member.status = "diverged"
    elif "best" in change:
        tensors = {name: tensor + 1 for name, tensor in member.tensors().items()}
        member.best = Best(3, member.best.metrics, member.best.loss, tensors) if change == "best" else None
    else:
        setattr(member, change, getattr(member, change) + 1)
    second = save(tmp_path, fleet, 3, raw)
    assert inode(first, "deep") != inode(second, "deep")
    again = open_fleet(raw)
    checkpoint.load(second, again, experiment(raw))
    assert state_of(again.members[0]) == state_of(member)


def test_a_linked_file_outlives_the_checkpoint_that_wrote_it(raw, fleet, tmp_path):
    expected = file_of(save(tmp_path, fleet, 2, raw), "deep").read_bytes()
    for step in (3, 4, 5):
        path = save(tmp_path, fleet, step, raw, keep=1)
    assert checkpoint.newest(tmp_path) == path == next(tmp_path.iterdir())
    assert file_of(path, "deep").read_bytes() == expected


def test_damage_to_a_linked_file_is_damage_to_all_that_hold_it(raw, fleet, tmp_path):
    oldest = save(tmp_path, fleet, 2, raw)
    fleet.members[0].step += 1
    save(tmp_path, fleet, 3, raw)
    newest = save(tmp_path, fleet, 4, raw)
    data = bytearray(file_of(newest, "deep").read_bytes())
    data[-1] ^= 1
    file_of(newest, "deep").write_bytes(data)  # in place, as a failing disk does
    assert checkpoint.newest(tmp_path) == oldest


def test_what_cannot_be_linked_is_written(raw, fleet, tmp_path, monkeypatch):
    """On a file system without links, beside a damaged state.json, and where the file is gone."""
    first = save(tmp_path, fleet, 2, raw)
    expected = file_of(first, "deep").read_bytes()

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        second = save(tmp_path, fleet, 3, raw)
    file_of(second, "head").unlink()
    third = save(tmp_path, fleet, 4, raw)
    assert checkpoint.newest(tmp_path) == third
    for path in (first, second, third):
        text = (path / "state.json").read_text()
        (path / "state.json").write_text(text.replace('"format": 2', '"format": 2, "x": 1', 1))
    assert checkpoint.newest(tmp_path) is None
    last = save(tmp_path, fleet, 5, raw)
    assert checkpoint.newest(tmp_path) == last
    inodes = {inode(last, "deep"), inode(first, "deep"), inode(second, "deep")}
    assert len(inodes) == 3
    assert all(Path(file_of(path, "deep")).read_bytes() == expected for path in (second, third, last))
