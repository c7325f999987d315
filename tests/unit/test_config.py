"""The schema of run files: every key described, nothing converted, nothing changed later."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prompt_tuning.section import Section
from prompt_tuning.settings.prompt import PromptSection
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import BackboneSection, FleetSection, TrainSection
from prompt_tuning.tasks.find import find_task, own_kinds
from prompt_tuning.tasks.own.classification import Options


def sections(kind=Section):
    return [found for direct in kind.__subclasses__() for found in (direct, *sections(direct))]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_of_a_run_file_is_described(section):
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert section in (RunFile,) or not undescribed
    # At the top, sections are described by their keys.
    assert all(isinstance(section.model_fields[name].default, Section) or name == "backbone" for name in undescribed)
    assert all(len(field.description or "") < 120 for field in section.model_fields.values())


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_section_is_strict(section):
    config = section.model_config
    assert (config["extra"], config["frozen"], config["strict"], config["allow_inf_nan"]) == (
        "forbid",
        True,
        True,
        False,
    )


def test_settings_cannot_be_changed_later():
    config = RunFile(task="boolq", backbone=BackboneSection(path="x"))
    with pytest.raises(ValidationError):
        config.train.seed = 3
    with pytest.raises(ValidationError):
        config.task = "copa"


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (0, 0.0), (0.2, 0.2)])
def test_backbone_dropout_is_a_switch_or_a_rate(value, expected):
    found = TrainSection(backbone_dropout=value).backbone_dropout
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 10**400, "0.2", None, [0.2]])
def test_other_backbone_dropouts_are_refused(value):
    with pytest.raises(ValidationError, match="give true, false or a number from 0"):
        TrainSection(backbone_dropout=value)


def test_a_whole_number_may_stand_where_a_number_is_asked():
    assert (
        RunFile.model_validate({"task": "boolq", "backbone": {"path": "x"}, "optimizer": {"lr": 1}}).optimizer.lr == 1.0
    )


def test_bounds_hold_at_their_ends():
    assert PromptSection(length=1, dropout=0.0).length == 1
    assert TrainSection(seed=0).seed == 0 and TrainSection(seed=2**63 - 1).seed == 2**63 - 1
    for wrong in ({"length": 0}, {"length": 65537}, {"dropout": 1.0}, {"dropout": -1e-9}):
        with pytest.raises(ValidationError):
            PromptSection(**wrong)


def test_seeds_and_grid_values_differ():
    FleetSection(seeds=[1, 2], grid={"optimizer.lr": [0.1, 0.2], "prompt.layers": [[0], [0, 1]]})
    long = ["x" * 100 + end for end in "ab"]
    FleetSection(grid={"data.path": long})
    with pytest.raises(ValidationError, match=r"`grid\.data\.path` has .* twice"):
        FleetSection(grid={"data.path": [*long, long[0]]})


def test_own_data_is_described_by_strict_options():
    assert issubclass(Options, Section)
    assert "classification" in own_kinds()
    assert find_task({"kind": "classification", "name": "mine"}).name == "mine"
