"""Backbones made from other forms: once, by one process of a host, found by content by its other ranks and later starts.

An entry is a folder that transformers can read too, named by the content of what it was made from. It can be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model_parallel.loading import INDEX, SINGLE
from prompt_tuning.errors import UserError, reason
from prompt_tuning.storage.atomic import alone, new_folder, sha256, write_json
from prompt_tuning.storage.digests import content_digest, user_cache

logger = logging.getLogger(__name__)

_FORM = 1
"""To be raised when what is written changes, so that entries of earlier versions are made anew."""
_LIST = "made.json"
_SHARD = 2 * 1024**3
"""Bytes from which on another file is begun, so that no more than about these are in memory."""


def made_once(sources: Sequence[Path], about: str, done: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` fills from these files, filled now or before. Raises :class:`UserError`.

    ``about`` begins sentences, as "backbone.path=...: x.gguf"; ``done`` is what happens to it, as "dequantised".
    """
    home = user_cache()
    if home is None:
        raise UserError(f"{about} is {done} into the user's cache, but this user has no home; set HOME")
    marks = {
        "form": _FORM,
        "transformers": importlib.metadata.version("transformers"),
        "sources": [[file.name, content_digest(file)] for file in sources],
    }
    entry = home / "backbones" / hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:32]
    if _problem(entry) is None:
        return entry
    logger.info("%s is %s once, into %s", about, done, entry)
    try:
        with alone(entry):
            problem = _problem(entry)  # another process may have made it meanwhile
            if problem is not None:
                if entry.exists():
                    logger.warning("%s %s, and is made anew", entry, problem)
                with new_folder(entry) as folder:
                    make(folder)
                    write_json(folder / _LIST, {file.name: sha256(file) for file in sorted(folder.iterdir())})
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise UserError(
            f"{about} is {done} into {entry.parent}, where nothing can be written: {why}; make room there"
        ) from None
    return entry


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors as they come, in files of bounded size, with an index where there are several."""
    where: dict[str, str] = {}
    files = 0
    shard: dict[str, Tensor] = {}

    def end_shard() -> None:
        nonlocal files, shard
        files += 1
        file = f"model-{files:05}.safetensors"
        # transformers asks for the format; more than one key would be written in random order.
        save_file(shard, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        shard = {}

    for name, tensor in tensors:
        # A copy: safetensors refuses tensors that share memory, as tied ones do.
        shard[name] = tensor.contiguous().clone()
        if sum(held.nbytes for held in shard.values()) >= _SHARD:
            end_shard()
    if shard or not files:
        end_shard()
    if files == 1:
        (folder / "model-00001.safetensors").rename(folder / SINGLE)
    else:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": where})


def _problem(entry: Path) -> str | None:
    """Why an entry cannot be used; None: it is as it was written."""
    if not entry.exists():
        return "is not there"
    try:
        listed = json.loads((entry / _LIST).read_text(encoding="utf-8"))
        changed = sorted(name for name, digest in listed.items() if content_digest(entry / name) != digest)
        return f"is damaged: {changed[0]} has changed" if changed else None
    except FileNotFoundError as error:
        return f"is damaged: {Path(error.filename).name} is not there"
    except (OSError, ValueError, AttributeError) as error:
        return f"is damaged: {reason(error)}"
