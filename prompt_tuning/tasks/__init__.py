"""Tasks: one file each, found by its name.

A file named ``<task>.py`` holds ``TASK``, a :class:`Task`; a file for the user's own data holds ``Options`` (its settings)
and ``build(options) -> Task``. Nothing else needs to change to add one. Task files do not import torch.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.problems import sentences, show

Row = Mapping[str, Any]
Pair = tuple[str, str | None]
"""A text and its optional second text, tokenised together."""

Template = Callable[[Row], tuple[Pair, ...]]
"""From a row of data to its sequences: one for classification, one a choice for choice tasks."""


@dataclass(frozen=True)
class Task:
    """What a task is: where its rows are, how a row becomes text, which labels and metrics it has.

    ``labels`` are the class names in the order of the logits; ``None`` means that they are collected from the training
    split. For ``kind="choice"`` they name the choices. The first of ``metrics`` selects the best evaluation. All ``columns``
    hold texts but the ``number_columns``.
    """

    name: str
    kind: Literal["classification", "choice"]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    templates: Mapping[str, Template]
    hub: tuple[str, str | None] | None = None
    folder: str | None = None
    label_column: str = "label"
    number_columns: tuple[str, ...] = ()
    normalise: Callable[[Row], Row] = dict

    def label_index(self, value: Any, labels: tuple[str, ...]) -> int | None:
        """Index of a raw label in ``labels``; ``None`` for an unlabelled row (missing, null, empty or -1, unless named so).

        Raises :class:`KeyError` for a label that is none of them. Strings are names; whole numbers are indices, unless
        the names themselves are numbers.
        """
        name = str(value)
        if name in labels:
            return labels.index(name)
        if value is None or name in ("", "-1"):
            return None
        named_by_numbers = any(label.lstrip("-").isdigit() for label in labels)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels) and not named_by_numbers:
            return value
        folded = [label.lower() for label in labels]
        if name.lower() in folded:
            return folded.index(name.lower())
        raise KeyError(value)


def task_names() -> list[str]:
    """Names of all task files, sorted; those that describe the user's own data (kinds) included."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find_task(value: str | dict[str, Any]) -> Task:
    """The task of a run file's ``task`` entry: a name, or an object with ``kind``. Raises :class:`UserError`."""
    name = value if isinstance(value, str) else value.get("kind")
    if not isinstance(name, str) or name not in task_names():
        near = difflib.get_close_matches(str(name), task_names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(task_names())}"
        what = "task" if isinstance(value, str) else "task.kind"
        raise UserError(f"{what}={show(name)} is unknown; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    if isinstance(value, str):
        if not hasattr(module, "TASK"):
            raise UserError(f'task={name!r} describes your own data; write an object: {{"kind": "{name}", ...}}')
        return module.TASK
    if not hasattr(module, "Options"):
        raise UserError(f'task.kind={name!r} is a fixed task; write "task": "{name}"')
    try:
        options = module.Options.model_validate({key: item for key, item in value.items() if key != "kind"})
    except ValidationError as error:
        problems = [f"task.{place}: {sentence}" for place, sentence in sentences(error, module.Options, ("kind",))]
        raise UserError("\n".join(problems)) from None
    return module.build(options)
