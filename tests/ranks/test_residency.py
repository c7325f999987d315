"""What stays in memory between steps is each rank's share, and what is gathered does not grow with the fleet."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from model_parallel.grid import Grid, TopologyError, make_grid
from model_parallel.memory import resident_numel
from model_parallel.zero import check_locked_memory
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import evaluate
from prompt_tuning.settings.sections import BackboneSection
from tests.support.fleets import open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone, make_texts, run_json
from tests.support.topologies import QUIET, one_pass, open_sharded

# Thin and deep, as real ones are: norms and row biases, which tensor ranks keep whole, are few.
SHAPES = {
    "bert": {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 600, "max_position_embeddings": 32},
    "llama": {"hidden_size": 64, "intermediate_size": 224, "vocab_size": 600, "num_key_value_heads": 4},
    "glm4": {"hidden_size": 64, "intermediate_size": 224, "vocab_size": 600},
}
TOPOLOGIES = [(2, True), (1, True), (4, False), (2, False)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("residency") / "texts", {"train": 17, "dev": 10})


def count(grid, raw, topologies):
    """Share of the model that stays after a step, an evaluation and a failed step; the most held during a step; share read."""
    found = {}
    for tensor, zero in topologies:
        for checkpointing in (False, True):
            train = {**raw["train"], "activation_checkpointing": checkpointing}
            sections = {"parallel": {"tensor": tensor, "zero": zero}, "train": train}
            if zero:
                sections["deepspeed"] = {"stage3_prefetch_bucket_size": 0}
            fleet = open_fleet({**raw, **sections}, grid)
            backbone = fleet.backbone

            def share(backbone=backbone):
                return resident_numel(backbone.model) / backbone.num_parameters

            shares = [share()]
            for step in range(3):
                fleet.train_step([0])
                fleet.members[0].step = step + 1
                shares.append(share())
            evaluate(fleet, [0], "dev")
            shares.append(share())
            shares.append(fail_a_step(fleet, share))
            fleet.train_step([0])
            shares.append(share())
            peak = shares[0] + (backbone.zero.peak_numel / backbone.num_parameters if backbone.zero else 0)
            # Under ZeRO-3 a language head has a copy of the word embedding.
            copied = (
                sum(p.numel() for p in backbone.language_head.parameters()) if zero and backbone.language_head else 0
            )
            read = (backbone.bytes_read / 4 - copied * (grid.rank < tensor)) / backbone.num_parameters
            found[tensor, zero, checkpointing] = (shares, peak, read)
    return found


def fail_a_step(fleet, share):
    """An error inside the last layer's attention."""
    attention = fleet.backbone.family.attention_modules(fleet.backbone.model)[-1]

    def fail(*_):
        raise ArithmeticError

    hook = attention.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        fleet.train_step([0])
    hook.remove()
    return share()


@pytest.mark.parametrize("name", SHAPES)
def test_between_steps_a_rank_holds_its_share(tmp_path, data, name):
    # With a head that reads the first token, no pooler is read beside the model.
    folder = make_backbone(tmp_path / name, name, with_pooler=False, num_hidden_layers=4, **SHAPES[name])
    raw = run_json(folder, data, backbone={"dtype": "float32"}, head={"pooling": "first"})
    # GLM-4 has fewer key/value heads than 4 ranks, which then keep some twice.
    topologies = [(tensor, zero) for tensor, zero in TOPOLOGIES if (name, tensor) != ("glm4", 4)]
    for rank, found in enumerate(run_ranks(4, count, raw, topologies)):
        check_shares(rank, found)


def check_shares(rank, found):
    for (tensor, zero, checkpointing), (shares, peak, read) in found.items():
        data_ranks = 4 // tensor
        expected = 1 / (tensor * (data_ranks if zero else 1))
        for share in shares:
            assert abs(share / expected - 1) < 0.05, (tensor, zero, checkpointing, shares)
        assert peak < expected + 0.6 / tensor, "a step gathers nearly the whole model"
        reads = rank // tensor == 0
        assert abs(read * tensor - 1) < 0.05 if reads else read == 0


# Both stacks as deep, and wide beside their norms.
SIDES = {
    "t5": {"d_model": 64, "d_ff": 256, "num_layers": 4, "num_decoder_layers": 4},
    "bart": {"d_model": 128, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "max_position_embeddings": 20},
}


@pytest.mark.parametrize("name", SIDES)
def test_between_steps_and_texts_a_rank_holds_its_share_of_both_sides(tmp_path, name):
    """Evaluations write, by modules of a model whose own forward is not run."""
    folder = make_writer(tmp_path / name, name, vocab_size=600, **SIDES[name])
    raw = writing_run(folder, make_passages(tmp_path / "data"))
    raw["backbone"]["dtype"] = "float32"
    for rank, found in enumerate(run_ranks(4, count, raw, TOPOLOGIES)):
        check_shares(rank, found)


def gathered(grid, raws):
    found = {}
    for name, raw in raws.items():
        fleet = open_fleet(raw, grid)
        everyone = list(range(len(fleet.members)))
        numbers = []
        for _ in range(4):
            before = fleet.backbone.zero.gathered_numel
            fleet.train_step(everyone)
            numbers.append(fleet.backbone.zero.gathered_numel - before)
        found[name] = numbers[-1]
    return found


def test_gathers_of_a_step_do_not_grow_with_the_members(tmp_path, data):
    backbone = make_backbone(tmp_path / "bert", "bert")
    alone = run_json(backbone, data, parallel={"tensor": 2, "zero": True})
    raws = {str(n): {**alone, "fleet": {"seeds": list(range(n))}} for n in (1, 4, 8)}
    for found in run_ranks(4, gathered, raws):
        assert found["1"] > 0
        assert found["1"] == found["4"] == found["8"]


def use_settings(grid, folder, settings):
    """Hidden states under DeepSpeed settings, and where the parts are."""
    backbone = open_sharded(
        folder, make_grid(grid.rank, grid.size, grid.device), 1, True, settings={**QUIET, **settings}
    )
    return one_pass(backbone)


@pytest.mark.parametrize(
    "settings",
    [
        {"offload_param": {"device": "cpu", "pin_memory": False}},
        {"zero_hpz_partition_size": 2},
        {"stage3_prefetch_bucket_size": 10**6, "stage3_max_reuse_distance": 10**6},
        {"stage3_max_live_parameters": 10},
    ],
    ids=["offload", "hpz", "prefetch", "few live"],
)
def test_deepspeed_settings_do_not_change_the_numbers(tmp_path, settings):
    folder = make_backbone(tmp_path, "bert")
    alone = one_pass(open_sharded(folder, Grid(), 1, False))
    for rank in run_ranks(4, use_settings, folder, settings):
        for found, expected in zip(rank, alone, strict=True):
            assert ((found - expected).norm() / expected.norm()).item() < 1e-10


def test_parts_on_disk_do_not_change_the_numbers(tmp_path):
    builder = pytest.importorskip("deepspeed.ops.op_builder").AsyncIOBuilder()
    if not builder.is_compatible():
        pytest.skip("DeepSpeed's async_io cannot be built here (libaio-dev)")
    offload = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 64, "buffer_size": 100_000}
    settings = {"offload_param": offload}
    try:
        check_locked_memory(4 * offload["buffer_count"] * offload["buffer_size"])
    except TopologyError as error:
        pytest.skip(str(error))
    folder = make_backbone(tmp_path / "model", "bert")
    alone = one_pass(open_sharded(folder, Grid(), 1, False))
    # What a build leaves behind that was killed: without care, the ranks would wait for it for ever.
    (Path(cpp_extension._get_build_directory("pin_memory", verbose=False)) / "lock").touch()
    for rank in run_ranks(2, use_settings, folder, settings, timeout_seconds=900):
        for found, expected in zip(rank, alone, strict=True):
            assert ((found - expected).norm() / expected.norm()).item() < 1e-10


@pytest.mark.parametrize(
    ("limits", "rights", "is_enough"),
    [
        ((8, 8), 0, False),
        ((8, 8), 1 << 14, True),
        ((8, 200), 0, True),
        ((8, 105), 0, False),
        ((8, resource.RLIM_INFINITY), 0, True),
    ],
)
def test_memory_that_may_not_be_locked_is_a_sentence(tmp_path, monkeypatch, limits, rights, is_enough):
    """DeepSpeed's own check is an assertion in C++, which ends the rank without a word."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    (tmp_path / "status").write_text(f"Name:\tpython\nCapEff:\t{rights:016x}\n")
    if is_enough:
        check_locked_memory(100, tmp_path / "status")
    else:
        with pytest.raises(
            TopologyError, match=r"locks 0 MB of memory for buffers, and this user may lock .* lower buffer_count"
        ):
            check_locked_memory(100, tmp_path / "status")


def use_processor(grid, folder, has_fp16, dtype, settings):
    """A pass on a processor that has fp16 units or not, and the type of DeepSpeed's own buffers."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: has_fp16
    grid = make_grid(grid.rank, grid.size, grid.device)
    backbone = open_sharded(folder, grid, 1, True, dtype, settings={**QUIET, **settings})
    return one_pass(backbone), str(backbone.zero._init.dtype)


@pytest.mark.parametrize(
    ("dtype", "buffers"), [("float64", "torch.float32"), ("float32", "torch.float32"), ("bfloat16", "torch.bfloat16")]
)
def test_what_the_processor_supports_changes_nothing(tmp_path, dtype, buffers):
    """By its own choice DeepSpeed's buffers are bf16 without fp16 units, and with them it refuses float64."""
    folder = make_backbone(tmp_path, "bert")
    with_units, without = (run_ranks(2, use_processor, folder, has, dtype, {}) for has in (True, False))
    for (found, kind), (other, same) in zip(with_units, without, strict=True):
        assert kind == same == buffers
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def refuse(grid, folder, tensor, settings):
    with pytest.raises(UserError) as caught:
        load_backbone(
            BackboneSection(path=str(folder)), make_grid(grid.rank, grid.size, grid.device, tensor), zero=settings
        )
    return str(caught.value)


def test_settings_that_do_not_fit_the_grid_are_one_sentence(tmp_path):
    folder = make_backbone(tmp_path, "bert")
    assert "set one of the two to 1" in run_ranks(4, refuse, folder, 2, {"zero_hpz_partition_size": 2})[0]
    assert "does not divide the 2 data ranks" in run_ranks(2, refuse, folder, 1, {"zero_hpz_partition_size": 3})[0]
    assert "this is a CPU" in run_ranks(1, refuse, folder, 1, {"zero_quantized_weights": True})[0]
