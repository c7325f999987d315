"""More members than places: who waits begins when a place is free, and has the numbers of a run of its own."""

from __future__ import annotations

import pytest
import torch

from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint, room
from prompt_tuning.fleet.room import fitting
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.settings.identity import experiment
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet, train
from tests.support.fleets import make_run
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queue")
    return make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts", {"train": 17, "dev": 9})


def raw_of(places, concurrent, **train_section):
    """Members that end after 3, 9, 6, 3 and 6 steps."""
    members = [{"name": f"m{i}", "train": {"epochs": epochs}} for i, epochs in enumerate((1, 3, 2, 1, 2))]
    fleet = {"members": members, **({} if concurrent is None else {"concurrent": concurrent})}
    return run_json(*places, train={"seed": 4, **train_section}, fleet=fleet)


@pytest.fixture(scope="module")
def all_at_once(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "run"
    train(make_run(raw_of(places, None), folder), Grid())
    return folder


def prompts(folder):
    found = {path.parent.name: load_prompt(path) for path in folder.glob("members/*/prompt")}
    return {name: dict(prompt.prompt.named_parameters()) for name, prompt in found.items()}


def test_no_more_train_at_once_and_each_is_as_in_a_run_of_all(places, all_at_once, tmp_path, monkeypatch):
    steps, stock = [], Fleet.train_step

    def step(fleet, active):
        steps.append([fleet.members[i].name for i in active])
        held = [m.name for m in fleet.members if m.optimizer.state]
        assert set(held) <= set(steps[-1]), "only those at work hold moments"
        return stock(fleet, active)

    monkeypatch.setattr(Fleet, "train_step", step)
    result = train(make_run(raw_of(places, 2), tmp_path / "run"), Grid())
    assert {member["status"] for member in result["members"]} == {"finished"}
    assert [len(active) for active in steps] == [2] * 12 + [1] * 3
    assert steps[0] == ["m0", "m1"] and steps[3] == ["m1", "m2"] and steps[-1] == ["m4"]
    for name, expected in prompts(all_at_once).items():
        for key, tensor in prompts(tmp_path / "run")[name].items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-8)


def test_a_queue_that_is_stopped_goes_on_to_the_same_bits(places, tmp_path):
    train(make_run(raw_of(places, 2), tmp_path / "whole"), Grid())
    for after in (1, 4, 8, 13):
        asked, output = [], tmp_path / str(after)

        def stop(asked=asked, after=after):
            asked.append(None)
            return len(asked) > after

        assert train(make_run(raw_of(places, 2), output), Grid(), stop) is None
        train(make_run(raw_of(places, 2), output), Grid())
        for file in (tmp_path / "whole").glob("members/*/prompt/prompt.safetensors"):
            assert file.read_bytes() == (output / file.relative_to(tmp_path / "whole")).read_bytes(), after


def test_the_number_of_places_may_change_where_a_run_goes_on(places, all_at_once, tmp_path):
    asked = []
    train(make_run(raw_of(places, 2), tmp_path / "run"), Grid(), lambda: len(asked) > 4 or asked.append(None))
    train(make_run(raw_of(places, 3), tmp_path / "run"), Grid())
    for name, expected in prompts(all_at_once).items():
        for key, tensor in prompts(tmp_path / "run")[name].items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("free", "count"), [(0, 1), (59, 1), (60, 2), (99, 3), (100, 4)])
def test_as_many_members_train_at_once_as_memory_has_room_for(free, count):
    """All where all have room; else as if each were the largest, whoever comes next; one at least."""
    assert fitting([30, 10, 30, 30], free) == count


def test_a_run_goes_on_with_as_many_places_as_it_began_with(places, tmp_path, monkeypatch):
    """Whatever memory is free then: else other members trained beside each other."""
    raw = raw_of(places, None)
    monkeypatch.setattr(room, "free_memory", lambda device: 1)
    whole = make_run(raw, tmp_path / "whole")
    assert build_fleet(whole, Grid()).concurrent == 1
    train(whole, Grid())
    asked = []
    train(make_run(raw, tmp_path / "run"), Grid(), lambda: len(asked) > 4 or asked.append(None))
    monkeypatch.setattr(room, "free_memory", lambda device: 10**12)
    train(make_run(raw, tmp_path / "run"), Grid())
    for file in (tmp_path / "whole").glob("members/*/prompt/prompt.safetensors"):
        assert file.read_bytes() == (tmp_path / "run" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_members_that_trained_all_at_once_go_on_so(places, tmp_path, monkeypatch):
    raw, asked = raw_of(places, None), []
    train(make_run(raw, tmp_path / "run"), Grid(), lambda: len(asked) > 4 or asked.append(None))
    monkeypatch.setattr(room, "free_memory", lambda device: 1)
    fleet = build_fleet(make_run(raw, tmp_path / "run"), Grid())
    assert fleet.concurrent == 1
    checkpoint.load(
        checkpoint.newest(tmp_path / "run" / "checkpoints"), fleet, experiment(make_run(raw, tmp_path / "run"))
    )
    assert fleet.concurrent == len(fleet.members) > 1


def test_backbone_dropout_never_draws_the_same_twice(places, tmp_path, monkeypatch):
    drawn, stock = [], rng.key
    monkeypatch.setattr(
        rng, "key", lambda *parts: (drawn.append(parts) if "backbone dropout" in parts else None, stock(*parts))[1]
    )
    train(make_run(raw_of(places, 1, backbone_dropout=True), tmp_path / "run"), Grid())
    assert len(drawn) == len(set(drawn)) == 27


@pytest.mark.parametrize(("key", "value"), [("concurrent", 2), ("halving", {"rungs": [2]})])
def test_a_shared_prompt_trains_all_at_once_and_to_the_end(places, tmp_path, key, value):
    raw = raw_of(places, None, max_steps=4)
    raw["fleet"] |= {"shared_prompt": True, key: value}
    for member in raw["fleet"]["members"]:
        del member["train"]
    with pytest.raises(UserError, match=rf"fleet\.{key}: members with a shared prompt train all at once"):
        resolve(raw, tmp_path / "run.json")
