"""Contract of every backbone family: a row sees the biases and norms of its own member, as if they were the backbone's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.backbone.deltas import Deltas
from prompt_tuning.backbone.families import families
from prompt_tuning.errors import UserError
from prompt_tuning.forward.run import hidden_states, member_logits
from prompt_tuning.prompt.beside import build_beside
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prompt import Prompt
from tests.contracts.test_families import assert_equal, make_batch, make_prompt, open_backbone, ramp_loss
from tests.contracts.test_sharding import ROUNDED, folder_type
from tests.support.packed import text_rows
from tests.support.ranks import run_ranks
from tests.support.tiny import make_backbone
from tests.support.topologies import exact_norms, open_sharded

FAMILIES = sorted(name for name, family in families().items() if not family.sites)
"""But encoder-decoders, whose contract is tests/unit/test_encoder_decoders.py."""
MEMBERS = [0, 1, 2, 0, 1, 2, 2]
LENGTHS = (3, 7, 7, 3, 5, 3, 7)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp(request.param), request.param)


def with_deltas(prompt, backbone, also, layers=None, seed=0):
    """The prompt with deltas large enough to matter."""
    prompt.beside = build_beside(also, layers, backbone.deltas, backbone.prompt_dtype, backbone.path)
    torch.manual_seed(seed)
    with torch.no_grad():
        prompt.beside.delta.normal_(0, 0.3)
    return prompt


def kinds(backbone):
    return sorted({vector.kind for vector in backbone.deltas.vectors.values()})


def three_prompts(backbone):
    """Prefix and deltas of all kinds, a prefix alone, and deltas of the second layer's norms (of all, where all depths share
    them) alone."""
    second = [1] if any(vector.layer == 1 for vector in backbone.deltas.vectors.values()) else None
    head = Head(backbone.shape.hidden_size, 2, "first", 0, backbone.prompt_dtype)
    return [
        with_deltas(make_prompt(backbone, 5, 1), backbone, kinds(backbone)),
        make_prompt(backbone, 2, 2),
        with_deltas(Prompt(head), backbone, ["norms"], second, 1),
    ]


def changed_backbone(folder, prompt):
    """The backbone with its vectors really changed, and those, which have gradients."""
    backbone = open_backbone(folder, trainable=True)
    exact_norms(backbone.model)
    deltas = {} if prompt.beside is None else prompt.beside.vectors()
    vectors = [backbone.model.get_parameter(name) for name in deltas]
    for vector, delta in zip(vectors, deltas.values(), strict=True):
        vector.data += delta.detach()
    return backbone, vectors


def test_each_row_sees_the_vectors_of_its_own_member(folder):
    """Forward and gradients of a fleet of three, against backbones whose own vectors are others, one row at a time."""
    backbone = open_backbone(folder)
    exact_norms(backbone.model)
    prompts = three_prompts(backbone)
    batch = make_batch(prompts, LENGTHS, MEMBERS)
    hidden = hidden_states(backbone, prompts, batch)
    texts = text_rows(hidden, batch)
    trained = [p.beside.delta if p.beside else None for p in prompts]
    prefixes = [p.prefix.embedding for p in prompts[:2]]
    wanted = [*prefixes, trained[0], trained[2]]
    found = torch.autograd.grad(ramp_loss(hidden, batch), wanted)
    totals = [torch.zeros_like(tensor) for tensor in wanted]
    for member, prompt in enumerate(prompts):
        changed, vectors = changed_backbone(folder, prompt)
        plain = Prompt(prompt.head, prompt.prefix)
        own = [vectors, [prompt.prefix.embedding] if prompt.prefix else []]
        for row in (row for row, other in enumerate(MEMBERS) if other == member):
            alone = make_batch(prompts, LENGTHS, MEMBERS, only=row)
            expected = hidden_states(changed, [plain], alone)
            place = int((batch.examples == row).nonzero())
            assert_equal([texts[place, : LENGTHS[row]]], [expected], 1e-10)
            gradients = torch.autograd.grad(ramp_loss(expected, alone), own[0] + own[1], materialize_grads=True)
            if prompt.prefix is not None:
                totals[member] += gradients[-1]
            if vectors:
                totals[2 if member == 0 else 3] += torch.cat(gradients[: len(vectors)])
    pieces = [
        piece
        for side in (found, totals)
        for place, tensor in enumerate(side)
        for piece in (tensor.split(list(prompts[(place - 2) * 2].beside.lengths.values())) if place > 1 else [tensor])
    ]
    half = len(pieces) // 2
    for ours, theirs in zip(pieces[:half], pieces[half:], strict=True):
        assert (ours - theirs).norm() <= 1e-10 * max(theirs.norm(), 1e-3)
    assert sum(piece.norm() > 1e-3 for piece in pieces[half:]) > half / 2


def test_deltas_of_zero_change_nothing(folder):
    backbone = open_backbone(folder)
    exact_norms(backbone.model)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt])
    plain = hidden_states(backbone, [prompt], batch)
    with torch.no_grad():
        with_deltas(prompt, backbone, kinds(backbone)).beside.delta.zero_()
    assert_equal([hidden_states(backbone, [prompt], batch)], [plain], 1e-12)


@pytest.mark.parametrize("only_read", [False, True])
def test_checkpointing_gives_deltas_the_same_bits(folder, only_read):
    results = []
    for checkpointing in (False, True):
        backbone = open_backbone(folder, "float32", activation_checkpointing=checkpointing)
        prompts = three_prompts(backbone)
        batch = make_batch(prompts, LENGTHS, MEMBERS, only_read=only_read)
        hidden = hidden_states(backbone, prompts, batch)
        # Another batch beside it, whose forward comes between: each backward must know its own.
        hidden_states(backbone, prompts[1:2], make_batch(prompts[1:2], (5, 2), only_read=True))
        ramp_loss(hidden, batch).backward()
        results.append(
            [hidden.detach(), *(p.grad for prompt in prompts for _, p in prompt.trained() if p.grad is not None)]
        )
    assert len(results[0]) == 5
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_deltas_where_the_last_layer_sees_read_tokens_alone(folder):
    backbone, results = open_backbone(folder), []
    for only_read in (False, True):
        prompts = three_prompts(backbone)
        prompts[1].head.pooling = "last"
        batch = make_batch(prompts, LENGTHS, MEMBERS, only_read=only_read)
        assert (batch.read is not None) == only_read
        logits = torch.cat([found.flatten() for found in member_logits(backbone, prompts, batch)])
        (logits * torch.linspace(-1, 1, len(logits))).sum().backward()
        results.append([logits.detach(), prompts[0].beside.delta.grad, prompts[2].beside.delta.grad])
    assert_equal(results[1], results[0], 1e-10)


def test_one_members_nan_deltas_reach_no_other(folder):
    backbone = open_backbone(folder)
    prompts = three_prompts(backbone)
    with torch.no_grad():
        prompts[0].beside.delta.fill_(float("nan"))
    batch = make_batch(prompts, LENGTHS, MEMBERS)
    hidden = hidden_states(backbone, prompts, batch)
    rows = batch.member_of_row == 0
    assert text_rows(hidden, batch)[~rows].isfinite().all()
    ramp_loss(hidden, batch).backward()
    assert prompts[2].beside.delta.grad.isfinite().all()
    assert not prompts[0].beside.delta.grad.isfinite().all()


def test_bfloat16_deltas_follow_float32(folder):
    gradients = []
    for dtype in ("float32", "bfloat16"):
        backbone = open_backbone(folder, dtype)
        prompt = with_deltas(make_prompt(backbone), backbone, kinds(backbone))
        batch = make_batch([prompt])
        hidden = hidden_states(backbone, [prompt], batch)
        assert hidden.dtype == getattr(torch, dtype)
        ramp_loss(hidden, batch).backward()
        gradients.append(prompt.beside.delta.grad)
    assert gradients[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.97


def test_a_plain_forward_behind_one_with_deltas_is_the_backbones_own(folder):
    backbone = open_backbone(folder)
    plain = make_prompt(backbone)
    batch = make_batch([plain])
    before = hidden_states(backbone, [plain], batch)
    hidden_states(backbone, three_prompts(backbone), make_batch(three_prompts(backbone), LENGTHS, MEMBERS))
    assert torch.equal(hidden_states(backbone, [plain], batch), before)


def sharded_pass(grid, folder, tensor, zero, checkpointing):
    """Hidden states and the deltas' gradients over all ranks, each of which runs all rows."""
    from model_parallel.collectives import sum_gradients

    backbone = open_sharded(folder, grid, tensor, zero, activation_checkpointing=checkpointing)
    prompts = three_prompts(backbone)
    batch = make_batch(prompts, LENGTHS, MEMBERS)
    with backbone.at_work():
        hidden = hidden_states(backbone, prompts, batch, from_input=zero)
        (ramp_loss(hidden, batch) / backbone.grid.data).backward()
    named = [(name, p) for prompt in prompts for name, p in prompt.trained() if not name.startswith("head.")]
    split = [p for name, p in named if Prompt.is_split(name)]
    sum_gradients(split, [], backbone.grid)
    pieces = [p.grad for p in split[:1]]
    for prompt in (prompts[0], prompts[2]):
        pieces += prompt.beside.delta.grad.split(list(prompt.beside.lengths.values()))
    return [hidden.detach()[batch.tokens], *pieces]


def sharded_passes(grid, folder, topologies):
    return {case: sharded_pass(grid, folder, *case) for case in topologies}


def test_every_topology_gives_deltas_the_same_numbers(folder):
    """Tensor 4 has more ranks than the decoders have key/value heads."""
    cases = [(4, False, False), (2, True, True)]
    bound = 1e-6 if folder_type(folder) in ROUNDED else 1e-10
    (alone,) = run_ranks(1, sharded_passes, folder, [(1, False, False)])
    expected = alone[1, False, False]
    for rank in run_ranks(4, sharded_passes, folder, cases):
        for case in cases:
            for ours, theirs in zip(rank[case], expected, strict=True):
                assert (ours - theirs).norm() <= bound * max(theirs.norm(), 1e-3), case


def test_a_backbone_without_biases_is_told_so(tmp_path):
    backbone = open_backbone(make_backbone(tmp_path, "mistral"))
    with pytest.raises(
        UserError, match=r"train.also=\['biases', 'norms'\]: .* has no biases to train; set it to \['norms'\]"
    ):
        build_beside(["biases", "norms"], None, backbone.deltas, torch.float32, backbone.path)


def test_vectors_of_what_sees_more_than_tokens_are_left_alone(tmp_path):
    backbone = open_backbone(make_backbone(tmp_path, "bert"))
    family = replace(backbone.family, beyond_tokens=("encoder.layer.*.attention.self.key", "embeddings.LayerNorm"))
    shapes = {name: tuple(parameter.shape) for name, parameter in backbone.model.named_parameters()}
    left = set(backbone.deltas.vectors) - set(Deltas(backbone.model, family, shapes, {}, Grid()).vectors)
    keys = {f"encoder.layer.{i}.attention.self.key.bias" for i in range(3)}
    assert left == keys | {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
