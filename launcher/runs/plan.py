"""Many run files as one job: their members, and the fleets by backbone that are still to be run.

The output folder holds a run file and a run folder for each fleet. What has been done is read from these alone, so that a
suite that was killed, or is given more run files later, does what is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.settings.changes import without
from prompt_tuning.settings.identity import load_recorded_run
from prompt_tuning.settings.members import SAME_FOR_ALL, SHARED, load_run
from prompt_tuning.settings.merge import Json
from prompt_tuning.settings.run import MemberSpec
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.storage.atomic import write_json

BASELINE = "head"


@dataclass(frozen=True)
class Job:
    """One member to train, under its name in the suite."""

    name: str
    config: Json

    @property
    def identity(self) -> str:
        """Of what changes the numbers: equal jobs need to run once."""
        return _digest(without(self.config, RunFile, "parallel", "launch", "people"))

    @property
    def fleet_key(self) -> str:
        """Of what all members of a fleet share; fine-tuning and LoRA are fleets of their own."""
        shared = {key: self.config[key] for key in ("backbone", "parallel", "deepspeed")}
        train = {key: self.config["train"][key] for key in SAME_FOR_ALL}
        return _digest([shared, train, self.name if self.config["method"] in ("full", "lora") else ""])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def find_jobs(configs: list[str], sets: list[str], seeds: int | None, baselines: bool) -> list[Job]:
    """All members of some run files, each with ``seeds`` seeds counted from its own; with ``baselines`` a head alone for
    each task and data that no given member trains alone. Raises :class:`UserError`.
    """
    jobs: dict[str, Job] = {}
    runs = [load_run(path, sets) for path in configs]
    together = [path for path, run in zip(configs, runs, strict=True) if run.shared_prompt]
    if together:
        raise UserError(
            f"{together[0]}: its members train one prompt and cannot be parted; run it with launcher/run.py"
        )
    found = [(run.name, spec) for run in runs for spec in run.members]
    for run_name, spec in found:
        for seed in _seeds(spec, seeds):
            _add(jobs, _name(run_name, spec), spec.config.model_dump(mode="json", by_alias=True), seed)
    if baselines:
        have = {_question(job.config) for job in jobs.values() if job.config["method"] == BASELINE}
        for run_name, spec in found:
            config = spec.config.model_dump(mode="json", by_alias=True)
            if spec.config.is_written or _question(config) in have:  # no head alone writes a text
                continue
            have.add(_question(config))
            head_lr = config["optimizer"]["head_lr"] or min(config["optimizer"]["lr"], 5e-3)
            config = {
                **config,
                "method": BASELINE,
                "published": None,
                "data": {**config["data"], "template": None if spec.config.is_cloze else config["data"]["template"]},
                "prompt": {**config["prompt"], "init": "normal", "init_from": None, "layers": None},
                "optimizer": {**config["optimizer"], "lr": head_lr, "head_lr": None},
                "train": {**config["train"], "also": []},
            }
            for seed in _seeds(spec, seeds):
                _add(jobs, f"{run_name}-{BASELINE}", config, seed)
    return list(jobs.values())


def _seeds(spec: MemberSpec, seeds: int | None) -> range:
    first = spec.config.train.seed
    return range(first, first + (seeds or 1))


def _question(config: Json) -> str:
    """What a baseline answers: the task, its data and how it is read."""
    return _digest([config["task"], config["data"], config["backbone"]])


def _name(run_name: str, spec: MemberSpec) -> str:
    """Run and member, without the seed; a member that was given no name goes by the run's."""
    own = re.sub(r"-?seed\d+$", "", spec.name)
    task = spec.config.task if isinstance(spec.config.task, str) else spec.config.task.get("name", "")
    own = own.removeprefix(f"{task}-")
    method = spec.config.method
    own = "" if own == "deep_prompt" else own or method
    return f"{run_name}-{own}" if own else run_name


def _add(jobs: dict[str, Job], name: str, config: Json, seed: int) -> None:
    job = Job(f"{name}-seed{seed}", {**config, "train": {**config["train"], "seed": seed}})
    if any(other.name == job.name and other.identity != job.identity for other in jobs.values()):
        raise UserError(
            f"two run files give different members the name {show(job.name)}; give one of the files another `name`"
        )
    jobs.setdefault(job.identity, job)


@dataclass(frozen=True)
class FleetJob:
    """A fleet to run: its run file, its folder, and its members' names."""

    file: Path
    folder: Path
    members: list[str]


def plan(
    jobs: list[Job], output: Path, most: int, queued: frozenset[str] = frozenset()
) -> tuple[list[FleetJob], list[str]]:
    """Fleets that are still to be run, those begun first, and the names of the jobs that are done.

    ``queued`` names the fleets of this folder that a scheduler has taken: they are neither.
    """
    done, begun, known = [], [], set()
    wanted = {job.identity: job for job in jobs}
    for record in sorted(output.glob("*/run.json")):
        members = [_job(spec) for spec in load_recorded_run(record.parent).members]
        here = [member.identity for member in members if member.identity in wanted]
        known.update(here)
        if (record.parent / "result.json").exists():
            done += [wanted[identity].name for identity in here]
        elif here and record.parent.name not in queued:
            file = record.parent.with_suffix(".json")
            if not file.exists():
                raise UserError(
                    f"{file} is missing, the run file of an unfinished fleet; remove {record.parent} to start it anew"
                )
            begun.append(FleetJob(file, record.parent, [member.name for member in members]))
    for name in queued:
        known.update(_job(spec).identity for spec in load_run(str(output / f"{name}.json")).members)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.identity not in known:
            groups.setdefault(job.fleet_key, []).append(job)
    fresh = [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]
    return begun + [_write_fleet(group, output) for group in fresh], done


def _job(spec: MemberSpec) -> Job:
    return Job(spec.name, spec.config.model_dump(mode="json", by_alias=True))


def _write_fleet(jobs: list[Job], output: Path) -> FleetJob:
    """The run file of a fleet of jobs. Its name says the backbone and tells apart."""
    first = jobs[0].config
    backbone = re.sub(r"[^A-Za-z0-9.-]+", "_", first["backbone"]["path"].rstrip("/").rpartition("/")[2]) or "backbone"
    name = f"{backbone.lstrip('._-')}-{len(jobs)}-{_digest(sorted(job.identity for job in jobs))}"
    members = []
    for job in jobs:
        own = {key: value for key, value in job.config.items() if key not in SHARED and value is not None}
        members.append({"name": job.name, **own})
    shared = {key: first[key] for key in ("backbone", "parallel", "launch")}
    if first["parallel"]["zero"]:
        shared["deepspeed"] = first["deepspeed"]
    file = output / f"{name}.json"
    write_json(file, {"name": name, **shared, "fleet": {"members": members}})
    return FleetJob(file, output / name, [job.name for job in jobs])
