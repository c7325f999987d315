"""Deltas of frozen biases and norms, trained beside prompts: in fleets, checkpoints and exported prompts."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from launcher import cli
from launcher import run as worker
from launcher.runs.plan import find_jobs
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.prompt import export
from prompt_tuning.report.results import export_member
from prompt_tuning.settings import identity
from tests.support.fleets import assert_same_course, follow, make_run, open_fleet
from tests.support.tiny import make_backbone, make_texts, run_json

ALSO = {"also": ["biases", "norms"]}
MEMBERS = [
    {"name": "both", "train": ALSO},
    {"name": "plain", "prompt": {"length": 2}, "train": {"seed": 12}},
    {"name": "upper", "prompt": {"layers": [1, 2]}, "train": {"also": ["norms"], "seed": 13}},
    {"name": "head", "method": "head", "train": ALSO, "optimizer": {"also_lr": 0.01}},
    {"name": "shallow", "method": "shallow_prompt", "train": {"also": ["biases"]}},
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("also")
    texts = make_texts(folder / "texts", {"train": 17, "dev": 9})
    return run_json(make_backbone(folder / "backbone", "bert"), texts, fleet={"members": MEMBERS})


def only(raw, name, **sections):
    """The run file with one member alone."""
    raw = copy.deepcopy(raw)
    (member,) = (own for own in raw["fleet"]["members"] if own["name"] == name)
    raw["fleet"]["members"] = [member]
    for section, keys in sections.items():
        member[section] = {**member.get(section, {}), **keys}
    return raw


@pytest.fixture(scope="module")
def trained(raw):
    """The fleet after three steps."""
    fleet = open_fleet(raw)
    follow(fleet, 3)
    return fleet


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for member in trained.members:
        export_member(folder / member.name, member)
    return folder


def test_members_in_a_fleet_train_their_deltas_as_if_alone(raw):
    together = follow(open_fleet(raw), 4)
    for member in MEMBERS:
        assert_same_course(together, follow(open_fleet(raw, only=member["name"]), 4), "float64", [member["name"]])


def test_deltas_have_a_rate_of_their_own_and_no_decay(raw):
    fleet = open_fleet(only(raw, "both", optimizer={"also_lr": 0.125, "weight_decay": 0.5, "relative": True}))
    member = fleet.members[0]
    (group,) = (g for g in member.optimizer.param_groups if any(p is member.prompt.beside.delta for p in g["params"]))
    assert (group["peak_lr"], group["weight_decay"], len(group["params"])) == (0.125, 0.0, 1)
    assert all(g["weight_decay"] == 0.5 for g in member.optimizer.param_groups if g is not group)


def test_a_members_deltas_stand_where_its_prompt_does(raw):
    found = {m.name: m.prompt for m in open_fleet(raw).members}
    assert {name.split(".")[2] for name in found["upper"].beside.lengths} == {"1", "2"}
    assert any(name.startswith("embeddings.LayerNorm") for name in found["both"].beside.lengths)
    assert [found[name].first_layer for name in ("both", "plain", "upper", "head", "shallow")] == [-1, 0, 1, -1, -1]
    assert found["plain"].beside is None


def test_steps_from_kept_states_are_whole_ones_under_deltas_too(raw):
    kept = copy.deepcopy(raw)
    kept["data"]["cache_activations"] = True
    fleet = open_fleet(kept)
    assert fleet.loops["train"].layers.tolist() == [0, 0, 1, 0, 0]
    assert_same_course(follow(fleet, 3), follow(open_fleet(raw), 3), "float64")


def test_a_head_with_deltas_does_not_see_texts_that_were_kept(trained):
    assert trained.frozen.members == set()


def test_a_checkpoint_continues_deltas_to_the_same_bits(raw, tmp_path):
    experiment = identity.experiment(make_run(raw))
    whole = open_fleet(raw)
    follow(whole, 2)
    checkpoint.save(tmp_path, whole, 2, experiment, keep=1)
    expected = follow(whole, 3)
    again = open_fleet(raw)
    checkpoint.load(checkpoint.newest(tmp_path), again, experiment)
    found = follow(again, 3)
    assert found.losses == expected.losses
    for name, tensors in expected.end.items():
        assert all(torch.equal(found.end[name][key], tensor) for key, tensor in tensors.items())


def test_exported_prompts_with_and_without_deltas_answer_together(trained, exported):
    names = [member.name for member in trained.members]
    model = attach([load_prompt(exported / name) for name in names])
    places = list(range(len(names)))
    expected = split_outputs(trained, places, "dev")
    found = model.outputs(places, [member.splits["dev"] for member in trained.members])
    for place in places:
        assert np.abs(found[place] - expected[place]).max() < 1e-10
    plain = split_outputs(open_fleet(only_settings(trained)), places, "dev")
    assert all(np.abs(found[place] - plain[place]).max() > 1e-4 for place in places), "training changed nothing"


def only_settings(fleet):
    """The run file of a fleet that was built from one."""
    spec = fleet.members[0].spec.config
    return run_json(spec.backbone.path, spec.data.path, fleet={"members": MEMBERS})


def test_an_exported_delta_bears_the_name_of_the_backbones_vector(trained, exported):
    tensors = load_file(exported / "both" / "prompt.safetensors")
    shapes = {name: p.shape for name, p in trained.backbone.model.named_parameters() if p.dim() == 1}
    assert {name.removeprefix("also."): t.shape for name, t in tensors.items() if name.startswith("also.")} == shapes


def test_only_prompts_with_deltas_have_the_newer_format(exported, monkeypatch):
    formats = {path.parent.name: json.loads(path.read_text())["format"] for path in exported.glob("*/prompt.json")}
    assert formats == {"both": 3, "plain": 2, "upper": 3, "head": 3, "shallow": 3}
    monkeypatch.setattr(export, "FORMATS", (2,))
    with pytest.raises(UserError, match=r"prompt format 3; this version reads 2$"):
        load_prompt(exported / "both")


def test_a_run_counts_exports_and_rebuilds_its_deltas(raw, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(only(raw, "both", train={"max_steps": 2})))
    assert worker.main(["--config", str(file), "--output", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "members" / "both"
    tensors = load_file(folder / "prompt" / "prompt.safetensors")
    result = json.loads((folder / "result.json").read_text())
    assert result["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert cli.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "both" / "prompt.safetensors")
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_prompt_with_deltas_starts_one_that_trains_them_and_no_other(raw, trained, exported):
    start = {"init_from": str(exported / "both")}
    member = open_fleet(only(raw, "both", prompt=start)).members[0]
    assert torch.equal(member.prompt.beside.delta, trained.members[0].prompt.beside.delta)
    with pytest.raises(UserError, match=r"deltas of \d+ vectors, such as .*; set train.also and prompt.layers"):
        open_fleet(only(raw, "both", prompt=start, train={"also": ["norms"]}))
    plain = open_fleet(only(raw, "both", prompt={"length": 2, "init_from": str(exported / "plain")})).members[0]
    assert not plain.prompt.beside.delta.any()


def test_full_fine_tuning_refuses_deltas(raw):
    with pytest.raises(UserError, match=r"train.also does not fit method 'full', which trains all of the backbone"):
        make_run({**raw, "method": "full", "train": ALSO, "fleet": None})


def test_a_backbone_without_biases_is_refused_by_its_name(raw, tmp_path):
    backbone = make_backbone(tmp_path, "mistral")
    with pytest.raises(UserError, match=r"train.also=\['biases', 'norms'\]: .* has no biases to train; set it to"):
        open_fleet({**only(raw, "both"), "backbone": {"path": str(backbone), "dtype": "float64"}})


def test_a_suites_baseline_is_a_head_alone(raw, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(only(raw, "both")))
    (job, baseline) = find_jobs([str(file)], [], None, baselines=True)
    assert (job.config["train"]["also"], baseline.config["train"]["also"]) == (["biases", "norms"], [])
