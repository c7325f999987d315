"""Prefixes: the reference's flat layout, reparameterisation, layers, and what a batch of several members sees of each."""

from __future__ import annotations

import pytest
import torch

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.rows import Group, PackedRows
from prompt_tuning.prompt.prefix import Prefix

SHAPE = PrefixShape(num_layers=3, key_value_heads=2, head_size=4, hidden_size=8)
P, N, G, D = 5, SHAPE.num_layers, SHAPE.key_value_heads, SHAPE.head_size


def make_prefix(length=P, seed=1, dtype=torch.float64, **options):
    return Prefix(SHAPE, length, seed, dtype, **options)


def rows_of(prefixes, members, keys=None, rates=None):
    """Packed rows of one token each, of members with these prefixes; and the order in which they stand."""
    order = sorted(range(len(members)), key=lambda row: members[row])
    groups = Group.neighbours([(members[row], 1) for row in order])
    tables = tuple(None if prefix is None else prefix.by_layer() for prefix in prefixes)
    packed = PackedRows(groups, None, tables, all_heads=G)
    if keys is not None:
        packed.row_keys = torch.tensor(keys)[order]
        packed.dropout = torch.tensor(rates, dtype=torch.float64)[[members[row] for row in order]]
    return packed, order


def seen(prefixes, members, *dropout, dtype=torch.float64):
    """By layer: what each row sees, [2, G, P, D], or None."""
    packed, order = rows_of(prefixes, members, *dropout)
    found = []
    for layer in range(N):
        rows = [None] * len(members)
        for group in packed.groups:
            pair = packed.prefix(layer, group, dtype)
            for place in range(group.num_rows) if pair is not None else ():
                rows[order[group.rows.start + place]] = torch.stack([side[place] for side in pair])
        found.append(rows)
    return found


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
    for layer, rows in enumerate(seen([prefix], [0, 0, 0], dtype=torch.float32)):
        expected = prefix.table()[:, layer].permute(1, 2, 0, 3).float()
        assert all(torch.equal(row, expected) for row in rows)


def test_rows_of_one_member_share_its_table_without_a_copy():
    prefix = make_prefix()
    packed, _ = rows_of([prefix], [0] * 7)
    keys, _ = packed.prefix(1, packed.groups[0], torch.float64)
    assert keys.untyped_storage().data_ptr() == prefix.embedding.untyped_storage().data_ptr()


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
    first, second, third = (rows[0] for rows in seen([prefix], [0]))
    assert second is None, "attention of that layer is left alone"
    assert torch.equal(first, flat[:, 0].permute(1, 2, 0, 3)) and torch.equal(third, flat[:, 1].permute(1, 2, 0, 3))
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


def test_a_member_sees_its_own_prefix_only():
    """Members whose prefixes differ in length and layers, two alike, and one without prefix."""
    prefixes = [make_prefix(2, 1), None, make_prefix(5, 3, layers=(1,)), make_prefix(2, 4)]
    members = [0, 2, 1, 3, 0]
    for layer, rows in enumerate(seen(prefixes, members)):
        for member, row in zip(members, rows, strict=True):
            has = prefixes[member] is not None and (prefixes[member].layers is None or layer in prefixes[member].layers)
            assert (row is not None) == has
            if has:
                assert torch.equal(row, prefixes[member].table()[:, layer].permute(1, 2, 0, 3))


def test_gradients_of_shared_tables_go_to_their_members():
    prefixes = [make_prefix(2, 1), make_prefix(2, 4)]
    rows = seen(prefixes, [0, 1, 1])[1]
    (rows[0].sum() + 10 * rows[1].sum() + 100 * rows[2].sum()).backward()
    for prefix, expected in zip(prefixes, (1.0, 110.0), strict=True):
        gradient = prefix.embedding.grad.view(2, N, -1)
        assert (gradient[:, 1] == expected).all() and not gradient[:, [0, 2]].any()


# ---- Dropout


def dropped(prefixes, members, keys, rates):
    return [torch.stack(rows) for rows in seen(prefixes, members, keys, rates)]


def test_dropout_of_rate_zero_changes_no_bit():
    prefix = make_prefix()
    for plain, found in zip(seen([prefix], [0, 0]), dropped([prefix], [0, 0], [7, 8], [0.0]), strict=True):
        assert torch.equal(found, torch.stack(plain))


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
    """Other members in the batch, of its length and of another, change nothing of what a row drops."""
    prefixes = [make_prefix(9, seed=2), make_prefix(3), make_prefix(3, seed=5)]
    alone = dropped([prefixes[1]], [0, 0], [7, 8], [0.5])
    together = seen(prefixes, [0, 1, 2, 1], [5, 7, 6, 8], [0.1, 0.5, 0.3])
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, torch.stack([b[1], b[3]]))


def test_dropout_falls_in_the_whole_models_heads():
    """A rank that has some of the heads drops of them what one with all heads does."""
    whole, cut = rows_of([make_prefix()], [0, 0], [7, 8], [0.5])[0], rows_of([make_prefix()], [0, 0], [7, 8], [0.5])[0]
    cut.tables, cut.heads = (make_prefix().by_layer(slice(1, 2)),), slice(1, 2)
    for layer in range(N):
        for a, b in zip(*(rows.prefix(layer, rows.groups[0], torch.float64) for rows in (whole, cut)), strict=True):
            assert torch.equal(a[:, 1:2], b)
