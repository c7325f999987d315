"""Prefixes: the trained keys and values of one prompt, as they are kept and as attention takes them.

Shape letters: P prompt tokens, N layers, G key/value heads, D head size, H hidden size.
A table is [P, N, 2, G, D]: row p holds, layer by layer, the key and then the value of prompt token p, which is the flat
layout of P-tuning v2 (Liu et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.rows import Table

INIT_STD = 0.02


class Prefix(nn.Module):
    """Trained keys and values of ``length`` prompt tokens.

    Without reparameterisation ``embedding`` is the table itself, [P, layers * 2 * G * D]. With it, ``embedding`` is [P, H]
    and the table is Linear(tanh(Linear(embedding))) (Li and Liang 2021, section 4.3). All weights start as N(0, 0.02),
    biases as 0. ``layers`` restricts the prefix to some layers; the others attend to the text alone.

    ``relative``: the table is ``embedding`` times ``scale`` [layers, 2, 1, 1], a number for the keys and one for the values of
    each layer that is never trained. With the backbone's own root mean square there (see
    :func:`prompt_tuning.prompt.initialise.measure_scale`), AdamW, whose steps are about as large as its rate, changes a table
    by that share of what the backbone itself has.

    ``frozen``: so many first rows stand apart in ``first`` and are never trained; ``embedding`` has the others. ``seed`` None: nothing
    is drawn, and whoever asks fills it.
    """

    def __init__(
        self,
        shape: PrefixShape,
        length: int,
        seed: int | None,
        dtype: torch.dtype,
        layers: tuple[int, ...] | None = None,
        projection_width: int | None = None,
        relative: bool = False,
        frozen: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.length, self.layers = shape, length, layers
        width = shape.layer_width * (shape.num_layers if layers is None else len(layers))

        def draw(name: str, *size: int) -> nn.Parameter:
            if seed is None:
                return nn.Parameter(torch.empty(size, dtype=dtype))
            return nn.Parameter(rng.normal(rng.key(seed, "init", name), *size, std=INIT_STD).to(dtype))

        scale = torch.ones(shape.num_layers if layers is None else len(layers), 2, 1, 1, dtype=dtype)
        self.scale = nn.Parameter(scale, requires_grad=False) if relative else None
        self.first: nn.Parameter | None = None
        self.projection: nn.Sequential | None = None
        if projection_width is None:
            whole = draw("prefix.embedding", length, width).data
            self.embedding = nn.Parameter(whole[frozen:].clone())
            if frozen:
                self.first = nn.Parameter(whole[:frozen].clone(), requires_grad=False)
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

    def own_table(self) -> Tensor:
        """Keys and values [P, layers that it reaches, 2, G, D]; differentiable."""
        flat: Tensor = self.embedding if self.projection is None else self.projection(self.embedding)
        if self.first is not None:
            flat = torch.cat([self.first, flat])
        table = flat.view(self.length, -1, 2, self.shape.key_value_heads, self.shape.head_size)
        return table if self.scale is None else table * self.scale

    def table(self) -> Tensor:
        """Keys and values [P, N, 2, G, D] of all layers, zero where it does not reach; differentiable."""
        table = self.own_table()
        if self.layers is None:
            return table
        index = torch.tensor(self.layers, device=table.device)
        return table.new_zeros(self.length, self.shape.num_layers, *table.shape[2:]).index_copy(1, index, table)

    @torch.no_grad()
    def fill(self, table: Tensor) -> None:
        """Set the plain table from keys and values [P, N, 2, G, D]."""
        if self.layers is not None:
            table = table[:, list(self.layers)]
        if self.scale is not None:
            table = table / self.scale
        flat = table.reshape(self.length, -1)
        if self.first is not None:
            self.first.copy_(flat[: len(self.first)])
        self.embedding.copy_(flat[self.length - len(self.embedding) :])

    def by_layer(self, heads: slice = slice(None)) -> Table:
        """What attention takes; ``heads`` are the key/value heads that this rank's attention has."""
        table = self.own_table()
        if heads != slice(None):
            table = table[:, :, :, heads]
        # Unbound at once: indexing layer by layer would fill a gradient of the whole table for every layer.
        found = iter(table.unbind(1))
        reached = range(self.shape.num_layers) if self.layers is None else self.layers
        return tuple(next(found) if layer in reached else None for layer in range(self.shape.num_layers))
