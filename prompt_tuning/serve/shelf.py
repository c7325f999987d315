"""Which prompts' tensors are on the device: all, or within a budget of bytes those that were asked for last."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model_parallel.memory import give_back
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import ExportedPrompt, load_prompt, outline_prompt
from prompt_tuning.serve.limits import Refusal

logger = logging.getLogger(__name__)

BYTES_BETWEEN = 1 << 26
"""Freed memory is given back to the system after so many bytes were read; by itself the C library keeps as much again and more."""


def tensor_bytes(exported: ExportedPrompt) -> int:
    """What a prompt's tensors take on the device, or would."""
    return sum(parameter.numel() * parameter.element_size() for parameter in exported.prompt.parameters())


def open_prompts(found: Mapping[str, Path], budget: int | None) -> list[ExportedPrompt]:
    """Prompts by name and folder; within a ``budget`` of bytes their outlines, as their tensors are to be read when they are asked for.

    Raises :class:`UserError`.
    """
    if budget is None:
        return [load_prompt(folder) for folder in found.values()]
    several = {name: outline_prompt(folder) for name, folder in found.items()}
    for name, exported in several.items():
        check_fits(name, exported, budget)
    return list(several.values())


def check_fits(name: str, exported: ExportedPrompt, budget: int | None) -> None:
    """Raise :class:`UserError` for a prompt that no room can be made for."""
    if budget is None:
        return
    if exported.prompt.lora is not None:
        raise UserError(
            f"{name}: method 'lora' changes layers of the backbone and cannot be put aside; serve it without --prompt-memory"
        )
    if tensor_bytes(exported) > budget:
        raise UserError(
            f"{name}: the prompt's tensors take {tensor_bytes(exported)} bytes, and --prompt-memory allows {budget} for those of"
            " all; give more, or leave the prompt out"
        )


class Shelf:
    """Prompts by name, and which of them are held on the device. All of it runs in the model's thread, but for reading its numbers.

    ``budget``: most bytes that they take there, while the others are outlines; None: all are held. ``seen`` hears "load" and "eviction".
    """

    def __init__(
        self, device: torch.device, budget: int | None, seen: Callable[[str], None] = lambda event: None
    ) -> None:
        self.budget, self.bytes = budget, 0
        self._device, self._seen = device, seen
        self._prompts: dict[str, ExportedPrompt] = {}
        self._read_since = 0
        self._held: OrderedDict[str, int] = OrderedDict()
        """Bytes by name; what was asked for longest ago comes first."""

    @property
    def num_held(self) -> int:
        """How many prompts are on the device."""
        return len(self._held)

    def put(self, name: str, exported: ExportedPrompt) -> None:
        """Take one more prompt that :func:`check_fits`; within a budget it is an outline until it is asked for."""
        self._prompts[name] = exported
        if self.budget is None:
            self._hold(name)
        else:
            exported.prompt.to("meta")

    def drop(self, name: str) -> None:
        """Forget a prompt."""
        del self._prompts[name]
        self.bytes -= self._held.pop(name, 0)

    def each(self, names: Sequence[str], answers_to: Callable[[list[int]], list[Any]]) -> list[Any]:
        """An answer for each of ``names``, or the :class:`Refusal` that it ends in where its prompt can not be read.

        ``answers_to`` is called as often as the budget needs, with places in ``names`` whose prompts are held while it runs.
        """
        if self.budget is None:
            return answers_to(list(range(len(names))))
        found: list[Any] = [None] * len(names)
        places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            places.setdefault(name, []).append(place)
        # Those that are held come first, and are then the last to go: reading the others pushes out none that is wanted beside them.
        waiting = sorted(places, key=lambda name: name not in self._held)
        while waiting:
            together, waiting = self._that_fit(waiting)
            for name in together:
                try:
                    self._fetch(name)
                except Refusal as refusal:
                    for place in places.pop(name):
                        found[place] = refusal
            own = [place for name in together for place in places.get(name, ())]
            for place, answer in zip(own, answers_to(own) if own else (), strict=True):
                found[place] = answer
        return found

    def _that_fit(self, names: list[str]) -> tuple[list[str], list[str]]:
        """The first of some prompts that are held together, and the others."""
        total = 0
        for count, name in enumerate(names):
            total += tensor_bytes(self._prompts[name])
            if self.budget is not None and total > self.budget:
                return names[:count], names[count:]
        return names, []

    def _fetch(self, name: str) -> None:
        """Hold a prompt, in the place of those that nobody has asked for longest. Raises :class:`Refusal`."""
        if name in self._held:
            self._held.move_to_end(name)
            return
        assert self.budget is not None
        exported = self._prompts[name]
        found = self._read(name, exported)
        size = tensor_bytes(exported)
        while self.bytes + size > self.budget:
            other, taken = self._held.popitem(last=False)
            self._prompts[other].prompt.to("meta")
            self.bytes -= taken
            self._seen("eviction")
        exported.prompt.load_state_dict(found.prompt.to(self._device).state_dict(), assign=True)
        self._hold(name)
        self._seen("load")
        self._read_since += size
        if self._read_since >= BYTES_BETWEEN:
            self._read_since = 0
            give_back()

    def _hold(self, name: str) -> None:
        self._held[name] = tensor_bytes(self._prompts[name])
        self.bytes += self._held[name]

    def _read(self, name: str, exported: ExportedPrompt) -> ExportedPrompt:
        """A prompt as its folder has it, if that is what the server has told of it. Raises :class:`Refusal`."""
        try:
            found = load_prompt(exported.folder)
            if found.manifest != exported.manifest:
                raise UserError(f"{exported.folder}: prompt.json is another one than the server has opened")
        except UserError as error:
            logger.warning("prompt %s can not be read again: %s", name, error)
            why = str(error).removeprefix(f"{exported.folder}: ").replace(f"{exported.folder}/", "").partition(";")[0]
            raise Refusal(
                503,
                f"prompt {name!r} is not on the device and can not be read: {why}; put its files back, or remove it and add it",
            ) from None
        return found
