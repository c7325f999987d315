"""Tasks by their names: one file each, in ``published`` (fixed ones) or ``own`` (the user's own data, by kind)."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.messages import sentences, show
from prompt_tuning.tasks import own, published
from prompt_tuning.tasks.types import Task


def task_names() -> list[str]:
    """Names of the fixed tasks, sorted."""
    return _files_of(published)


def own_kinds() -> list[str]:
    """Kinds of one's own data, sorted."""
    return _files_of(own)


def _files_of(package: ModuleType) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find_task(value: str | dict[str, Any]) -> Task:
    """The task of a run file's ``task`` entry: a name, or an object with ``kind``. Raises :class:`UserError`."""
    if isinstance(value, str):
        elsewhere = '{name!r} describes your own data; write an object: {{"kind": "{name}", ...}}'
        _check_name("task", value, task_names(), own_kinds(), elsewhere)
        task: Task = importlib.import_module(f"{published.__name__}.{value}").TASK
        return task
    name = value.get("kind")
    _check_name("task.kind", name, own_kinds(), task_names(), '{name!r} is a fixed task; write "task": "{name}"')
    module = importlib.import_module(f"{own.__name__}.{name}")
    try:
        options = module.Options.model_validate({key: item for key, item in value.items() if key != "kind"})
    except ValidationError as error:
        problems = [f"task.{place}: {sentence}" for place, sentence in sentences(error, module.Options, ("kind",))]
        raise UserError("\n".join(problems)) from None
    built: Task = module.build(options)
    return built


def _check_name(key: str, name: Any, known: list[str], others: list[str], if_other: str) -> None:
    """Raise :class:`UserError` unless ``name`` is known; ``if_other`` is what to say of one that stands elsewhere."""
    if isinstance(name, str) and name in known:
        return
    if isinstance(name, str) and name in others:
        raise UserError(f"{key}={if_other.format(name=name)}")
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"{key}={show(name)} is unknown; {hint}")
