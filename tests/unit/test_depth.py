"""Prompts in upper layers alone: steps that begin at the lowest prompt give the numbers of whole ones."""

from __future__ import annotations

import copy
import errno

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.forward import depth
from prompt_tuning.settings.members import resolve
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.tiny import CONFIGS, make_backbone, make_copa, make_texts, run_json


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    return {
        "texts": make_texts(folder / "texts", {"train": 17, "dev": 9}),
        "copa": make_copa(folder / "copa"),
        **{name: make_backbone(folder / name, name) for name in CONFIGS},
    }


def raw_of(places, keep, model_type="bert", dtype="float64"):
    """Members that begin at layers 1 and 2 of 3, of several prompt lengths, on two data sets; one in all layers; a head."""
    members = [
        {"name": "upper", "prompt": {"length": 5, "layers": "1-2"}},
        {"name": "top", "prompt": {"length": 2, "layers": [2], "dropout": 0.2}, "train": {"seed": 12}},
        {"name": "zero", "prompt": {"length": 4, "layers": [2], "positions": "from_zero"}},
        {"name": "all", "prompt": {"length": 3}, "train": {"seed": 13}},
        {
            "name": "choice",
            "task": "copa",
            "data": {"path": str(places["copa"])},
            "prompt": {"length": 2, "layers": "2"},
            "head": {"pooling": "mean"},
            "train": {"batch_size": 4},
        },
        {"name": "head", "method": "head"},
    ]
    raw = run_json(places[model_type], places["texts"], fleet={"members": members})
    raw["backbone"]["dtype"] = dtype
    raw["data"]["cache_activations"] = keep
    return raw


# Qwen 2's own tokenizer knows none of the tiny words, so that all choices would be equal; BART keeps no states.
@pytest.mark.parametrize("model_type", sorted(set(CONFIGS) - {"qwen2", "bart"}))
def test_steps_from_kept_states_are_whole_ones(places, model_type, tmp_path):
    whole = follow(open_fleet(raw_of(places, False, model_type)), 4)
    for keep in (True, str(tmp_path / "kept")):
        assert_same_course(follow(open_fleet(raw_of(places, keep, model_type)), 4), whole, "float64")


def count_layers(fleet):
    """How many layers each forward runs, most in training first."""
    ran = []
    for index, layer in enumerate(fleet.backbone.model.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    fleet.train_step(fleet.running())
    return sorted(ran)


def test_layers_under_the_lowest_prompt_run_once(places):
    fleet = open_fleet(raw_of(places, True))
    count_layers(fleet)  # keeps the states
    # "all" goes through three layers and the head's texts are kept too; "upper" through two, and the three others one.
    assert count_layers(fleet) == [0, 1, 1, 2, 2, 2]


def test_a_folder_is_read_by_later_starts_and_never_under_another_key(places, tmp_path, monkeypatch):
    made = []
    stock = depth._compute
    monkeypatch.setattr(depth, "_compute", lambda *given: (made.append(given[2]), stock(*given))[1])
    raw = raw_of(places, str(tmp_path))

    def start(**changes):
        made.clear()
        own = copy.deepcopy(raw)
        own["fleet"] = {"members": [raw["fleet"]["members"][0]]}
        for section, keys in changes.items():
            own.setdefault(section, {}).update(keys)
        open_fleet(own).train_step([0])
        return len(made)

    assert (start(), start()) == (1, 0)
    assert start(optimizer={"lr": 0.1}) == 0, "what does not change the states does not count"
    own = raw["fleet"]["members"][0]["prompt"]
    for changes in (
        {"data": {"max_length": 6}},
        {"backbone": {"dtype": "float32"}},
        {"backbone": {"quantize": "int8"}},
        {"backbone": {"path": str(make_backbone(tmp_path / "other", "bert", seed=5))}},
    ):
        assert start(**changes) == 1, changes
    for key, value in {"length": 6, "layers": "2"}.items():
        before, own[key] = own[key], value
        assert start() == 1, key
        own[key] = before
    assert start() == 0 and not list(tmp_path.glob("*.tmp"))


def test_a_file_that_is_not_whole_is_named(places, tmp_path):
    raw = raw_of(places, str(tmp_path))
    open_fleet(raw).train_step([0])
    for file in tmp_path.glob("*.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data\.cache_activations=.*\.bin has another size than it was written with"):
        open_fleet(raw).train_step([0])


@pytest.mark.parametrize(
    ("layers", "expected"), [("1-2", [1, 2]), ("0", [0]), ("0-1, 3", [0, 1, 3]), ("12-23", list(range(12, 24)))]
)
def test_layers_may_be_ranges(tmp_path, layers, expected):
    config = resolve(run_json("b", tmp_path, prompt={"layers": layers}), tmp_path / "run.json").shared
    assert config.prompt.layers == expected


@pytest.mark.parametrize("layers", ["", "3-1", "top", "1-", "-1", "1;2", "99999"])
def test_what_names_no_layers_is_refused(tmp_path, layers):
    with pytest.raises(UserError, match=r"prompt\.layers"):
        resolve(run_json("b", tmp_path, prompt={"layers": layers}), tmp_path / "run.json")


@pytest.mark.parametrize("changes", [{"train": {"backbone_dropout": True}}, {"parallel": {"zero": True}}])
def test_what_changes_the_states_in_every_step_is_refused(tmp_path, changes):
    with pytest.raises(UserError, match=r"data\.cache_activations"):
        resolve(run_json("b", tmp_path, data={"cache_activations": True}, **changes), tmp_path / "run.json")


def test_a_folder_without_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_activations"):
        resolve(run_json("b", tmp_path, data={"cache_activations": ""}), tmp_path / "run.json")


def test_a_full_disk_is_a_sentence(places, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(depth.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"data\.cache_activations=.*No space left on device"):
        open_fleet(raw_of(places, str(tmp_path))).train_step([0])
    assert not list(tmp_path.iterdir())
