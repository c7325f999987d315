"""From safetensors into a model on ``meta``: each rank reads the slices it keeps, and nothing else is ever allocated."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model_parallel.apply import Cut
from model_parallel.collectives import broadcast_over_data_ranks
from model_parallel.grid import Grid
from model_parallel.layers import FrozenLinear

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class WeightsError(Exception):
    """Weights that are not there, damaged, or of another model; the message says which tensor or file."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands, under which name, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    """As safetensors names it."""


def stored_tensors(folder: Path, wanted: set[str], base_prefix: str) -> dict[str, StoredTensor]:
    """Where each wanted tensor of a model stands, by the model's own name, from the files' headers alone.

    Whatever the model was saved in (with a head, wrapped, compiled) may prefix its names; of several prefixes the one with most
    wanted tensors counts, among equals ``base_prefix`` or none. Files may call a norm's tensors gamma and beta (BERT's first
    checkpoints), and the output embedding embed_out (GPT-NeoX's). Raises :class:`WeightsError`.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118  not a dict
                    _refuse_codes(stored)
                    for prefix, name in _readings(stored, wanted):
                        found.setdefault(prefix, {})[name] = _stored(file, stored, tensors.get_slice(stored))
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from None
    if not found:
        return {}
    most = max(map(len, found.values()))
    best = [prefix for prefix in (f"{base_prefix}.", "", *sorted(found)) if len(found.get(prefix, ())) == most]
    if best[0] not in (f"{base_prefix}.", "") and len(best) > 1:
        raise WeightsError(
            f"the weights hold {len(best)} such models ({', '.join(best)}); save the one that is meant by itself"
        )
    return found[best[0]]


def _readings(stored: str, wanted: set[str]) -> Iterator[tuple[str, str]]:
    """Ways to read a stored name as prefix and wanted name."""
    modern = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", stored))
    modern = re.sub(r"^embed_out\.", "lm_head.", modern)
    starts = [0, *(match.end() for match in re.finditer(r"\.", stored))]
    for name in (stored, modern) if modern != stored else (stored,):
        yield from ((stored[:start], name[start:]) for start in starts if name[start:] in wanted)


_CODES = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|nested_absmax|weight_scale|weight_scale_inv|weight_packed|W_q|codebooks)$"
)
"""Last parts of names that go with weights stored as codes: GPTQ and AWQ, bitsandbytes, FP8, compressed-tensors, HQQ, AQLM."""


def _refuse_codes(name: str) -> None:
    if _CODES.search(name):
        raise WeightsError(
            f"quantised weights ({name} is stored) cannot be trained on; give the unquantised model they were made from"
        )


def _unreadable(file: Path, error: Exception) -> WeightsError:
    why = why_unreadable(file)
    says = f"{file.name} {why}" if "Git LFS" in why else f"{file.name}: {error}; copy it anew"
    return WeightsError(f"the weights cannot be loaded: {says}")


def _stored(file: Path, name: str, piece: Any) -> StoredTensor:
    return StoredTensor(file, name, tuple(piece.get_shape()), piece.get_dtype())


_NO_LOSS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|(attn|attention)\.bias)$"
    r"|^(pooler|cls|lm_head|classifier|qa_outputs|score|predictions|seq_relationship|lm_predictions)(\.|$)"
)
"""Tensors that a base model may leave in its files: buffers that it makes itself, and heads for other uses."""


def check_all_taken(folder: Path, stored: dict[str, StoredTensor], unused: Iterable[str] = ()) -> None:
    """Raise :class:`WeightsError` where a file has tensors of the base model that it does not take.

    Such weights were trained with a part that this model lacks, so that its numbers would be others than theirs; but for
    ``unused``, patterns of what the model's own authors say that it leaves in its files.
    """
    taken = {(place.file, place.name) for place in stored.values()}
    others = []
    for file in _files(folder):
        with safe_open(file, framework="pt") as tensors:
            others += [name for name in tensors.keys() if (file, name) not in taken]  # noqa: SIM118  not a dict
    ends = Counter(
        place.name[: len(place.name) - len(name)] for name, place in stored.items() if place.name.endswith(name)
    )
    prefix = ends.most_common(1)[0][0] if ends else ""
    mine = [name for name in others if name.startswith(prefix)]
    matters = [name for name in mine if not any(re.search(pattern, name) for pattern in unused)]
    left = sorted(name for name in matters if not _NO_LOSS.search(name.removeprefix(prefix)))
    if left:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        raise WeightsError(
            f"the weights hold {len(left)} tensors that the model of config.json does not have ({names}); they were trained"
            " as another model, so give the config.json that belongs to them or another backbone"
        )


_PLAIN = {"F64", "F32", "F16", "BF16"}


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return files_of_index(folder / INDEX)
    # Some leave the index out; the names say whether all are there.
    parts = sorted(folder.glob("model-?????-of-?????.safetensors"))
    if parts and [part.name for part in parts] == [
        f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)
    ]:
        return parts
    raise WeightsError(f"no {SINGLE} there")


def files_of_index(index: Path) -> list[Path]:
    """The files that an index of tensors names, each beside it. Raises :class:`WeightsError`."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index.name} is damaged ({type(error).__name__}); copy it anew") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"{index.name} names {name!r}, which is not there; copy the whole model")
    return [index.parent / name for name in names]


def why_unreadable(file: Path) -> str:
    """What is known from its beginning of a file that cannot be read, as a phrase behind its name."""
    try:
        with file.open("rb") as opened:
            start = opened.read(40)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file itself (`git lfs pull` fetches it)"
    return "cannot be read" if start else "is empty"


def check_stored(stored: dict[str, StoredTensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise :class:`WeightsError` unless every tensor of the (uncut) model is stored in its shape."""
    for name, shape in shapes.items():
        if name in stored and stored[name].dtype not in _PLAIN:
            raise WeightsError(
                f"quantised weights ({name} is stored as {stored[name].dtype}) cannot be trained on; give the unquantised"
                " model they were made from"
            )
        if name in stored and stored[name].shape != shape:
            sizes = f"{name} is {list(stored[name].shape)}, not {list(shape)}"
            raise WeightsError(f"the weights do not fit config.json: {sizes}; get the two from one place")
    missing = sorted(set(shapes) - set(stored))
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise WeightsError(f"the weights lack {len(missing)} of the model's tensors ({names}); get the whole model")


def load_weights(
    model: nn.Module,
    stored: dict[str, StoredTensor],
    cuts: dict[str, Cut],
    grid: Grid,
    partition: Callable[[list[nn.Parameter]], None] | None = None,
    prefix: str = "",
) -> int:
    """Fill a model on ``meta`` module by module; returns the bytes that this rank requested from the files.

    The first rank of each data group reads and the others receive. ``partition`` takes each module's parameters as soon as
    they are there (ZeRO-3, which sends them itself), so that no more than one module is ever whole. ``prefix`` is what the
    stored names of this model begin with.
    """
    bytes_read = 0
    is_reader = grid.data_rank == 0
    for inner, module in model.named_modules(prefix=prefix):
        ready = []
        for name, tensor, is_parameter in list(_own_tensors(module)):
            path = f"{inner}.{name}" if inner else name
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=grid.device)
            if is_reader:
                piece, size = _read(stored[path], cuts.get(path))
                value.copy_(piece)
                bytes_read += size
            if partition is None or not is_parameter:
                broadcast_over_data_ranks(value, grid)
            if name == "weight" and isinstance(module, FrozenLinear) and module.scheme is not None:
                read = partial(_read_again, stored[path], cuts.get(path), value.dtype, grid)
                ready += module.take(value, read, is_loaded=is_reader or partition is None)
            elif is_parameter:
                parameter = nn.Parameter(value, requires_grad=tensor.requires_grad)
                setattr(module, name, parameter)
                ready.append(parameter)
            else:
                module._buffers[name] = value
        if partition is not None and ready:
            partition(ready)
    return bytes_read


def _read_again(place: StoredTensor, cut: Cut | None, dtype: torch.dtype, grid: Grid) -> Tensor:
    return _read(place, cut)[0].to(grid.device, dtype)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """A module's own parameters and saved buffers that are still on ``meta``."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_meta:
            yield name, parameter, True
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta and name not in module._non_persistent_buffers_set:
            yield name, buffer, False


def _read(place: StoredTensor, cut: Cut | None) -> tuple[Tensor, int]:
    """The kept part of a stored tensor, and the bytes requested for it."""
    try:
        with safe_open(place.file, framework="pt") as tensors:
            if cut is None:
                tensor = tensors.get_tensor(place.name)
            else:
                source = tensors.get_slice(place.name)
                leading = (slice(None),) * cut.dimension
                places = [(*leading, slice(start, end)) for start, end in cut.ranges]
                pieces = [source[kept] for kept in places]
                tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, cut.dimension)
    except (SafetensorError, OSError) as error:
        raise _unreadable(place.file, error) from None
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(
            f"the weights are damaged: {place.name} in {place.file.name} holds NaN or infinity; copy it anew"
        )
    return tensor, tensor.numel() * tensor.element_size()
