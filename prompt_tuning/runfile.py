"""From a run file and its overrides to validated members.

Order of strength, weakest first: extended files, the file, a fleet member's extended file, its seed and grid point, its
own keys, ``--set``. A fleet has one backbone, so the sections in ``SHARED`` always come from the outer file.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prompt_tuning.config import RunFile
from prompt_tuning.errors import UserError
from prompt_tuning.problems import difference, sentences

SHARED = ("$schema", "name", "description", "published", "backbone", "parallel", "fleet", "output")
SAME_FOR_ALL = [
    "checkpoint_steps",
    "keep_checkpoints",
    "backbone_dropout",
    "activation_checkpointing",
    "tokens_per_batch",
    "log_steps",
    "tensorboard",
]

Json = dict[str, Any]


@dataclass(frozen=True)
class MemberSpec:
    """One member of a run: its name, what differs from the run file, and its complete settings."""

    name: str
    overrides: Json
    config: RunFile


@dataclass(frozen=True)
class Run:
    """A resolved run: never empty; an ordinary run has one member."""

    name: str
    output: Path
    members: tuple[MemberSpec, ...]
    fleet: Json | None

    @property
    def shared(self) -> RunFile:
        """Settings that are the same for all members (backbone, parallel, bookkeeping)."""
        return self.members[0].config

    def to_json(self) -> Json:
        """What run.json records: every member's settings, resolved."""
        return {
            "name": self.name,
            "members": [
                {"name": m.name, "overrides": m.overrides, "config": m.config.model_dump(mode="json", by_alias=True)}
                for m in self.members
            ],
        }

    def experiment(self) -> Json:
        """The part of :meth:`to_json` that changes the numbers: runs with equal experiments may continue each other."""
        return _experiment(self.to_json())


def load_recorded_run(folder: Path) -> Run:
    """The run that a run folder's run.json records. Raises :class:`UserError`."""
    record = read_json(folder / "run.json")
    try:
        members = tuple(
            MemberSpec(member["name"], member["overrides"], RunFile.model_validate(member["config"]))
            for member in record["members"]
        )
        return Run(record["name"], folder, members, None)
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{folder / 'run.json'}: not the record of a run ({type(error).__name__})") from None


def _experiment(record: Json) -> Json:
    members = copy.deepcopy(record["members"])
    for member in members:
        config = member["config"]
        for key in ("$schema", "name", "description", "published", "parallel", "fleet", "output"):
            config.pop(key, None)
        for key in ("checkpoint_steps", "keep_checkpoints", "log_steps", "tensorboard"):
            config["train"].pop(key, None)
    return {"members": members}


def experiment_difference(record: Json, run: Run) -> str | None:
    """Where the experiment recorded in a run.json differs from ``run``'s; None: nowhere."""
    old, new = _experiment(record), run.experiment()
    return None if old == new else difference(old, new)


def load_run(path: str | Path, sets: list[str] | None = None, output: str | None = None) -> Run:
    """Read a run file, apply ``--set`` overrides (``section.key=value``) and resolve its fleet.

    Raises :class:`UserError` naming every problem of the file at once.
    """
    path = Path(path)
    return resolve(read_json(path), path, [_parse_set(item) for item in sets or []], output)


def resolve(raw: Json, path: Path, sets: list[tuple[str, Any]] | None = None, output: str | None = None) -> Run:
    """As :func:`load_run`, from the parsed file; ``path`` names it in messages and anchors its ``extends``."""
    sets = sets or []
    outer = _extend(raw, path)
    for dotted, value in sets:
        _put(outer, dotted, value)
    fleet = outer.pop("fleet", None)
    problems: list[str] = []
    specs: list[tuple[str, tuple[str, ...], Json, Json]] = []
    if fleet is None:
        specs.append(("", ("",), {}, outer))
    else:
        # The fleet section is checked by itself: members may bring what the outer file lacks (their tasks).
        problems += _problems({**_PLACEHOLDER, "fleet": fleet}, "")
        if problems:
            raise _error(path, problems)
        specs += _members(outer, fleet, path, sets)
    configs: list[tuple[tuple[str, ...], Json, RunFile]] = []
    for where, label, overrides, merged in specs:
        found = _problems(merged, where)
        if not found:
            configs.append((label, overrides, RunFile.model_validate(merged)))
        problems += [problem for problem in found if problem not in problems]
    if not problems:
        problems += _fleet_problems([config for _, _, config in configs])
    if problems:
        raise _error(path, problems)
    run_name = outer.get("name") or path.stem
    names = _unique([_name(label, config) for label, _, config in configs])
    folder = Path(output or outer.get("output") or Path("runs") / run_name)
    members = tuple(MemberSpec(n, o, c) for n, (_, o, c) in zip(names, configs, strict=True))
    return Run(run_name, folder, members, fleet)


_PLACEHOLDER: Json = {"task": "boolq", "backbone": {"path": "."}}


def _members(
    outer: Json, fleet: Json, path: Path, sets: list[tuple[str, Any]]
) -> Iterator[tuple[str, tuple[str, ...], Json, Json]]:
    grid = fleet.get("grid") or {}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for index, member in enumerate(fleet.get("members") or [{}]):
        where = f"fleet.members[{index}]" if fleet.get("members") else "fleet"
        member = dict(member)
        name = member.pop("name", "")
        base = {}
        if "extends" in member:
            base = _extend({"extends": member.pop("extends")}, path)
            base = {key: value for key, value in base.items() if key not in SHARED}
        fixed = [key for key in SHARED if key in member]
        if fixed:
            raise UserError(
                f"{path}: {where} sets `{fixed[0]}`, which all members of a fleet share; move it to the outer file"
            )
        for point, seed in itertools.product(points, fleet.get("seeds") or [None]):
            overrides: Json = copy.deepcopy(member)
            for dotted, value in point.items():
                _put(overrides, dotted, value)
            if seed is not None:
                _put(overrides, "train.seed", seed)
            merged = merge(merge(outer, base), overrides)
            for dotted, value in sets:
                if not dotted.startswith("fleet"):
                    _put(merged, dotted, value)
            changed = [f"{dotted.rpartition('.')[2]}={value}" for dotted, value in point.items()]
            label = (str(name), *changed, *(["seed"] if len(fleet.get("seeds") or []) > 1 else []))
            yield where, label, merge(base, overrides), merged


def _name(label: tuple[str, ...], config: RunFile) -> str:
    """A member's name: its own or task and method, then what the grid changed, then the seed where it tells apart."""
    own, *parts = label
    if not own:
        task = config.task if isinstance(config.task, str) else config.task.get("name", config.task["kind"])
        own = f"{task}-{config.method}"
    if not label[0] or parts[-1:] == ["seed"]:
        parts = [part for part in parts if part != "seed"] + [f"seed{config.train.seed}"]
    # A name is a folder: nothing in it may lead out of the run's.
    return re.sub(r"[^A-Za-z0-9_.=+-]", "_", "-".join([own, *parts]))[:150].lstrip(".-") or "member"


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def _fleet_problems(configs: list[RunFile]) -> list[str]:
    problems = []
    first = configs[0]
    for key in SAME_FOR_ALL:
        values = {json.dumps(getattr(config.train, key)) for config in configs}
        if len(values) > 1:
            problems.append(f"train.{key}: all members of a fleet share it, but the file gives {', '.join(values)}")
    if len(configs) > 1 and any(config.method == "full" for config in configs):
        problems.append(
            "method: 'full' trains the backbone itself, so it is a fleet of exactly one; give it its own file"
        )
    if any(config.backbone != first.backbone for config in configs):
        problems.append("backbone: all members of a fleet share one")
    return problems


def read_json(path: Path) -> Json:
    """Parse a JSON object from a file, or raise :class:`UserError` with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.json")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such run file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a UTF-8 JSON file") from None
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a run file is a JSON object, not {type(raw).__name__}")
    return raw


def merge(base: Json, over: Json) -> Json:
    """Deep copy of ``base`` with ``over`` laid on top; objects merge key by key, all else is replaced."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        # A task object describes one data set: laying one over another would mix two.
        result[key] = merge(result[key], value) if both and key != "task" else copy.deepcopy(value)
    return result


def _extend(raw: Json, path: Path, chain: tuple[Path, ...] = ()) -> Json:
    raw = dict(raw)
    target = raw.pop("extends", None)
    if target is None:
        return copy.deepcopy(raw)
    if not isinstance(target, str):
        raise UserError(f"{path}: `extends` is {json.dumps(target)}; give the path of a run file, relative to this one")
    parent = (path.parent / target).resolve()
    if parent in chain:
        raise UserError(f"{path}: `extends` runs in a circle through {parent}")
    return merge(_extend(read_json(parent), parent, (*chain, parent)), raw)


def _parse_set(item: str) -> tuple[str, Any]:
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise UserError(f"--set {item!r}: write section.key=value, for example --set optimizer.lr=0.01")
    try:
        return dotted, json.loads(text)
    except json.JSONDecodeError:
        return dotted, text


def _put(target: Json, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = target.get(section)
        target[section] = dict(inner) if isinstance(inner, dict) else {}
        target = target[section]
    target[key] = copy.deepcopy(value)


def _error(path: Path, problems: list[str]) -> UserError:
    if len(problems) == 1:
        return UserError(f"{path}: {problems[0]}")
    return UserError(f"{path}: {len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems))


def _problems(merged: Json, where: str) -> list[str]:
    try:
        RunFile.model_validate(merged)
    except ValidationError as error:
        return sentences(error, RunFile, where)
    except UserError as error:
        return [f"{where + ': ' if where else ''}{error}"]
    return []
