"""The planner: what it counts on paper is what loaded fleets hold and send, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from launcher import cli
from launcher.options import quantity
from model_parallel.collectives import PaperGroup, sum_over_tensor_ranks
from model_parallel.grid import Grid, TopologyError, make_grid
from model_parallel.memory import resident_bytes
from model_parallel.paper import Tally, on_paper
from model_parallel.room import check_room
from prompt_tuning.errors import UserError
from prompt_tuning.placement import foresee as foreseeing
from prompt_tuning.placement.choose import candidates, choose, take
from prompt_tuning.placement.count import Machine, Placement, count
from prompt_tuning.placement.outline import Outline
from tests.support.fleets import make_run, open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.ranks import run_ranks
from tests.support.tiny import TO_WRITE, make_backbone, make_texts, run_json

MACHINE = Machine(1, 1e11, 1e10, 1e9, 1e9, 8, 0.0, 10**9, 0)
LAYOUTS = [(1, False), (2, False), (4, False), (1, True), (2, True)]


def make(folder, name="llama", **sections):
    if name.endswith(TO_WRITE):
        model_type = name.removesuffix(TO_WRITE)
        return writing_run(make_writer(folder / model_type, model_type), make_passages(folder / "texts"), **sections)
    given = {"num_key_value_heads": 4} if name == "llama" else {"with_pooler": False}
    raw = run_json(make_backbone(folder / name, name, **given), make_texts(folder / "texts"), **sections)
    raw["task"]["labels"] = ["class0", "class1", "class2", "class3"]
    return raw


def held(grid, raw, layouts):
    """By layout: weights of this rank, trained bytes, AdamW's moments after a step, all-reduces over tensor ranks and their bytes."""
    from torch import distributed

    found = {}
    for tensor, zero in layouts:
        fleet = open_fleet({**raw, "parallel": {"tensor": tensor, "zero": zero}}, grid)
        weights, calls = resident_bytes(fleet.backbone.model), []
        real, group = distributed.all_reduce, fleet.grid.tensor_group

        def counted(value, *args, real=real, own=group, calls=calls, **kwargs):
            if own is not None and kwargs.get("group") is own:
                calls.append(value.nbytes)
            return real(value, *args, **kwargs)

        distributed.all_reduce = counted
        try:
            fleet.train_step([0])
        finally:
            distributed.all_reduce = real
        member = fleet.members[0]
        trained = sum(p.nbytes for _, p in member.parameters)
        moments = sum(
            v.nbytes for s in member.optimizer.state.values() for n, v in s.items() if n.startswith("exp_avg")
        )
        tokens = set(member.splits["train"].lengths_of(member.step_examples(0)).tolist())
        found[tensor, zero] = weights, trained, moments, len(calls), sum(calls), tokens
    return found


@pytest.mark.parametrize("name", ["llama", "bert", "bart to write", "umt5 to write"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_counted_bytes_are_those_of_loaded_ranks(tmp_path, name, checkpointing):
    """Every text is cut to 3 tokens, so that the step on paper is the step itself."""
    is_written = name.endswith(TO_WRITE)
    raw = make(tmp_path, name, **({} if is_written else {"head": {"pooling": "mean"}}))
    raw["data"]["max_length"] = 3
    if is_written:
        raw["data"]["max_target_length"] = 3
    raw["train"] |= {"batch_size": 4, "activation_checkpointing": checkpointing}
    ranks = run_ranks(4, held, raw, LAYOUTS)
    outline = Outline(make_run(raw))
    for tensor, zero in LAYOUTS:
        data = 4 // tensor
        weights, trained, moments, sums, summed, tokens = ranks[0][tensor, zero]
        # A row's last token is only written.
        assert tokens == {outline.text} == {3 + 2 * is_written}
        counted = outline.weights(tensor).total / (data if zero else 1)
        assert weights == pytest.approx(counted, rel=0.02 if zero else 0), "ZeRO-3 pads what does not divide"
        assert outline.trained_bytes == trained and 2 * trained == moments
        ran = outline.run_batch(4 // data, tensor, checkpointing, zero)
        if not zero:
            assert (ran.sums, ran.summed_bytes) == (sums, summed)
        assert (sums > 0) == (tensor > 1)


def head_bytes(grid, raw, layouts):
    """By layout: bytes of the language head that are not the backbone's."""
    found = {}
    for tensor, zero in layouts:
        backbone = open_fleet({**raw, "parallel": {"tensor": tensor, "zero": zero}}, grid).backbone
        own = {id(parameter) for parameter in backbone.model.parameters()}
        found[tensor, zero] = sum(p.nbytes for p in backbone.language_head.parameters() if id(p) not in own)
    return found


@pytest.mark.parametrize("is_tied", [True, False])
def test_language_heads_that_are_no_word_embedding_are_counted(tmp_path, is_tied):
    raw = writing_run(
        make_writer(tmp_path / "llama", "llama", tie_word_embeddings=is_tied), make_passages(tmp_path / "data")
    )
    layouts = [(1, False), (2, False), (1, True), (2, True)]
    (found, _) = run_ranks(2, head_bytes, raw, layouts)
    outline = Outline(make_run(raw))
    assert found == {layout: outline.head_bytes(*layout) for layout in layouts}
    assert [size > 0 for size in found.values()] == [not is_tied, not is_tied, True, True]
    ran = [outline.run_batch(4, *layout[:1], False, layout[1]) for layout in layouts]
    assert ran[0].sums == ran[2].sums == 0 < ran[1].sums


def test_the_tally_counts_live_bytes_and_operations():
    with on_paper():
        weight = torch.empty(30, 20)
        with Tally() as tally:
            given = torch.empty(10, 20, requires_grad=True)
            out = torch.nn.functional.linear(given, weight).relu()
            assert tally.live_bytes == 4 * (200 + 300), "the product itself is freed"
            out.sum().backward()
        assert sum(operations * number for (operations, _), number in tally.work.items()) == 2 * 2 * 10 * 20 * 30


def test_a_group_on_paper_sends_nothing_and_counts():
    group = PaperGroup(2)
    value = torch.ones(3, 5)
    assert sum_over_tensor_ranks(value, group).equal(value)
    assert (group.calls, group.num_bytes) == (1, 60)


def test_activations_of_a_checkpointed_batch_are_fewer_and_its_operations_more(tmp_path):
    outline = Outline(make_run(make(tmp_path)))
    plain, anew = (outline.run_batch(4, 1, checkpointing, False) for checkpointing in (False, True))
    assert anew.peak_bytes < plain.peak_bytes
    operations = [sum(count * number for count, _, number in ran.work) for ran in (plain, anew)]
    assert 1.2 < operations[1] / operations[0] < 1.6


def test_a_fleet_shares_gathers_and_weights(tmp_path):
    raw = make(tmp_path, parallel={"zero": True})
    raw["train"] |= {"batch_size": 2}
    machine = replace(MACHINE, ranks=2)
    one, four = (
        count(Outline(make_run({**raw, "fleet": {"seeds": list(range(n))}})), Placement(zero=True), machine)
        for n in (1, 4)
    )
    assert four.examples == 4 * one.examples and four.gather_wire == one.gather_wire > 0
    assert four.weights == one.weights
    assert four.gradient_wire == 4 * one.gradient_wire and four.trained > 4 * one.trained


def test_a_gather_under_way_takes_its_buffer_beside_or_activations_take_more(tmp_path):
    for bucket, text, is_more in ((0, 3, False), (10**6, 3, True), (10**6, 60, False)):
        raw = make(
            tmp_path / f"{bucket}-{text}", parallel={"zero": True}, deepspeed={"stage3_prefetch_bucket_size": bucket}
        )
        outline = Outline(make_run(raw), text)
        found = count(outline, Placement(zero=True), replace(MACHINE, ranks=2))
        weights = outline.weights(1)
        assert found.arriving == (weights.total if bucket else max(weights.embedded, weights.largest_layer))
        assert (found.arriving > found.activations) == is_more
        parts = (found.weights, found.gathered, found.trained, max(found.arriving, found.activations))
        assert found.memory == sum(parts)
    assert count(outline, Placement(), MACHINE).arriving == 0


def test_quantised_linear_layers_take_their_codes_and_scales(tmp_path):
    for quantize in ("int8", "nf4"):
        raw = make(tmp_path / quantize)
        raw["backbone"]["quantize"] = quantize
        held = resident_bytes(open_fleet(raw).backbone.model)
        outline = Outline(make_run(raw))
        assert count(outline, Placement(quantize=quantize), MACHINE).weights == held < outline.weights(1).total
        taken, _ = take(choose(outline, MACHINE).considered, 10**12, quantize)
        assert taken is not None and taken.placement.settings.endswith(f"backbone.quantize={quantize}")


def test_the_fastest_that_fits_is_taken(tmp_path):
    outline = Outline(make_run(make(tmp_path)))
    machine = replace(MACHINE, ranks=2)
    costs = choose(outline, machine).considered
    assert {cost.placement.name for cost in costs} >= {"replicate", "tensor 2", "ZeRO-3", "ZeRO-3, checkpointing"}
    ready = [cost for cost in costs if cost.placement.quantize is None]
    least = min(cost.memory for cost in ready)
    taken, reason = take(costs, least)
    assert taken is not None and taken.memory == least and "would be faster" in reason
    taken, reason = take(costs, 10**12)
    assert taken is not None and taken.seconds <= 1.02 * min(cost.seconds for cost in ready)
    taken, reason = take(costs, 1)
    assert taken is None and "No placement fits into 1 B" in reason and "take more ranks" in reason


def test_no_placement_is_offered_that_the_heads_forbid(tmp_path):
    outline = Outline(make_run(make(tmp_path)))
    assert {one.tensor for one in candidates(outline, 8)} == {1, 2, 4}


def test_the_verb_prints_a_table_and_a_reason(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(make(tmp_path)))
    given = ["--matrix-rate", "1TFLOP/s", "--bandwidth", "10GB/s", "--memory", "8GiB", "--ranks", "2"]
    assert cli.main(["plan", str(tmp_path / "run.json"), *given]) == 0
    said = capsys.readouterr().out
    assert "placements that fit into 8.6 GB a rank" in said and "--set parallel.tensor=1" in said
    assert cli.main(["plan", str(tmp_path / "run.json"), *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["taken"] in {cost["name"] for cost in found["considered"]}


def test_config_json_alone_is_enough(tmp_path, capsys):
    raw = make(tmp_path)
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "llama" / "config.json").read_bytes())
    raw["backbone"]["path"] = str(folder)
    assert Outline(make_run(raw)).weights(1).total > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ranks", "0"], "--ranks 0: give at least 1"),
        (["--memory", "24 parsecs"], "--memory 24 parsecs: give a number with a unit"),
        (["--memory", "2TFLOP/s"], "--memory 2TFLOP/s: give a number with a unit, such as 24GiB"),
        (["--text", "0"], "--text 0: give at least 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, more, message):
    (tmp_path / "run.json").write_text(json.dumps(make(tmp_path)))
    assert cli.main(["plan", str(tmp_path / "run.json"), *more]) == 1
    assert message in capsys.readouterr().err


def test_quantities_are_read_with_their_units():
    assert quantity("24GiB", "memory") == 24 * 2**30
    assert quantity("100GB/s", "interconnect") == 1e11
    assert quantity("400Gb/s", "network") == 5e10, "bits"
    assert quantity("400TFLOP/s", "matrix_rate") == 4e14
    assert quantity(None, "memory") is None


def test_weights_that_exceed_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    raw = make(tmp_path)
    needed = Outline(make_run(raw)).weights(1).total
    monkeypatch.setattr("model_parallel.room.free_swap", lambda: 0)
    monkeypatch.setattr("model_parallel.room.free_memory", lambda device: needed)
    open_fleet(raw)
    monkeypatch.setattr("model_parallel.room.free_memory", lambda device: needed - 1)
    monkeypatch.setattr("prompt_tuning.backbone.load.load_weights", None)
    with pytest.raises(UserError, match=r"the weights take 0.0 GB on .* set backbone.dtype=bfloat16 or"):
        open_fleet(raw)


def two_ranks(grid, folder):
    """What two ranks that share a host are told where only one of them has room."""
    import model_parallel.room as room

    room.free_swap, room.free_memory = (lambda: 0), (lambda device: 1500)
    model = torch.nn.Linear(250, 1, bias=False)
    check_room(model, make_grid(grid.rank, grid.size, grid.device), splits=True)
    with pytest.raises(TopologyError, match="the weights of 2 ranks together take"):
        check_room(model, make_grid(grid.rank, grid.size, grid.device), splits=False)
    return True


def test_ranks_of_one_host_share_its_memory(tmp_path):
    assert run_ranks(2, two_ranks, tmp_path) == [True, True]


def test_too_little_room_for_a_step_is_a_warning_with_a_remedy(tmp_path, monkeypatch, caplog):
    raw = make(tmp_path)
    monkeypatch.setattr(foreseeing, "free_memory", lambda device: 1000)
    open_fleet(raw)
    assert "a step may take" in caplog.text and "set train.activation_checkpointing" in caplog.text
    caplog.clear()
    monkeypatch.setattr(foreseeing, "free_memory", lambda device: 10**12)
    monkeypatch.setattr(foreseeing, "count", None)  # is not reached
    open_fleet(raw)
    assert "a step may take" not in caplog.text


def test_what_cannot_be_counted_still_runs(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ArithmeticError

    monkeypatch.setattr(foreseeing, "free_memory", lambda device: 1000)
    monkeypatch.setattr(foreseeing, "count", fail)
    with caplog.at_level("INFO"):
        open_fleet(make(tmp_path))
    assert "a step may take" not in caplog.text and "could not be counted: ArithmeticError" in caplog.text


def test_one_rank_needs_no_room_for_others():
    check_room(torch.nn.Linear(2, 2), Grid(), splits=False)
