"""Weights as torch.save writes them (pytorch_model.bin): tensors alone are unpickled, once, and kept as safetensors."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_parallel.loading import WeightsError, files_of_index, why_unreadable
from prompt_tuning.backbone.stored.kept import made_once, write_tensors
from prompt_tuning.errors import UserError, reason

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_BESIDE = ("*.json", "*.txt", "*.model", "*.py")


def is_pickled(folder: Path) -> bool:
    """Whether a folder has its weights in pickles alone."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX)) and not any(folder.glob("*.safetensors"))


def converted(folder: Path, path: str) -> Path:
    """The folder with the same weights as safetensors. Raises :class:`UserError`, also for a pickle of more than tensors."""
    try:
        files = [folder / SINGLE] if (folder / SINGLE).is_file() else files_of_index(folder / INDEX)
    except WeightsError as error:
        raise UserError(f"backbone.path={path}: {error}") from None
    beside = [file for pattern in _BESIDE for file in sorted(folder.glob(pattern)) if file.name != INDEX]

    def make(target: Path) -> None:
        for file in beside:
            shutil.copyfile(file, target / file.name)
        try:
            write_tensors(target, _tensors(files))
        except UserError as error:
            raise UserError(f"backbone.path={path}: {error}") from None

    about = f"backbone.path={path}: {files[0].name}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    return made_once([*files, *beside], about, "turned into safetensors", make)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        yield from unpickled(file).items()


def _unpickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6


def unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name; nothing else in it is made, let alone run. Raises :class:`UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's version: what it holds is checked below
            content = _unpickle(file)
    except Exception as error:  # a damaged pickle raises many kinds
        # What torch says of a pickle recommends to run it.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise UserError(
                f"{file.name} holds more than tensors ({asked[1]}), which could run code, and is not read; get the weights"
                " as safetensors"
            ) from None
        says = f": {reason(error)}" if isinstance(error, RuntimeError) and "mmap" not in str(error) else ""
        raise UserError(
            f"{file.name} {why_unreadable(file)}{says}; copy it anew, or get the weights as safetensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{file.name} holds no tensors by name; get the weights as safetensors")
    return tensors
