"""The prompts that are served, by name, and the folders that they may come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.prompt.export import ExportedPrompt, load_prompt, name_of
from prompt_tuning.prompt.hub import repository_of
from prompt_tuning.serve.limits import Refusal
from prompt_tuning.serve.shelf import Shelf, check_fits
from prompt_tuning.tasks.types import WRITTEN

NAME = re.compile(r"[A-Za-z0-9_=+][A-Za-z0-9_.=+-]{0,199}")  # what members of a run may be called
_MANIFEST = "prompt.json"


def find_prompts(folders: Sequence[Path]) -> dict[str, Path]:
    """Prompt folders by name, in and below some folders; a folder `prompt`, as in a run, is called like the one it is in.

    Raises :class:`UserError` for a folder without prompts and for names that are none or that two prompts share.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give a prompt's, or one with prompts in it, such as a run's")
        is_copy = repository_of(folder) is not None  # of what was asked for on the hub, and perhaps more
        own = sorted(path.parent for path in folder.glob(_MANIFEST if is_copy else f"**/{_MANIFEST}"))
        if not own:
            raise UserError(
                f"{folder}: no {_MANIFEST} in it or below; give a prompt's folder, or one with prompts in it"
            )
        for path in own:
            name = name_of(path.resolve())
            if NAME.fullmatch(name) is None:
                raise UserError(f"{path}: {name!r} is no name to serve a prompt by; rename its folder to {_NAME_RULE}")
            if name in found and found[name].resolve() != path.resolve():
                raise UserError(f"{found[name]} and {path} are both called {name!r}; serve one of them, or rename one")
            found[name] = path
    return found


_NAME_RULE = "200 letters, digits, `_`, `=`, `+`, `.` and `-` at most, neither `.` nor `-` first"


class Store:
    """Names of the prompts that a model carries. All that changes them runs in the model's thread."""

    def __init__(self, model: AttachedPrompts, names: Sequence[str], folders: Sequence[Path], shelf: Shelf) -> None:
        self.model, self.shelf, self.folders = model, shelf, [folder.resolve() for folder in folders]
        for name, exported in zip(names, model.prompts, strict=True):
            check_fits(name, exported, shelf.budget)
            shelf.put(name, exported)
        self.places: Mapping[str, int] = {name: place for place, name in enumerate(names)}
        """Replaced as a whole, so that other threads may read it."""
        self.prompts: Mapping[str, ExportedPrompt] = dict(zip(names, model.prompts, strict=True))
        """Likewise."""
        self._described = {name: _describe(model, place) for name, place in self.places.items()}

    def place(self, name: str) -> int:
        """Where the model has a prompt. Raises :class:`Refusal`."""
        if name not in self.places:
            raise _unknown(name)
        return self.places[name]

    def find(self, name: str) -> ExportedPrompt:
        """A prompt by its name. Raises :class:`Refusal`."""
        if name not in self.prompts:
            raise _unknown(name)
        return self.prompts[name]

    def described(self) -> list[dict[str, Any]]:
        """What clients need to know of each prompt."""
        described = self._described
        return [{"name": name, **own} for name, own in described.items()]

    def writers(self) -> list[str]:
        """Names of the prompts that write texts."""
        return [name for name, own in self._described.items() if own["kind"] in WRITTEN]

    def locate(self, folder: str) -> Path:
        """A prompt's folder, given relative to one of the allowed ones. Raises :class:`Refusal`: never a path outside."""
        if "\0" in folder or Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise Refusal(400, f"`folder` is {folder[:128]!r}; give a path below a folder that is served, without `..`")
        for root in self.folders:
            try:
                path = (root / folder).resolve()
                files = [(path / name).resolve() for name in (_MANIFEST, "prompt.safetensors")]  # both may be links
                if all(file.is_relative_to(root) for file in files) and files[0].is_file():
                    return path
            except (OSError, ValueError, RuntimeError):  # too long, a loop of links, half a surrogate pair
                continue
        raise Refusal(404, f"no prompt in {folder[:128]!r} below the folders that are served")

    def read(self, folder: str) -> ExportedPrompt:
        """The prompt in a folder. Raises :class:`Refusal` and :class:`UserError`."""
        path = self.locate(folder)
        try:
            exported = load_prompt(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), folder[:128])) from None
        if self.shelf.budget is not None:
            exported.prompt.to("meta")  # at once: many may wait for the model's thread
        return exported

    def check_new(self, name: str) -> None:
        """Raise :class:`Refusal` unless a prompt may get a name."""
        if NAME.fullmatch(name) is None:
            raise Refusal(400, f"{name[:200]!r} is no name; give {_NAME_RULE}")
        if name in self.places:
            raise Refusal(409, f"there is a prompt {name!r}; remove it first, or give another name")

    def add(self, name: str, exported: ExportedPrompt, shown: str) -> dict[str, Any]:
        """Serve one more prompt; what clients need to know of it. Raises :class:`Refusal` and :class:`UserError`."""
        self.check_new(name)
        check_fits(name, exported, self.shelf.budget)
        try:
            self.model.add(exported)
        except UserError as error:
            raise UserError(str(error).replace(str(exported.folder), shown[:128])) from None
        self.shelf.put(name, exported)
        place = len(self.model.prompts) - 1
        self._described = {**self._described, name: _describe(self.model, place)}
        self.prompts = {**self.prompts, name: exported}
        self.places = {**self.places, name: place}
        return {"name": name, **self._described[name]}

    def remove(self, name: str) -> str:
        """Serve a prompt no longer; its name. Raises :class:`Refusal`."""
        place = self.place(name)
        self.model.remove(place)
        self.shelf.drop(name)
        self.places = {other: at - (at > place) for other, at in self.places.items() if other != name}
        self.prompts = {other: own for other, own in self.prompts.items() if other != name}
        self._described = {other: own for other, own in self._described.items() if other != name}
        return name


def _unknown(name: str) -> Refusal:
    return Refusal(404, f"no prompt {name[:200]!r} here; `GET /prompts` lists them")


def _describe(model: AttachedPrompts, place: int) -> dict[str, Any]:
    task, exported = model.tasks[place], model.prompts[place]
    return {
        "task": task.name,
        "kind": task.kind,
        "columns": list(task.columns),
        "labels": [] if task.is_written else list(exported.labels),
        "method": exported.manifest["method"],
        "length": exported.prompt.length,
        "max_length": exported.encoding.max_length,
    }
