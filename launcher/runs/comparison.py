"""The runs of a comparison of methods, and what their folders say: all of it plain run files, which any launcher can repeat.

A comparison's folder holds, for every method, ``measure-<method>`` (some steps of one member alone: time and memory),
``search-<method>...`` (the same number of learning rates, one seed), ``seeds-<method>...`` (the best rate under new seeds). What
is to be run next follows from these folders alone, so that a comparison that was killed goes on where it was.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import statistics
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher.runs.plan import FleetJob
from launcher.runs.state import training_examples
from prompt_tuning.errors import UserError
from prompt_tuning.messages import difference, show
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.merge import Json, extend, parse_set, read_json
from prompt_tuning.storage.atomic import write_json

SPACES = {
    "deep_prompt": (1e-3, 1e-1),
    "shallow_prompt": (1e-2, 1.0),
    "head": (1e-4, 1e-2),
    "lora": (1e-4, 1e-2),
    "full": (1e-5, 1e-3),
}
"""Lowest and highest learning rate that is tried, two decades for each method; docs/compare.md has the sources."""

RELATIVE = (2e-3, 2e-1)
"""The same of deep prompts whose rate is a share of keys and values (``optimizer.relative``)."""

ALONE = ("lora", "full")
"""Methods that are fleets of one; seeds and rates of the others train together."""

HELD_OUT = 0.1
"""Share of the training rows on which rates and best steps are selected, where the run file says nothing."""

MEASURED_STEPS = 30


@dataclass(frozen=True)
class Plan:
    """What is compared: ``base`` is a run file without method and rate."""

    base: Json
    methods: tuple[str, ...]
    seeds: int
    trials: int
    equal: str
    spaces: dict[str, tuple[float, float]]
    output: Path

    def rates(self, method: str) -> list[float]:
        """The rates that are tried: the middles of equal parts of the method's space on a logarithmic scale."""
        low, high = map(math.log, self.spaces[method])
        places = [(number + 0.5) / self.trials for number in range(self.trials)]
        return [float(f"{math.exp(low + place * (high - low)):.3g}") for place in places]

    @property
    def held_out(self) -> float:
        """Share of the training rows that selects; 0: the dev split does."""
        return float(self.base.get("data", {}).get("held_out", 0.0))

    @property
    def seed(self) -> int:
        """Of measurements and searches; the seeds that are reported follow it."""
        return int(self.base.get("train", {}).get("seed", 11))

    def to_json(self) -> Json:
        """What must not change while a comparison goes on; seeds and methods may be added."""
        spaces = {method: list(self.spaces[method]) for method in self.methods}
        return {
            "base": self.base,
            "first": self.methods[0],
            "trials": self.trials,
            "equal": self.equal,
            "rates": spaces,
        }


def read_plan(
    config: Path,
    sets: list[str],
    methods: tuple[str, ...],
    seeds: int,
    trials: int,
    equal: str,
    spaces: dict[str, tuple[float, float]],
    output: Path | None,
) -> Plan:
    """The comparison of methods on a run file's task. Raises :class:`UserError` where the file does not fit one of them."""
    outer = extend(read_json(config), config)
    outer.pop("fleet", None)
    pairs = [parse_set(item) for item in sets]
    wrong = [key for key, _ in pairs if key.split(".")[0] in ("fleet", "method") or key == "optimizer.lr"]
    if wrong:
        raise UserError(f"--set {wrong[0]}: compare sets methods, rates and fleets itself; leave it out")
    settings = resolve(outer, config, pairs)
    own = settings.shared
    base = own.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for key in ("$schema", "name", "description", "published", "method", "output"):
        base.pop(key, None)
    base.get("optimizer", {}).pop("lr", None)
    if "held_out" not in own.data.model_fields_set:
        base["data"] = {**base.get("data", {}), "held_out": HELD_OUT}
    folder = output or Path("runs") / f"compare-{settings.name}"
    known = {**SPACES, "deep_prompt": RELATIVE} if own.optimizer.relative else SPACES
    plan = Plan(base, methods, seeds, trials, equal, {**known, **spaces}, folder)
    if "lora" in methods and find_spec("peft") is None:
        raise UserError(
            "method lora needs an extra package: pip install 'promptfleet[lora]', or leave it out of --methods"
        )
    for method in methods:
        try:
            resolve(as_method(plan, method), config)
        except UserError as error:
            raise UserError(str(error).replace(f"{config}:", f"{config}, compared by method {method}:", 1)) from None
    return plan


def as_method(plan: Plan, method: str, **train: Any) -> Json:
    """The run file of a method; what only prompts have is left out of the others'. ``train``: keys of that section."""
    settings = copy.deepcopy(plan.base)
    settings["method"] = method
    if method != "deep_prompt":
        kept = ("dropout",) if method != "shallow_prompt" else ("dropout", "length", "init")
        settings["prompt"] = {key: value for key, value in settings.get("prompt", {}).items() if key in kept}
        for key in ("relative", "also_lr"):
            settings.get("optimizer", {}).pop(key, None)
        settings.get("train", {}).pop("also", None)
    if method == "head":
        settings.get("optimizer", {}).pop("head_lr", None)  # its rate is the one that is searched
    settings["train"] = {**settings.get("train", {}), **train}
    return settings


def begin(plan: Plan) -> None:
    """Write down what is compared. Raises :class:`UserError` where the folder holds another comparison."""
    file, record = plan.output / "compare.json", plan.to_json()
    if file.exists():
        before = read_json(file)
        rates = {**(before.get("rates") or {})}
        known = {**record, "rates": {m: own for m, own in record["rates"].items() if m in rates}}
        old = {**{key: before.get(key) for key in record}, "rates": {m: rates[m] for m in known["rates"]}}
        if old != known:
            raise UserError(
                f"{plan.output} holds another comparison ({difference(old, known)}); choose another --output"
            )
        record = {**before, "rates": {**rates, **record["rates"]}}
    write_json(file, record)


def measurements(plan: Plan) -> list[FleetJob]:
    """A short run of one member of each method, for its time and memory."""
    steps = {"max_steps": MEASURED_STEPS, "eval_steps": MEASURED_STEPS, "log_steps": 5, "patience": None}
    return [
        _write(plan, f"measure-{method}", _with_rate(as_method(plan, method, **steps), plan.rates(method)[0]), method)
        for method in plan.methods
    ]


@dataclass(frozen=True)
class Cost:
    """What one member of a method takes alone."""

    step_seconds: float
    start_seconds: float
    """Of the first steps above that: what is done once, as a head alone looks at every text once."""
    peak_bytes: int | None
    steps_per_epoch: int

    def seconds(self, steps: float) -> float:
        """How long so many steps take."""
        return self.start_seconds + steps * self.step_seconds

    def steps(self, seconds: float) -> int:
        """How many steps take so long, at least 1."""
        return max(1, round((seconds - self.start_seconds) / self.step_seconds))


def cost(plan: Plan, method: str) -> Cost:
    """Of the method's short run: the median time of its steps, without the first few, and the peak memory of its process."""
    folder = plan.output / f"measure-{method}"
    lines = [json.loads(line) for line in (folder / "throughput.jsonl").read_text(encoding="utf-8").splitlines()]
    spans = itertools.pairwise(lines)
    seconds = statistics.median(now["seconds"] / (now["step"] - before["step"]) for before, now in spans)
    examples = training_examples(folder)
    batch = int(plan.base.get("train", {}).get("batch_size", 32))
    start = max(0.0, lines[0]["seconds"] - lines[0]["step"] * seconds)
    return Cost(seconds, start, read_json(folder / "result.json").get("peak_bytes"), math.ceil(examples / batch))


def horizon(plan: Plan, method: str) -> Json:
    """How long a method trains, as keys of ``train``: the run file's epochs, or the first method's seconds.

    Of equal seconds each has as many evaluations as the first.
    """
    if plan.equal == "epochs":
        return {}
    train, first = plan.base.get("train", {}), cost(plan, plan.methods[0])
    total = train.get("max_steps") or int(train.get("epochs", 10)) * first.steps_per_epoch
    evaluations = math.ceil(total / (train.get("eval_steps") or first.steps_per_epoch))
    steps = cost(plan, method).steps(first.seconds(total))
    return {"max_steps": steps, "eval_steps": math.ceil(steps / evaluations)}


def searches(plan: Plan, method: str) -> list[FleetJob]:
    """The runs that try a method's rates: one fleet, or one run each."""
    settings, rates = as_method(plan, method, **horizon(plan, method)), plan.rates(method)
    if method in ALONE:
        return [
            _write(plan, f"search-{method}-lr{rate:g}", _with_rate(settings, rate), f"rate {rate:g}") for rate in rates
        ]
    names = [f"rate {rate:g}" for rate in rates]
    return [_write(plan, f"search-{method}", {**settings, "fleet": {"grid": {"optimizer.lr": rates}}}, *names)]


@dataclass(frozen=True)
class Trial:
    """A rate and its best score on the selecting split; None: it diverged."""

    rate: float
    score: float | None
    loss: float


def trials(plan: Plan, method: str) -> list[Trial]:
    """What a method's search has found, by rate."""
    found = []
    for job in searches(plan, method):
        rates = {m["name"]: m["config"]["optimizer"]["lr"] for m in read_json(job.folder / "run.json")["members"]}
        for result in read_json(job.folder / "result.json")["members"]:
            best = result["best"] if result["status"] != "diverged" else None
            score = None if best is None else best["metrics"][result["selects_by"]]
            found.append(Trial(rates[result["member"]], score, result["best_loss"] or math.inf))
    return sorted(found, key=lambda trial: trial.rate)


def chosen(plan: Plan, method: str) -> Trial:
    """The trial with the best score on held-out rows, of equals the one with the least loss there."""
    sound = [trial for trial in trials(plan, method) if trial.score is not None]
    if not sound:
        low, high = plan.spaces[method]
        raise UserError(f"method {method} diverged at every rate from {low:g} to {high:g}; give lower ones by --rates")
    return max(sound, key=lambda trial: (trial.score, -trial.loss))


def finals(plan: Plan, method: str) -> list[FleetJob]:
    """The runs of a method's best rate under new seeds: one fleet, or one run each."""
    settings = _with_rate(as_method(plan, method, **horizon(plan, method)), chosen(plan, method).rate)
    seeds = list(range(plan.seed + 1, plan.seed + 1 + plan.seeds))
    if method not in ALONE:
        names = [f"seed {seed}" for seed in seeds]
        return [_write(plan, f"seeds-{method}", {**settings, "fleet": {"seeds": seeds}}, *names)]
    runs = {seed: {**settings, "train": {**settings["train"], "seed": seed}} for seed in seeds}
    return [_write(plan, f"seeds-{method}-seed{seed}", run, f"seed {seed}") for seed, run in runs.items()]


def tested_split(plan: Plan) -> str:
    """Where methods are compared: the test split, or the task's dev split where rows to select on are held out.

    Raises :class:`UserError` where no labelled split is left that selection does not see.
    """
    (result,) = read_json(plan.output / f"measure-{plan.methods[0]}" / "result.json")["members"]
    found = next((split for split in ("test", "test/dev") if result.get(split)), None)
    if found is None and plan.held_out:
        raise UserError(
            "the task has neither a labelled test split nor a dev split, on which methods are compared; give one of them"
        )
    if found is None:
        raise UserError(
            f"data.held_out={show(plan.held_out)}: the task has no labelled test split, and its dev"
            " split selects; leave data.held_out out, so that training rows select"
        )
    return found


def _with_rate(settings: Json, rate: float) -> Json:
    return {**settings, "optimizer": {**settings.get("optimizer", {}), "lr": rate}}


def _write(plan: Plan, name: str, settings: Json, *members: str) -> FleetJob:
    """The run file of some members, who are called something for people."""
    file, whole = plan.output / f"{name}.json", {"name": name, **settings}
    if not file.exists() or read_json(file) != json.loads(json.dumps(whole)):
        write_json(file, whole)
    return FleetJob(file, plan.output / name, list(members))
