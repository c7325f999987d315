"""Rates and orders of examples: hand-worked values, transformers' own schedule, permutations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from prompt_tuning.fleet.schedule import learning_rate_factor
from prompt_tuning.settings.sections import OptimizerSection
from tests.support.fleets import five_members, open_fleet
from tests.support.tiny import run_json


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
