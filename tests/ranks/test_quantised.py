"""Quantised backbones over ranks: whatever the topology, the same codes, the same forward and the same prefix gradients."""

from __future__ import annotations

import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.fidelity import gradient_cosine
from prompt_tuning.settings.sections import BackboneSection
from tests.support.fleets import open_fleet
from tests.support.ranks import run_ranks
from tests.support.tiny import make_any, make_backbone, make_texts, run_json
from tests.support.topologies import in_topologies, one_pass, open_sharded

TOPOLOGIES = [(2, False), (4, False), (2, True), (1, True)]
# Plain, shared by all layers, transposed, fused in blocks, fused head by head, attending in code of its own, and two-sided.
NAMES = ["bert", "albert", "gpt2", "glm4", "gpt_neox", "deberta", "bart to write", "mt5 to write"]


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("name", NAMES)
def test_every_topology_gives_the_same_numbers_and_changes_no_code(tmp_path, name, quantize):
    folder = make_any(tmp_path, name, vocab_size=83)
    alone = one_pass(open_sharded(folder, Grid(), 1, False, quantize=quantize), dropout=0.3)
    for rank in run_ranks(4, in_topologies, folder, TOPOLOGIES, quantize):
        for tensor, zero in TOPOLOGIES:
            (plain, same_bytes, _), (checkpointed, _, _) = (rank[tensor, zero, c] for c in (False, True))
            assert same_bytes
            for found, expected, again in zip(plain, alone, checkpointed, strict=True):
                assert expected.norm() > 1e-3, "the expected tensor would prove nothing"
                assert ((found - expected).norm() / expected.norm()).item() < 1e-10
                assert torch.equal(found, again), "checkpointing changes bits"


def codes_of(grid, folder, quantize):
    backbone = open_sharded(folder, grid, grid.size, False, quantize=quantize)
    layer = backbone.model.encoder.layer[1]
    return [
        (part.codes.detach(), part.scales.detach())
        for part in (layer.attention.self.query, layer.attention.output.dense)
    ]


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_tensor_ranks_have_parts_of_one_process_codes(tmp_path, quantize):
    folder = make_backbone(tmp_path, "bert")
    whole = codes_of(Grid(), folder, quantize)
    ranks = run_ranks(4, codes_of, folder, quantize)
    for place, dimension in ((0, 0), (1, 1)):
        for own in (0, 1):
            assert torch.equal(torch.cat([rank[place][own] for rank in ranks], dimension), whole[place][own])


def cosine_of(grid, raws):
    return [gradient_cosine(open_fleet(raw, grid)) for raw in raws]


def test_fidelity_is_the_same_on_any_grid(tmp_path):
    data = make_texts(tmp_path / "texts", {"train": 17, "dev": 10})
    folder = make_backbone(tmp_path / "bert", "bert")
    sections = [{"tensor": tensor, "zero": zero} for tensor, zero in TOPOLOGIES]
    raw = run_json(folder, data, backbone={"dtype": "float64", "quantize": "nf4"})
    alone = cosine_of(Grid(), [raw])[0]
    assert 0.5 < alone < 0.9999
    for rank in run_ranks(4, cosine_of, [{**raw, "parallel": section} for section in sections]):
        for found in rank:
            assert abs(found - alone) < 1e-10


def test_a_cut_within_blocks_is_refused_in_a_sentence(tmp_path):
    folder = make_backbone(tmp_path, "bert", hidden_size=64, num_attention_heads=8, intermediate_size=40)
    with pytest.raises(
        UserError, match=r"parallel.tensor=8 cuts the 64 inputs of .* within blocks of 16, .* use fewer tensor ranks"
    ):
        load_backbone(BackboneSection(path=str(folder), quantize="int8"), Grid(0, 8, tensor=8))
