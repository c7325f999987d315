"""Prefixes: the trained keys and values of one prompt, and the rows of a batch that carry them into attention.

Shape letters: R rows of a batch, M prompts, P prompt tokens, N layers, G key/value heads, D head size, H hidden size.
A table is [P, N, 2, G, D]: row p holds, layer by layer, the key and then the value of prompt token p, which is the flat
layout of P-tuning v2 (Liu et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.attention import PrefixRows, PrefixShape

INIT_STD = 0.02


class Prefix(nn.Module):
    """Trained keys and values of ``length`` prompt tokens.

    Without reparameterisation ``embedding`` is the table itself, [P, layers * 2 * G * D]. With it, ``embedding`` is [P, H]
    and the table is Linear(tanh(Linear(embedding))) (Li and Liang 2021, section 4.3). All weights start as N(0, 0.02),
    biases as 0. ``layers`` restricts the prefix to some layers; the others' table entries are zero and masked out.
    """

    def __init__(
        self,
        shape: PrefixShape,
        length: int,
        seed: int,
        dtype: torch.dtype,
        layers: tuple[int, ...] | None = None,
        projection_width: int | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.length, self.layers = shape, length, layers
        width = shape.layer_width * (shape.num_layers if layers is None else len(layers))

        def draw(name: str, *size: int) -> nn.Parameter:
            return nn.Parameter(rng.normal(rng.key(seed, "init", name), *size, std=INIT_STD).to(dtype))

        self.projection: nn.Sequential | None = None
        if projection_width is None:
            self.embedding = draw("prefix.embedding", length, width)
        else:
            self.embedding = draw("prefix.embedding", length, shape.hidden_size)
            self.projection = nn.Sequential(
                nn.Linear(shape.hidden_size, projection_width, dtype=dtype),
                nn.Tanh(),
                nn.Linear(projection_width, width, dtype=dtype),
            )
            for name, parameter in self.projection.named_parameters():
                parameter.data = (
                    draw(f"prefix.projection.{name}", *parameter.shape).data
                    if name.endswith("weight")
                    else torch.zeros_like(parameter)
                )

    def table(self) -> Tensor:
        """Keys and values [P, N, 2, G, D]; differentiable."""
        flat = self.embedding if self.projection is None else self.projection(self.embedding)
        shape = self.shape
        table = flat.view(self.length, -1, 2, shape.key_value_heads, shape.head_size)
        if self.layers is None:
            return table
        index = torch.tensor(self.layers, device=table.device)
        return table.new_zeros(self.length, shape.num_layers, *table.shape[2:]).index_copy(1, index, table)

    @torch.no_grad()
    def fill(self, table: Tensor) -> None:
        """Set the plain table from keys and values [P, N, 2, G, D]."""
        if self.layers is not None:
            table = table[:, list(self.layers)]
        self.embedding.copy_(table.reshape(self.length, -1))


def gather_rows(
    prefixes: list[Prefix | None],
    member_of_row: Tensor,
    row_keys: Tensor | None = None,
    dropout: Tensor | None = None,
    heads: slice = slice(None),
) -> PrefixRows | None:
    """The prefixes of a batch's rows; ``None`` where no member has one.

    ``prefixes`` are those of the members that ``member_of_row`` [R] counts; None: a member without prefix.
    ``heads`` are the key/value heads that this rank's attention has.
    """
    present_prefixes = [prefix for prefix in prefixes if prefix is not None]
    if not present_prefixes:
        return None
    shape, longest = present_prefixes[0].shape, max(prefix.length for prefix in present_prefixes)
    device = member_of_row.device
    whole, has_columns = [], []
    for prefix in prefixes:
        if prefix is None:
            dtype = present_prefixes[0].embedding.dtype
            size = (longest, shape.num_layers, 2, shape.key_value_heads, shape.head_size)
            whole.append(torch.zeros(size, dtype=dtype, device=device))
            has_columns.append([[False] * longest] * shape.num_layers)
            continue
        table = prefix.table()
        missing = longest - prefix.length
        whole.append(nn.functional.pad(table, (0, 0) * 4 + (0, missing)) if missing else table)
        layers = set(range(shape.num_layers) if prefix.layers is None else prefix.layers)
        column = [True] * prefix.length + [False] * missing
        has_columns.append([column if n in layers else [False] * longest for n in range(shape.num_layers)])
    patterns: dict[str, int] = {}
    layer_patterns: list[int | None] = []
    for layer in range(shape.num_layers):
        columns = [member[layer] for member in has_columns]
        filled = any(any(column) for column in columns)
        layer_patterns.append(patterns.setdefault(repr(columns), layer) if filled else None)
    stacked = whole[0][None] if len(whole) == 1 else torch.stack(whole)
    present = torch.tensor(has_columns, device=device)
    # Unbound at once: indexing layer by layer would fill a gradient of the whole table for every layer.
    tables = stacked[:, :, :, :, heads].unbind(2)
    patterns_of_layers = tuple(layer_patterns)
    return PrefixRows(
        tables, present, patterns_of_layers, member_of_row, row_keys, dropout, heads, shape.key_value_heads
    )
