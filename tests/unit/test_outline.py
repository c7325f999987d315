"""Outlines of runs: a batch on paper takes what a step takes, and deep models are counted from shallow ones."""

from __future__ import annotations

import pytest

from model_parallel.paper import Tally
from prompt_tuning.backbone.families import find_family
from prompt_tuning.placement.outline import Outline
from tests.support.fleets import make_run, open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.tiny import WORDS, make_backbone, make_texts, run_json, write_jsonl


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_deep_sides_are_counted_from_shallow_ones(tmp_path, name, checkpointing):
    """An encoder and a decoder of unequal depth."""
    family = find_family(name)
    depths = dict(zip((family.writing or family).depths, (8, 6), strict=True))
    writer = make_writer(tmp_path / name, name, **depths)
    check_deep(writing_run(writer, make_passages(tmp_path / "texts")), checkpointing)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_batch_of_both_sides_takes_what_a_step_takes(tmp_path, name, checkpointing):
    """Sources and targets are cut, so that all rows are as long as on paper."""
    writer = make_writer(tmp_path / name, name, vocab_size=4000, d_model=64)
    for split in ("train", "dev"):
        rows = [{"source": " ".join(WORDS), "target": " ".join(WORDS)}] * 8
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    raw = writing_run(writer, tmp_path / "data", train={"activation_checkpointing": checkpointing})
    raw["data"] |= {"max_length": 40, "max_target_length": 20}
    fleet, outline = open_fleet(raw), Outline(make_run(raw))
    fleet.train_step([0])
    fleet.members[0].step += 1
    with Tally() as tally:
        fleet.train_step([0])
    ran = outline.run_batch(8, 1, checkpointing, False)
    assert (outline.text, outline.encoded) == (59, 40)
    assert ran.peak_bytes == pytest.approx(tally.peak_bytes, rel=0.01)
    done = sum(operations * number for (operations, _), number in tally.work.items())
    assert done == sum(operations * number for operations, _, number in ran.work)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "albert"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_deep_models_are_counted_from_two_shallow_ones(tmp_path, name, checkpointing):
    given = {"num_hidden_layers": 8} | ({} if name in ("llama", "gpt2") else {"with_pooler": False})
    raw = run_json(
        make_backbone(tmp_path / name, name, **given), make_texts(tmp_path / "texts"), head={"pooling": "mean"}
    )
    raw["task"]["labels"] = ["class0", "class1", "class2", "class3"]
    check_deep(raw, checkpointing)


def check_deep(raw, checkpointing):
    outline = Outline(make_run(raw))
    for tensor in (1, 2):
        setting = (3, tensor, checkpointing, False, None)
        counted, whole = outline.run_batch(*setting), outline._run(outline.backbone_config, *setting)
        for part in (0, 1):
            own, all_ = (sum(item[part] * item[2] for item in ran.work) for ran in (counted, whole))
            assert own == pytest.approx(all_, rel=1e-3 * part), "operations are equal, bytes nearly"
        assert (counted.sums, counted.summed_bytes) == (whole.sums, whole.summed_bytes)
        assert counted.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.01)
