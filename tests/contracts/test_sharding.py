"""Contract of every backbone family over ranks: whatever the topology, the same forward and the same prefix gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from model_parallel.grid import Grid
from model_parallel.plan import matches
from prompt_tuning.backbone.families import families, find_family
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.ranks import run_ranks
from tests.support.tiny import TO_WRITE, make_any, make_backbone
from tests.support.topologies import in_topologies, is_two_sided, local_tensors, one_pass, open_sharded

FAMILIES = sorted(
    [name for name, family in families().items() if not family.sites]
    + [name + TO_WRITE for name, family in families().items() if family.sites or family.writing]
)
# Tensor 4 has more ranks than the decoders have key/value heads, which are then kept by two ranks each.
ROUNDED = {"cohere", "cohere2"}
"""Model types whose rotary embedding rounds to float32, which turns a last bit of float64 into one of float32."""
TOPOLOGIES = [(2, False), (4, False), (2, True), (1, True)]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    # 83 tokens: no number of ranks divides them.
    scaled = {"scale_embedding": True} if "bart" in request.param else {}
    return make_any(tmp_path_factory.mktemp(request.param), request.param, vocab_size=83, **scaled)


def test_every_topology_gives_the_same_numbers_and_changes_no_weight(folder):
    """Prompt dropout on, so that masks drawn for a rank's own heads would show."""
    alone = one_pass(open_sharded(folder, Grid(), 1, False), dropout=0.3)
    ranks = run_ranks(4, in_topologies, folder, TOPOLOGIES)
    for tensor, zero in TOPOLOGIES:
        for rank in ranks:
            (plain, same_bytes, _), (checkpointed, _, _) = (rank[tensor, zero, c] for c in (False, True))
            assert same_bytes
            for found, expected, again in zip(plain, alone, checkpointed, strict=True):
                assert expected.norm() > 1e-3, "the expected tensor would prove nothing"
                error = ((found - expected).norm() / expected.norm()).item()
                assert error < (1e-6 if folder_type(folder) in ROUNDED else 1e-10)
                assert torch.equal(found, again), "checkpointing changes bits"


def test_plan_covers_every_layer_once(folder):
    family = find_family(folder_type(folder))
    if is_two_sided(folder):
        family = family.writing or family
    plan = family.plan
    with torch.device("meta"):
        model = family.auto.from_config(AutoConfig.from_pretrained(folder))
    family.open(model)
    model.pooler = None
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))]
    uncovered = [name for name in layers if plan.rule(name) is None]
    assert not uncovered
    for rule in plan.rules:
        assert any(matches(name, rule.modules) for name in layers), f"{rule.modules} matches nothing"


def test_slices_put_together_are_the_whole(folder):
    """Each tensor of each rank, against the same rows or columns cut from the whole model by an independent rule."""
    whole = AutoModel.from_pretrained(folder, dtype=torch.float64)
    for rank, tensors in enumerate(run_ranks(2, local_tensors, folder)):
        for name, found in tensors.items():
            expected = whole.get_parameter(name)
            if found.shape != expected.shape:
                axis = next(i for i in range(2) if i >= expected.dim() or found.shape[i] != expected.shape[i])
                queries = whole.config.num_attention_heads
                keys = getattr(whole.config, "num_key_value_heads", None) or queries
                attention = (queries, keys, keys)
                fused = {"gate_up": (2, 2), "Wi": (2, 2), "c_attn": attention, "qkv_proj": attention, "Wqkv": attention}
                shares = next((shares for part, shares in fused.items() if part in name), (2,))
                sizes = [expected.shape[axis] * share // sum(shares) for share in shares]
                parts = zip(expected.split(sizes, axis), shares, strict=True)
                # One key/value head is kept by both ranks.
                blocks = [part if share == 1 else part.tensor_split(2, axis)[rank] for part, share in parts]
                if any(part in name for part in ("embed", "wte", "shared")):
                    blocks = [expected[rank * 83 // 2 : (rank + 1) * 83 // 2]]
                expected = torch.cat(blocks, axis)
            assert torch.equal(found, expected), name


def test_buffers_that_no_file_holds_are_those_of_the_ordinary_model(folder):
    for dtype in ("float64", "bfloat16"):
        expected = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
        section = BackboneSection(path=str(folder), dtype=dtype)
        ours = load_backbone(section, Grid(), language=is_two_sided(folder)).model
        buffers = dict(ours.named_buffers())
        for name, buffer in expected.named_buffers():
            assert torch.equal(buffers[name], buffer) and buffers[name].dtype == buffer.dtype, name


def test_heads_that_do_not_divide_are_refused_in_a_sentence(folder):
    with pytest.raises(UserError, match=r"parallel.tensor=3 does not divide the 4 heads of .*; choose one of 1, 2, 4"):
        load_backbone(BackboneSection(path=str(folder)), Grid(0, 3, tensor=3), language=is_two_sided(folder))


def test_widths_that_do_not_divide_are_refused_before_anything_is_read(tmp_path):
    folder = make_backbone(tmp_path, "llama", intermediate_size=50)
    with pytest.raises(UserError, match=r"parallel.tensor=4 does not divide the width 50 of layers.0.mlp"):
        load_backbone(BackboneSection(path=str(folder)), Grid(0, 4, tensor=4))


def folder_type(folder):
    return AutoConfig.from_pretrained(folder).model_type
