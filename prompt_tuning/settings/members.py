"""From a run file and its overrides to validated members.

Order of strength, weakest first: extended files, the file, a fleet member's extended file, its seed and grid point, its
own keys, ``--set``. A fleet has one backbone, so the sections in ``SHARED`` always come from the outer file.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.messages import MISSING, sentences, show
from prompt_tuning.settings.changes import keys_that_change, without
from prompt_tuning.settings.merge import Json, extend, merge, parse_set, put, read_json
from prompt_tuning.settings.run import MemberSpec, Run, with_digest
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.search import HalvingSection, RandomSection

SHARED = ("$schema", "name", "backbone", "parallel", "deepspeed", "launch", "fleet", "output")


SAME_FOR_ALL = [
    "checkpoint_steps",
    "keep_checkpoints",
    "backbone_dropout",
    "activation_checkpointing",
    "tokens_per_batch",
    "log_steps",
    "tensorboard",
    "wandb",
    "mlflow",
]

_ONE_FOR_ALL = "is the same for all members of a fleet; move it to the outer file"


def load_run(path: str | Path, sets: list[str] | None = None, output: str | None = None) -> Run:
    """Read a run file, apply ``--set`` overrides (``section.key=value``) and resolve its fleet.

    Raises :class:`UserError` naming every problem of the file at once.
    """
    path = Path(path)
    return resolve(read_json(path), path, [parse_set(item) for item in sets or []], output)


def resolve(raw: Json, path: Path, sets: list[tuple[str, Any]] | None = None, output: str | None = None) -> Run:
    """As :func:`load_run`, from the parsed file; ``path`` names it in messages and anchors its ``extends``."""
    try:
        outer = extend(raw, path)
        for dotted, value in sets or []:
            put(outer, dotted, value, f"--set {dotted}")
        _forget_published(outer, sets or [])
        fleet = outer.pop("fleet", None)
        configs, problems = _configs(outer, fleet, path, sets or [])
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply") from None
    if not problems:
        problems = _fleet_problems([config for _, _, config in configs], bool((fleet or {}).get("shared_prompt")))
    if not problems and (fleet or {}).get("shared_prompt"):
        problems = [
            f"fleet.{key}: members with a shared prompt train all at once and to the end; leave it out"
            for key in ("concurrent", "halving")
            if (fleet or {}).get(key)
        ]
    if problems:
        raise _error(path, problems)
    run_name = outer.get("name") or _folder_name(path.stem)
    names = _unique([_name(label, config) for label, _, config in configs])
    folder = Path(output or outer.get("output") or Path("runs") / run_name)
    members = tuple(MemberSpec(n, o, with_digest(c, path)) for n, (_, o, c) in zip(names, configs, strict=True))
    halving = (fleet or {}).get("halving")
    return Run(
        run_name,
        folder,
        members,
        bool((fleet or {}).get("shared_prompt")),
        None if halving is None else HalvingSection.model_validate(halving),
        (fleet or {}).get("concurrent"),
    )


_PLACEHOLDER: Json = {"task": "boolq", "backbone": {"path": "."}}

Label = tuple[str, ...]
"""What a member is called: its own name (or nothing), then what tells it apart from its siblings."""


def _configs(
    outer: Json, fleet: Any, path: Path, sets: list[tuple[str, Any]]
) -> tuple[list[tuple[Label, Json, RunFile]], list[str]]:
    """Label, overrides and settings of every member; and all problems."""
    if fleet is None:
        problems = _problems(outer, "")
        return ([] if problems else [(("",), {}, RunFile.model_validate(outer))]), problems
    # The fleet section is checked by itself: members may bring what the outer file lacks (their tasks).
    problems = _problems({**_PLACEHOLDER, "fleet": fleet}, "")
    if problems:
        return [], problems + [p for p in _problems(outer, "") if not p.endswith(MISSING)]
    configs = []
    for where, label, overrides, merged in _members(outer, fleet, path, sets, problems):
        found = _problems(merged, where)
        if not found:
            configs.append((label, overrides, RunFile.model_validate(merged)))
        # A grid meets the same unknown key at every point; once is enough.
        seen = {problem.partition(" (value ")[0] for problem in problems}
        problems += [problem for problem in found if problem.partition(" (value ")[0] not in seen]
    return configs, problems


def _members(
    outer: Json, fleet: Json, path: Path, sets: list[tuple[str, Any]], problems: list[str]
) -> Iterator[tuple[str, Label, Json, Json]]:
    """Where it stands, label, overrides and merged settings of every member; adds what is wrong to ``problems``."""
    grid, seeds = fleet.get("grid") or {}, fleet.get("seeds") or []
    random = RandomSection.model_validate(fleet["random"]) if fleet.get("random") else None
    drawn = {} if random is None else random.distributions
    sources = {**dict.fromkeys(grid, "fleet.grid"), **dict.fromkeys(drawn, "fleet.random.distributions")}
    problems += _contradictions(grid, drawn, seeds, [dotted for dotted, _ in sets])
    problems += [
        f"{s}: `{key}` {_ONE_FOR_ALL}" for key, s in sources.items() if key.partition(".")[0] in (*SHARED, "extends")
    ]
    points = [
        {**sample, **dict(zip(grid, values, strict=True))}
        for sample in ([{}] if random is None else random.points())
        for values in itertools.product(*grid.values())
    ]
    for index, member in enumerate(fleet.get("members") or [{}]):
        where = f"fleet.members[{index}]" if fleet.get("members") else "fleet"
        own = dict(member)
        name = own.pop("name", None) or ""
        wrong = [f"{where}: `{key}` {_ONE_FOR_ALL}" for key in SHARED if key in own]
        if not isinstance(name, str):
            wrong.append(f"{where}.name: {show(name)} is not a text")
        problems += wrong
        if wrong:
            continue
        try:
            inherited = extend({"extends": own.pop("extends", None)}, path)
            base = {key: value for key, value in inherited.items() if key not in SHARED}
            for point, seed in itertools.product(points, seeds or [None]):
                overrides: Json = copy.deepcopy(own)
                for dotted, value in point.items():
                    put(overrides, dotted, value, f"{where}: {sources[dotted]}.{dotted}")
                if seed is not None:
                    put(overrides, "train.seed", seed, where)
                merged = merge(merge(outer, base), overrides)
                for dotted, value in sets:
                    if dotted.partition(".")[0] != "fleet":
                        put(merged, dotted, value, f"{where}: --set {dotted}")
                _forget_published(merged, sets)
                changed = [f"{dotted.rpartition('.')[2]}={value}" for dotted, value in point.items()]
                recorded = without(merge(base, overrides), RunFile, "people")
                yield where, (name, *changed, *(["seed"] if len(seeds) > 1 else [])), recorded, merged
        except UserError as error:
            text = str(error).removeprefix(f"{path}: ")
            problems.append(text if text.startswith(where) else f"{where}: {text}")


def _contradictions(grid: Json, drawn: Mapping[str, Any], seeds: list[int], sets: list[str]) -> list[str]:
    """Keys for which a fleet and ``--set``, or two parts of a fleet, give values that would undo each other."""
    varied = {key: f"fleet.grid varies `{key}`" for key in grid}
    found = [f"fleet.grid and fleet.random both vary `{key}`; keep one of them" for key in grid if key in drawn]
    varied |= {key: f"fleet.random varies `{key}`" for key in drawn}
    if seeds:
        if "train.seed" in varied:
            found.append(f"fleet.seeds and {varied['train.seed'].split()[0]} both vary `train.seed`; keep one of them")
        varied["train.seed"] = "fleet.seeds varies `train.seed`"
    for dotted in sets:
        for key, sentence in varied.items():
            if f"{key}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{key}."):
                found.append(
                    f"--set {dotted}: {sentence}, which it would undo; set `{sentence.split()[0]}` instead, or leave it out"
                )
    return found


def _forget_published(settings: Json, sets: list[tuple[str, Any]]) -> None:
    """Drop the published results of settings that ``--set`` has changed: they are of other numbers then."""
    same = {"data.path", "train.seed", "fleet.seeds", *keys_that_change(RunFile, "parallel", "launch", "people")}
    changed = [dotted for dotted, _ in sets if not {dotted, dotted.partition(".")[0]} & same]
    if changed and isinstance(settings.get("published"), list):
        settings["published"] = False


def _name(label: tuple[str, ...], config: RunFile) -> str:
    """A member's name: its own or task and method, then what the grid changed, then the seed where it tells apart."""
    own, *parts = label
    if not own:
        task = config.task if isinstance(config.task, str) else config.task.get("name", config.task["kind"])
        own = f"{task}-{config.method}"
    if not label[0] or parts[-1:] == ["seed"]:
        parts = [part for part in parts if part != "seed"] + [f"seed{config.train.seed}"]
    return _folder_name("-".join([own, *parts]))


def _folder_name(text: str) -> str:
    """A name is a folder: nothing in it may lead out of the folder that holds it."""
    return re.sub(r"[^A-Za-z0-9_.=+-]", "_", text)[:150].lstrip(".-") or "unnamed"


def _unique(names: list[str]) -> list[str]:
    """Names that differ, also on a file system that takes a and A for the same."""
    taken: set[str] = set()
    result = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        while name.lower() in taken:
            name = next(numbered)
        taken.add(name.lower())
        result.append(name)
    return result


def _fleet_problems(configs: list[RunFile], shared_prompt: bool) -> list[str]:
    problems = _shared_prompt_problems(configs) if shared_prompt else []
    first = configs[0]
    for key in SAME_FOR_ALL:
        values = {json.dumps(getattr(config.train, key)) for config in configs}
        if len(values) > 1:
            problems.append(f"train.{key}: all members of a fleet share it, but the file gives {', '.join(values)}")
    alone = [config.method for config in configs if config.method in ("full", "lora")]
    if len(configs) > 1 and alone:
        what = f"method: {alone[0]!r} trains inside the backbone itself"
        problems.append(f"{what}, so it is a fleet of exactly one; give it its own file")
    if any(config.backbone != first.backbone for config in configs):
        problems.append("backbone: all members of a fleet share one")
    return problems


def _shared_prompt_problems(configs: list[RunFile]) -> list[str]:
    """Why members cannot train one prefix together."""
    problems, first = [], configs[0]
    if any(config.method != "deep_prompt" for config in configs):
        problems.append("fleet.shared_prompt: only members with method 'deep_prompt' have a prefix to share")
    if any(config.prompt != first.prompt for config in configs):
        problems.append("fleet.shared_prompt: members share all of `prompt`; move it to the outer file")
    if any(config.train.max_steps is None or config.train.max_steps != first.train.max_steps for config in configs):
        problems.append("fleet.shared_prompt: members end together; set train.max_steps, the same for all")
    if any(config.train.patience is not None for config in configs):
        problems.append(
            "fleet.shared_prompt: a member that stops early would leave the others; leave train.patience out"
        )
    return problems


def _problems(merged: Json, where: str) -> list[str]:
    """Every problem of resolved settings; ``where`` names the member they belong to.

    What is wrong is then left out, so that the checks over several keys see the rest in the same pass.
    """
    problems: list[str] = []
    for _ in range(2):
        try:
            RunFile.model_validate(merged)
            break
        except ValidationError as error:
            for place, sentence in sentences(error, RunFile, ("extends",)):
                problem = ": ".join(part for part in (where, place, sentence) if part)
                if problem not in problems:
                    problems.append(problem)
            merged = _without(merged, [item["loc"] for item in error.errors()])
    return problems


def _without(merged: Json, locations: list[tuple[Any, ...]]) -> Json:
    """Settings without the keys at some places; what has no default gets a stand-in."""
    merged = copy.deepcopy(merged)
    for first, *rest in filter(None, locations):
        section = merged.get(first)
        if rest and isinstance(section, dict) and first != "task":
            section.pop(rest[0], None)
        else:
            merged.pop(first, None)
    if "task" not in merged:
        merged["task"] = _PLACEHOLDER["task"]
        if isinstance(merged.get("data"), dict):
            merged["data"].pop("template", None)
    if not isinstance(merged.get("backbone"), dict) or "path" not in merged["backbone"]:
        merged["backbone"] = _PLACEHOLDER["backbone"]
    return merged


def _error(path: Path, problems: list[str]) -> UserError:
    if len(problems) == 1:
        return UserError(f"{path}: {problems[0]}")
    return UserError(f"{path}: {len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems))
