"""Prefixes: the reference's flat layout, reparameterisation, layers, and what a batch of several members sees of each."""

from __future__ import annotations

import pytest
import torch

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.prompt.prefix import Prefix, gather_rows

SHAPE = PrefixShape(num_layers=3, key_value_heads=2, head_size=4, hidden_size=8)
P, N, G, D = 5, SHAPE.num_layers, SHAPE.key_value_heads, SHAPE.head_size


def make_prefix(length=P, seed=1, dtype=torch.float64, **options):
    return Prefix(SHAPE, length, seed, dtype, **options)


def test_the_flat_layout_is_the_reference_one():
    """K_l[p, a, i] = flat[p, 2l*H + a*d + i] and V_l at (2l+1)*H, with H the width of all heads (Liu et al. 2022)."""
    prefix = make_prefix()
    flat, table, width = prefix.embedding, prefix.table(), G * D
    assert flat.shape == (P, N * 2 * width)
    for p in range(P):
        for layer in range(N):
            for a in range(G):
                for i in range(D):
                    assert table[p, layer, 0, a, i] == flat[p, 2 * layer * width + a * D + i]
                    assert table[p, layer, 1, a, i] == flat[p, (2 * layer + 1) * width + a * D + i]


def test_attention_gets_keys_and_values_of_the_table():
    prefix = make_prefix()
    rows = gather_rows([prefix], torch.zeros(3, dtype=torch.long))
    for layer in range(N):
        keys, values = rows.keys_values(layer, torch.float32)
        assert keys.shape == values.shape == (3, G, P, D)
        assert keys.dtype == torch.float32
        for side, found in enumerate((keys, values)):
            expected = prefix.table()[:, layer, side].transpose(0, 1).float()
            assert all(torch.equal(row, expected) for row in found)


def test_the_reparameterisation_is_linear_tanh_linear():
    """Against the two products written out; biases take part."""
    prefix = make_prefix(projection_width=6)
    with torch.no_grad():
        for parameter in prefix.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weights = dict(prefix.named_parameters())
    inner = torch.tanh(weights["embedding"] @ weights["projection.0.weight"].T + weights["projection.0.bias"])
    flat = inner @ weights["projection.2.weight"].T + weights["projection.2.bias"]
    assert weights["embedding"].shape == (P, SHAPE.hidden_size)
    assert torch.allclose(prefix.table().reshape(P, -1), flat, rtol=1e-12)


def test_the_folded_table_equals_the_module():
    module, plain = make_prefix(projection_width=6), make_prefix(seed=2)
    plain.fill(module.table())
    assert torch.equal(plain.table(), module.table())
    assert torch.equal(plain.embedding, module.table().reshape(P, -1))


def test_a_subset_of_layers_stands_in_its_places():
    prefix = make_prefix(layers=(0, 2))
    assert prefix.embedding.shape == (P, 2 * SHAPE.layer_width)
    table = prefix.table()
    flat = prefix.embedding.view(P, 2, 2, G, D)
    assert torch.equal(table[:, [0, 2]], flat)
    assert (table[:, 1] == 0).all()
    rows = gather_rows([prefix], torch.zeros(1, dtype=torch.long))
    assert rows.patterns[1] is None, "attention of that layer is left alone"
    assert rows.patterns[0] == rows.patterns[2] is not None
    other = make_prefix(layers=(0, 2), seed=9)
    other.fill(table)
    assert torch.equal(other.embedding, prefix.embedding)


@pytest.mark.parametrize("width", [None, 64])
def test_weights_start_normal_with_deviation_002_and_biases_at_zero(width):
    """torch's own Embedding would start at deviation 1."""
    prefix = Prefix(PrefixShape(12, 4, 16, 64), 40, 3, torch.float32, projection_width=width)
    for name, parameter in prefix.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert abs(parameter.mean()) < 0.002
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_start_is_a_function_of_the_seed():
    assert torch.equal(make_prefix(seed=4).embedding, make_prefix(seed=4).embedding)
    assert not torch.equal(make_prefix(seed=4).embedding, make_prefix(seed=5).embedding)
    halves = torch.equal(make_prefix(seed=4).embedding.float(), make_prefix(seed=4, dtype=torch.float32).embedding)
    assert halves, "the type rounds the same numbers"


def test_no_member_has_no_prefix_rows():
    assert gather_rows([None, None], torch.zeros(2, dtype=torch.long)) is None


def test_a_member_sees_its_own_columns_only():
    """Three members, one without prefix: zero tables and masked columns beyond a member's own length and layers."""
    prefixes = [make_prefix(2, 1), None, make_prefix(5, 3, layers=(1,))]
    member_of_row = torch.tensor([0, 2, 1, 0])
    rows = gather_rows(prefixes, member_of_row)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)[:, None, None, :].expand(
        -1, 1, 3, -1
    )
    has = {0: [[2, 2, 2], 0], 1: [[0, 0, 0], 1], 2: [[0, 5, 0], 2]}
    for layer in range(N):
        keys, values = rows.keys_values(layer, torch.float64)
        extended = rows.extend_mask(layer, mask)
        assert extended.shape == (4, 1, 3, 5 + 3)
        for row, member in enumerate(member_of_row.tolist()):
            length = has[member][0][layer]
            columns = [True] * length + [False] * (5 - length)
            assert all(extended[row, 0, q].tolist() == columns + mask[row, 0, q].tolist() for q in range(3))
            assert (keys[row, :, length:] == 0).all()
            assert (values[row, :, length:] == 0).all()
            if length:
                expected = prefixes[member].table()[:, layer, 0].transpose(0, 1)
                assert torch.equal(keys[row, :, :length], expected)


def test_an_additive_mask_is_extended_by_its_lowest_number():
    rows = gather_rows([make_prefix(2), None], torch.tensor([0, 1]))
    mask = torch.full((2, 1, 1, 3), -7.0)
    extended = rows.extend_mask(0, mask)
    lowest = torch.finfo(torch.float32).min
    assert extended[:, 0, 0].tolist() == [[0, 0, -7, -7, -7], [lowest, lowest, -7, -7, -7]]


def test_masks_of_different_layers_and_sources_are_not_mixed_up():
    """They are cached by source and pattern; a second source of equal values must not take the first one's place."""
    rows = gather_rows([make_prefix(2, layers=(0, 2)), make_prefix(1)], torch.tensor([0, 1]))
    full, causal = (
        torch.ones(2, 1, 3, 3, dtype=torch.bool),
        torch.ones(3, 3, dtype=torch.bool).tril().expand(2, 1, 3, 3),
    )
    assert rows.extend_mask(0, full) is rows.extend_mask(2, full)
    assert not torch.equal(rows.extend_mask(0, full), rows.extend_mask(1, full))
    assert torch.equal(rows.extend_mask(0, causal)[..., 2:], causal)


# ---- Dropout


def dropped(prefixes, members, keys, rates):
    members = torch.tensor(members)
    rates = torch.tensor(rates, dtype=torch.float64)
    rows = gather_rows(prefixes, members, torch.tensor(keys), rates[members])
    return [torch.stack(rows.keys_values(layer, torch.float64), 1) for layer in range(N)]


def test_dropout_of_rate_zero_changes_no_bit():
    prefix = make_prefix()
    plain = gather_rows([prefix], torch.zeros(2, dtype=torch.long))
    for layer, found in enumerate(dropped([prefix], [0, 0], [7, 8], [0.0])):
        assert torch.equal(found, torch.stack(plain.keys_values(layer, torch.float64), 1))


def test_dropout_zeroes_elements_and_scales_the_rest():
    prefix = make_prefix(40)
    layers = dropped([prefix], [0, 0], [7, 8], [0.25])
    kept = 0
    for layer, found in enumerate(layers):
        whole = prefix.table()[:, layer].permute(1, 2, 0, 3)
        for row in found:
            is_kept = row != 0
            assert torch.allclose(row[is_kept], (whole / 0.75)[is_kept], rtol=1e-12)
            kept += is_kept.double().mean().item() / 6
        assert not torch.equal(found[0] != 0, found[1] != 0), "each example has its own pattern"
    assert kept == pytest.approx(0.75, abs=0.03)
    assert not torch.equal(layers[0] != 0, layers[1] != 0), "each layer has its own pattern"


def test_dropout_does_not_depend_on_the_neighbours():
    """A longer prompt in the batch pads the table; the elements dropped stay the same."""
    short, long = make_prefix(3), make_prefix(9, seed=2)
    alone = dropped([short], [0, 0], [7, 8], [0.5])
    together = dropped([long, short], [0, 1, 0, 1], [5, 7, 6, 8], [0.1, 0.5])
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b[[1, 3], :, :, :3])
        assert (b[[1, 3], :, :, 3:] == 0).all()
