"""Where the weights of a family are cut over the tensor axis: data that drives module surgery and file reading alike."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from model_parallel.grid import TopologyError, divisors

Part = Literal["heads", "key_value_heads", "width"]
"""What one fused block of a projection consists of: query heads, key/value heads, or independent columns."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model's attention."""

    heads: int
    key_value_heads: int
    head_size: int


@dataclass(frozen=True)
class Rule:
    """How the modules that match a glob are cut; ``parts`` are the fused blocks along the cut dimension, in order."""

    modules: str
    cut: Literal["columns", "rows", "vocabulary", "whole"]
    parts: tuple[Part, ...] = ("width",)
    transposed: bool = False
    """The weight is [in, out]."""
    alone: bool = False
    """Of columns: the input of the module around them goes elsewhere too, so that each takes it for itself."""


def columns(modules: str, *parts: Part, transposed: bool = False, alone: bool = False) -> Rule:
    """Linear layers whose outputs are shared out; ``parts`` default to one block of width."""
    return Rule(modules, "columns", parts or ("width",), transposed, alone)


def rows(modules: str, *parts: Part, transposed: bool = False) -> Rule:
    """Linear layers whose inputs are shared out; their bias stays whole."""
    return Rule(modules, "rows", parts or ("width",), transposed)


def vocabulary(modules: str) -> Rule:
    """Embeddings whose rows are shared out, as evenly as they go."""
    return Rule(modules, "vocabulary")


def whole(modules: str) -> Rule:
    """Layers that every tensor rank keeps whole."""
    return Rule(modules, "whole")


@dataclass(frozen=True)
class Plan:
    """The rules of a family, one at most for a module; in their globs, a star stays between two dots.

    ``divided``: globs of modules, each with the integer attributes that shrink with the cut. ``vectors``: globs of parameters
    that are no layer's weight or bias and are shared out as its columns are. ``enters``: modules whose outputs are the inputs of
    column-parallel layers elsewhere, and of nothing else.
    """

    rules: tuple[Rule, ...]
    divided: tuple[tuple[str, tuple[str, ...]], ...] = ()
    vectors: tuple[str, ...] = ()
    enters: tuple[str, ...] = ()

    def rule(self, module: str) -> Rule | None:
        """The one rule of a module name."""
        found = [rule for rule in self.rules if matches(module, rule.modules)]
        assert len(found) < 2, f"{module} matches several rules: {found}"
        return found[0] if found else None


def matches(module: str, glob: str) -> bool:
    """Whether a dotted module name matches a dotted glob, name by name."""
    names, globs = module.split("."), glob.split(".")
    return len(names) == len(globs) and all(map(fnmatchcase, names, globs))


Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of indices along a cut dimension, in order."""


def check_heads(sizes: Sizes, tensor: int, where: str) -> None:
    """Raise :class:`TopologyError` unless ``tensor`` ranks can share the heads of the model called ``where``."""
    fitting = [n for n in divisors(sizes.heads) if _heads_fit(sizes.key_value_heads, n)]
    if tensor not in fitting:
        kind = "heads" if sizes.heads % tensor else "key/value heads"
        number = sizes.heads if sizes.heads % tensor else sizes.key_value_heads
        choices = ", ".join(map(str, fitting))
        raise TopologyError(
            f"parallel.tensor={tensor} does not divide the {number} {kind} of {where}; choose one of {choices}"
        )


def _heads_fit(key_value_heads: int, tensor: int) -> bool:
    return key_value_heads % tensor == 0 or tensor % key_value_heads == 0


def head_range(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """The heads of a rank. Fewer heads than ranks: neighbouring ranks keep the same one."""
    if count >= ranks:
        return rank * count // ranks, (rank + 1) * count // ranks
    return rank * count // ranks, rank * count // ranks + 1


def vocabulary_range(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """The tokens of a rank, as many as any other has or one less."""
    return rank * size // ranks, (rank + 1) * size // ranks


def cut_ranges(rule: Rule, length: int, sizes: Sizes, rank: int, ranks: int, where: str) -> Ranges:
    """What ``rank`` keeps of a dimension of ``length``: one range for each part. Raises :class:`TopologyError`."""
    if rule.cut == "vocabulary":
        return (vocabulary_range(length, rank, ranks),)
    counts = {"heads": sizes.heads, "key_value_heads": sizes.key_value_heads}
    named = sum(counts[part] * sizes.head_size for part in rule.parts if part != "width")
    widths = rule.parts.count("width")
    width = (length - named) // widths if widths else 0
    assert named + width * widths == length, f"{where}: {length} is not the sum of {rule.parts}"
    kept, start = [], 0
    for part in rule.parts:
        if part == "width":
            if width % ranks:
                raise TopologyError(
                    f"parallel.tensor={ranks} does not divide the width {width} of {where};"
                    f" choose a divisor of it, such as {max(n for n in divisors(ranks) if width % n == 0)}"
                )
            kept.append((start + rank * width // ranks, start + (rank + 1) * width // ranks))
            start += width
            continue
        first, last = head_range(counts[part], rank, ranks)
        kept.append((start + first * sizes.head_size, start + last * sizes.head_size))
        start += counts[part] * sizes.head_size
    return tuple(kept)
