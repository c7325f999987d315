"""Where trained deltas of the backbone's bias and norm vectors act: every token gets those of its own row's member.

A linear layer stays one product for all members, and y + db follows it, by members' tokens. A norm runs with w + dw and
b + db in the place of its own vectors, member after member, so that whatever a family's norm computes is exact.
Nothing of the model changes before the first forward that brings deltas.

Shape letters: T tokens of a batch end to end, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model_parallel.apply import Cut
from model_parallel.grid import Grid
from model_parallel.plan import Ranges, matches
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.rows import PackedRows

Kind = Literal["biases", "norms"]
"""Biases of linear layers; weights and biases of norms."""


@dataclass(frozen=True)
class Vector:
    """A frozen bias or norm vector."""

    kind: Kind
    layer: int | None
    """None: it stands before or behind all layers."""
    length: int
    """Over all tensor ranks."""
    ranges: Ranges | None
    """What this tensor rank has of it; None: all."""
    is_split: bool
    """Whether each tensor rank sees a part of its gradient, which then has to be summed over them."""


class Deltas:
    """The bias and norm vectors of a backbone, and what is added to them in the forward at work."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        shapes: Mapping[str, tuple[int, ...]],
        cuts: Mapping[str, Cut],
        grid: Grid,
    ) -> None:
        """``model`` is cut already; ``shapes`` are those of its whole tensors, by name."""
        self._model, self._tensor_rank = model, grid.tensor_rank
        self._is_open = False
        self._rows: PackedRows | None = None
        self.vectors: dict[str, Vector] = {}
        """By the backbone's own names, in its order."""
        names = [name for name, _ in model.named_modules()]
        rules = {name: family.plan.rule(name) for name in names}
        shared_out = {
            name.rpartition(".")[0] for name, rule in rules.items() if rule and rule.cut == "columns" and not rule.alone
        }
        for name, module in model.named_modules():
            weight, bias = (module._parameters.get(own) for own in ("weight", "bias"))
            if weight is None or any(matches(name, glob) for glob in family.beyond_tokens):
                continue
            is_norm = len(shapes[f"{name}.weight"]) == 1
            inner = name.removeprefix(f"{family.layers}.")
            layer = None if inner == name else int(inner.partition(".")[0])
            for own in ("weight", "bias") if is_norm else ("bias",):
                if own == "weight" or bias is not None:
                    full = f"{name}.{own}"
                    cut = cuts.get(full)
                    self.vectors[full] = Vector(
                        "norms" if is_norm else "biases",
                        layer,
                        shapes[full][0],
                        None if cut is None else cut.ranges,
                        # A norm between a column-parallel and a row-parallel layer sees this rank's heads alone.
                        cut is not None or (is_norm and name.rpartition(".")[0] in shared_out),
                    )

    def share(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole deltas, by name, as this tensor rank adds them; the gradients of all ranks sum up to the whole one."""
        found = {}
        for name, delta in deltas.items():
            vector = self.vectors[name]
            if vector.ranges is not None:
                delta = torch.cat([delta[start:end] for start, end in vector.ranges])
            if self._tensor_rank > 0 and not vector.is_split and delta.requires_grad:
                # The first rank's gradient counts. Without any, this rank's backward would leave out sums over all ranks.
                delta = delta.view_as(delta)
                delta.register_hook(torch.zeros_like)
            found[name] = delta
        return found

    @contextmanager
    def of(self, rows: PackedRows) -> Iterator[None]:
        """What the rows bring acts in the forwards inside."""
        if any(rows.deltas) and not self._is_open:
            self._open()
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def checkpointing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a checkpointed layer's forward and of its recomputation, which comes when other rows may be at work."""
        return nullcontext(), nullcontext() if self._rows is None else self.of(self._rows)

    def _open(self) -> None:
        self._is_open = True
        modules = dict(self._model.named_modules())
        for name, kind in {full.rpartition(".")[0]: vector.kind for full, vector in self.vectors.items()}.items():
            module = modules[name]
            changed = self._linear if kind == "biases" else self._norm
            setattr(module, "forward", changed(name, module, module.forward))  # noqa: B010  mypy

    def _linear(self, name: str, module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        bias = f"{name}.bias"

        def with_deltas(*args: Any, **kwargs: Any) -> Tensor:
            found = forward(*args, **kwargs)
            own = self._own([bias])
            if not any(own):
                return found
            assert self._rows is not None
            outputs = found if found.dim() == 3 else found[None]  # OPT leaves out the 1
            parts = [
                (part, deltas[bias])
                for part, deltas in zip(_parts(self._rows, outputs.shape[1]), own, strict=True)
                if deltas
            ]
            added: Tensor = _Add.apply(outputs, tuple(part for part, _ in parts), *(delta for _, delta in parts))
            return added.view_as(found)

        return with_deltas

    def _norm(self, name: str, module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names = {own: f"{name}.{own}" for own in ("weight", "bias") if f"{name}.{own}" in self.vectors}

        def with_deltas(hidden: Tensor) -> Tensor:
            members = self._own(list(names.values()))
            if not any(members):
                return forward(hidden)
            assert self._rows is not None
            dim = _token_dimension(hidden, self._rows)
            parts = [part.stop - part.start for part in _parts(self._rows, hidden.shape[dim])]
            outputs = []
            for part, deltas in zip(hidden.split(parts, dim), members, strict=True):
                if not deltas:
                    outputs.append(forward(part))
                    continue
                found = {own: deltas[full] for own, full in names.items() if full in deltas}
                with _instead(module, found) as dtype:
                    # Not rounded to a half type between the norm and its vectors.
                    outputs.append(forward(part.to(torch.promote_types(part.dtype, dtype))).to(part.dtype))
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim)

        return with_deltas

    def _own(self, names: list[str]) -> list[dict[str, Tensor]]:
        """Each member's deltas of some vectors, in the order in which the members stand; {}: it has none."""
        rows = self._rows
        if rows is None or not any(rows.deltas):
            return []
        found = []
        for group in rows.by_member:
            deltas = rows.deltas[group.member] or {}
            found.append({name: deltas[name] for name in names if name in deltas})
        return found


@contextmanager
def _instead(module: nn.Module, deltas: Mapping[str, Tensor]) -> Iterator[torch.dtype]:
    """A module whose vectors are, in the type of the deltas, its own plus these; gives that type."""
    dtype = next(iter(deltas.values())).dtype
    changed = {}
    for name in ("weight", "bias"):
        vector = getattr(module, name, None)
        if vector is not None:
            changed[name] = vector.to(dtype) + deltas[name] if name in deltas else vector.to(dtype)
    # An attribute of its own hides the parameter of that name, which stays where ZeRO-3 expects it.
    vars(module).update(changed)
    try:
        yield dtype
    finally:
        for name in changed:
            del vars(module)[name]


def _parts(rows: PackedRows, count: int) -> list[slice]:
    """Each member's part of something that has an entry for every token or, where only those are left, every read one."""
    if count == rows.by_member[-1].tokens.stop:
        return [group.tokens for group in rows.by_member]
    assert rows.read is not None and count == len(rows.read), "neither all tokens nor the read ones"
    return [group.rows for group in rows.by_member]


def _token_dimension(hidden: Tensor, rows: PackedRows) -> int:
    """Of [1, T, H] or [T, H]; or of what a norm of heads sees, [1, T, heads, D] or [1, heads, T, D]."""
    if hidden.dim() < 4:
        return hidden.dim() - 2
    tokens = rows.by_member[-1].tokens.stop
    fitting = [dim for dim in (1, 2) if hidden.shape[dim] == tokens]
    # As many heads as tokens: a projection writes the heads of one token beside each other.
    return max(fitting, key=hidden.stride)


class _Add(torch.autograd.Function):
    """A delta [out] for each of some parts of the tokens, added to [1, T, out]."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, parts: tuple[slice, ...], *deltas: Tensor) -> Tensor:
        ctx.parts, ctx.dtypes = parts, [delta.dtype for delta in deltas]
        found = torch.empty_like(outputs)
        end = 0
        for part, delta in zip(parts, deltas, strict=True):
            found[:, end : part.start] = outputs[:, end : part.start]
            torch.add(outputs[:, part], delta, out=found[:, part])
            end = part.stop
        found[:, end:] = outputs[:, end:]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        needed = ctx.needs_input_grad[2:]
        sums = [
            gradient[0, part].sum(0, dtype=dtype) if is_needed else None
            for part, dtype, is_needed in zip(ctx.parts, ctx.dtypes, needed, strict=True)
        ]
        return (gradient, None, *sums)
