"""Training over 1, 2 and 3 ranks is the same training (DESIGN, section 6), ranks without a single example included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prompt_tuning import trainer
from prompt_tuning.data.load import task_data
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import evaluate
from prompt_tuning.settings.members import resolve
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.ranks import run_ranks
from tests.support.tiny import (
    make_backbone,
    make_copa,
    make_questions,
    make_tags,
    make_texts,
    make_tokenizer,
    make_values,
    run_json,
)

SIZES = (1, 2, 3)
DTYPES = ("float64", "float32")


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Run files by name. 17 training texts in eights and 13 questions in fours leave one example for an epoch's last step."""
    folder = tmp_path_factory.mktemp("ranks")
    backbone = make_backbone(folder / "backbone", "bert")
    texts = make_texts(folder / "texts", {"train": 17, "dev": 10})
    copa = make_copa(folder / "copa")
    fleet = [
        {"name": "deep", "prompt": {"length": 5}},
        {"name": "mlp", "prompt": {"length": 3, "reparameterisation": "mlp", "projection_width": 8, "dropout": 0.2}},
        {"name": "shallow", "method": "shallow_prompt", "prompt": {"length": 4, "dropout": 0.1}},
        {"name": "choice", "task": "copa", "data": {"path": str(copa)}, "train": {"batch_size": 4, "seed": 12}},
        {"name": "head", "method": "head"},
    ]
    heads = [
        # Two examples for three ranks, and a pooling of its own: the last rank must still help to compute the texts.
        {"name": "pair", "method": "head", "head": {"pooling": "first"}, "train": {"batch_size": 2}},
        {"name": "dropping", "method": "head", "prompt": {"dropout": 0.3}, "train": {"seed": 12}},
        {"name": "mean", "method": "head", "head": {"pooling": "mean"}, "data": {"max_length": 9}},
    ]
    kinds = [
        {"name": "tags", "task": {"kind": "tagging"}, "data": {"path": str(make_tags(folder / "tags"))}, "prompt": {"dropout": 0.1}},
        {
            "name": "spans",
            "task": {"kind": "span", "has_null": True},
            "data": {"path": str(make_questions(folder / "questions")), "max_length": 20, "stride": 3},
            "prompt": {"dropout": 0.1},
            "train": {"batch_size": 5},
        },
        {"name": "texts"},
        {"name": "values", "task": {"kind": "regression"}, "data": {"path": str(make_values(folder / "values"))}},
        {"name": "tags_head", "task": {"kind": "tagging"}, "data": {"path": str(folder / "tags")}, "method": "head"},
    ]  # fmt: skip
    return {
        "kinds": run_json(backbone, texts, train={"tokens_per_batch": 150}, fleet={"members": kinds}),
        "alone": run_json(backbone, texts),
        "dropout": run_json(backbone, texts, prompt={"dropout": 0.3}),
        # Few tokens a forward, so that a step takes several and ranks may need a dummy.
        "fleet": run_json(backbone, texts, train={"tokens_per_batch": 150}, fleet={"members": fleet}),
        "heads": run_json(backbone, texts, fleet={"members": heads}),
    }


def train_everything(grid, raws):
    """Courses by run and dtype; what every rank ran in the first steps; dev metrics at the end."""
    courses, work, metrics = {}, {}, {}
    for name, dtype in itertools.product(raws, DTYPES):
        raw = {**raws[name], "backbone": {**raws[name]["backbone"], "dtype": dtype}}
        fleet = open_fleet(raw, grid)
        if dtype == "float64":
            work[name] = [describe_step(fleet, step) for step in range(6)]
        courses[name, dtype] = follow(fleet)
        metrics[name, dtype] = evaluate(fleet, list(range(len(fleet.members))), "dev")
    return courses, work, metrics


def describe_step(fleet, step):
    """Forwards of this rank in a step, and (member, example, weight) of what is no dummy in them."""
    parts = []
    for index, member in enumerate(fleet.members):
        if index not in fleet.frozen.members:
            examples = member.step_examples(step)
            parts.append((index, examples, 1 / member.splits["train"].terms(examples)))
    batches = list(fleet.loops["train"].batches(parts))
    real = [
        (member, int(batch.examples[i]), float(batch.weights[i]))
        for batch in batches
        for member, span in zip(batch.members, batch.spans, strict=True)
        for i in range(span.examples.start, span.examples.stop)
        if batch.weights[i] > 0
    ]
    expected = [(member, int(e), weight) for member, examples, weight in parts for e in examples]
    return len(batches), real, sorted(expected)


@pytest.fixture(scope="module")
def everything(raws):
    return {size: run_ranks(size, train_everything, raws) for size in SIZES}


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", ["alone", "dropout", "fleet", "heads"])
def test_training_on_ranks_equals_training_on_one(everything, run, dtype, size):
    """Fails if gradients are averaged instead of summed, or losses divided by a rank's own count."""
    (expected,) = everything[1]
    for found in everything[size]:
        assert_same_course(found[0][run, dtype], expected[0][run, dtype], dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", ["alone", "fleet"])
def test_ranks_share_every_example_once_in_equally_many_forwards(everything, run, size):
    for step in range(6):
        steps = [work[run][step] for _, work, _ in everything[size]]
        assert len({forwards for forwards, _, _ in steps}) == 1
        assert sorted(itertools.chain(*(real for _, real, _ in steps))) == steps[0][2]


def test_some_rank_has_nothing_to_do_at_times(everything):
    """Otherwise the equalities above would not speak of empty ranks."""
    empty = [sum(not real for _, real, _ in (work["alone"][step] for _, work, _ in everything[3])) for step in range(6)]
    assert empty == [0, 0, 2, 0, 0, 2]


@pytest.mark.parametrize("size", SIZES[1:])
def test_evaluation_drops_and_doubles_nothing(everything, size):
    (expected,) = everything[1]
    for courses, _, metrics in everything[size]:
        for key, course in expected[0].items():
            for name, logits in course.dev_logits.items():
                found = courses[key].dev_logits[name]
                assert not np.isnan(logits).any(), "an example has no logits"
                assert np.abs(found - logits).max() < (1e-8 if key[1] == "float64" else 1e-2)
            if key[1] == "float64":
                for index, (numbers, loss) in expected[2][key].items():
                    # Correlations are continuous; all other metrics count answers.
                    assert metrics[key][index][0] == pytest.approx(numbers, abs=1e-8)
                    assert abs(metrics[key][index][1] - loss) < 1e-8


def test_all_ranks_hold_the_same_bits(everything):
    """What is replicated must not drift: later steps, statuses and checkpoints are read from any rank."""
    for size in SIZES[1:]:
        first, *others = (courses for courses, _, _ in everything[size])
        for other, (key, course) in itertools.product(others, first.items()):
            for name, tensors in course.end.items():
                assert all((other[key].end[name][k] == tensor).all() for k, tensor in tensors.items())


def fine_tune(grid, raw):
    """Losses and first gradients of a method that trains in the backbone itself."""
    course = follow(open_fleet(raw, grid), 8)
    (name,) = course.losses
    return course.losses[name], course.first_gradients[name]


@pytest.mark.parametrize("method, trained", [("full", "backbone.encoder"), ("lora", "lora.encoder")])
def test_fine_tuning_on_ranks_equals_fine_tuning_on_one(raws, method, trained):
    """Weights are not compared: a key bias has no true gradient, so AdamW walks it by rounding noise, without effect."""
    raw = {**raws["alone"], "method": method, "optimizer": {"lr": 1e-3}}
    ((losses, gradients),) = run_ranks(1, fine_tune, raw)
    assert any(name.startswith(trained) for name in gradients)
    for found_losses, found_gradients in run_ranks(3, fine_tune, raw):
        assert max(abs(a - b) for a, b in zip(found_losses, losses, strict=True)) < 1e-10
        for name, gradient in gradients.items():
            error = (found_gradients[name] - gradient).norm()
            assert error < 1e-10 * max(gradient.norm(), 1e-3), name


def read_own_data(grid, folder):
    """What a rank says whose host has another copy of the data."""
    raw = run_json("unused", folder / str(grid.rank))
    data = {"one": task_data(resolve(raw, folder / "run.json").shared, make_tokenizer())}
    try:
        trainer._check_same_data(data, grid)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_with_other_copies_of_the_data_are_named(tmp_path, seed):
    make_texts(tmp_path / "0")
    make_texts(tmp_path / "1", seed=seed)
    said = run_ranks(2, read_own_data, tmp_path)
    assert said == [None if seed == 0 else said[0]] * 2
    assert seed == 0 or "rank 1 has read another dev split or other labels than rank 0" in said[0]
