"""A search for the best settings of one run file within some time: plain run files, one after the other.

    pace.json     a few steps of a fleet: what a step costs here
    search.json   members drawn at random, by halving; rounds add members to it while there is time
    final.json    the best few and the given settings, each with several seeds

All are selected on training rows that are held out, so that dev and test are only reported. Every file is an ordinary run
file and can be run by hand; what has been done is read from their run folders.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from launcher.runs.state import training_examples
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.settings.merge import Json, extend, merge, parse_set, put, read_json
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.search import RandomSection
from prompt_tuning.storage.atomic import write_json
from prompt_tuning.storage.records import RunResult, split_metrics, tested_splits

ROUND = 8
"""Members that are drawn at a time, and train at once."""
FINALISTS = 3
HELD_OUT = 0.2
KEEP = 0.5
PACE_STEPS = 12
FEWEST_STEPS = 4
UNEVEN = ("task", "train.batch_size", "train.epochs", "train.max_steps", "train.seed")
"""Keys that no space may have."""
GIVEN = "given"
"""Name of the member with the settings of the run file itself."""

SPACE: Json = {
    "optimizer.relative": {"choice": [True]},
    "optimizer.lr": {"log_uniform": [0.005, 0.1]},
    "optimizer.head_lr": {"log_uniform": [0.0005, 0.02]},
    "prompt.length": {"choice": [8, 16, 32, 64]},
    "prompt.init": {"choice": ["data", "normal"]},
}
"""Where the settings of a deep prompt are drawn from, as ``fleet.random.distributions`` has it."""


@dataclass(frozen=True)
class Tuning:
    """A run file to be tuned."""

    given: Json
    """Its settings."""
    space: Json
    """Distributions by dotted key."""
    output: Path
    batch_size: int
    draws: int = 0
    """Seed of the draws."""
    total_steps: int = 0
    """Of one member from its start to its end; 0: not known yet."""

    @property
    def base(self) -> Json:
        """The settings, with training rows held out to select on."""
        return merge({"data": {"held_out": HELD_OUT}}, self.given)

    @property
    def rungs(self) -> list[int]:
        """Steps at which members are compared and only the better half goes on."""
        return [math.ceil(self.total_steps / 4), math.ceil(self.total_steps / 2)]

    @property
    def examples_of_a_round(self) -> float:
        """That the members of a round see together, those that stop early included."""
        first, second = self.rungs
        steps = ROUND * first + KEEP * ROUND * (second - first) + KEEP**2 * ROUND * (self.total_steps - second)
        return steps * self.batch_size

    def examples_of_the_final(self, seeds: int) -> float:
        """That the finalists and the given settings see together."""
        return (FINALISTS + 1) * seeds * self.total_steps * self.batch_size

    def write(self, name: str, fleet: Json, changes: Json | None = None) -> Path:
        """Write the run file ``name``.json. Returns its path."""
        file = self.output / f"{name}.json"
        write_json(file, {**merge(self.base, changes or {}), "name": name, "fleet": fleet})
        return file

    def pace(self) -> Path:
        """The run file of a few steps of a round's members, hardly evaluated."""
        train = {"max_steps": PACE_STEPS, "log_steps": PACE_STEPS // 2, "eval_steps": PACE_STEPS}
        return self.write(
            "pace", {"random": self._random(ROUND)}, {"train": train, "data": {"max_eval_examples": ROUND}}
        )

    def search(self, rounds: int) -> Path:
        """The run file of so many rounds."""
        halving = {"rungs": self.rungs, "keep": KEEP}
        return self.write("search", {"random": self._random(rounds * ROUND), "concurrent": ROUND, "halving": halving})

    def count(self, rounds: int) -> int:
        """Members that so many rounds have; of equal draws there is one."""
        return len(RandomSection.model_validate(self._random(rounds * ROUND)).points())

    def final(self, found: list[Json], seeds: int, rounds: int) -> Path:
        """The run file of the finalists after so many rounds and of the given settings, each with its seeds."""
        members = [{"name": GIVEN}, *({"name": f"found{place}", **own} for place, own in enumerate(found, 1))]
        first = self.base.get("train", {}).get("seed", 11)
        return self.write(f"final-{rounds}", {"members": members, "seeds": list(range(first, first + seeds))})

    def winner(self, best: Score) -> Path:
        """Write the run file of the best recipe: the given one with what was found."""
        file = self.output / "winner.json"
        held_out = f"{best.metric} {best.selected_by:.4f} on held-out rows, mean of {len(best.values['dev'])} seeds"
        write_json(file, {**merge(self.given, best.overrides), "description": f"Found by a search: {held_out}."})
        return file

    def _random(self, samples: int) -> Json:
        return {"samples": samples, "seed": self.draws, "distributions": self.space}


def read_progress(output: Path) -> tuple[int, float]:
    """Rounds that are done, and the seconds that they took."""
    file = output / "tune.json"
    if not file.exists():
        return 0, 0.0
    found = read_json(file)
    return int(found["rounds"]), float(found["seconds"])


def write_progress(output: Path, rounds: int, seconds: float) -> None:
    """Keep what :func:`read_progress` reads."""
    write_json(output / "tune.json", {"rounds": rounds, "seconds": round(seconds, 1)})


def finalists(search: Path) -> list[Json]:
    """Settings of the best members that trained to the end, the best first. Raises :class:`UserError` where none did."""
    members = read_json(search / "result.json")["members"]
    ended = [member for member in members if member["status"] == "finished" and member["best"]]
    if not ended:
        raise UserError(f"{search}: all members have diverged; give lower rates in fleet.random.distributions")
    ended.sort(key=lambda member: -member["best"]["metrics"][member["selects_by"]])
    return [member["overrides"] for member in ended[:FINALISTS]]


def find_tuning(config: Path, sets: list[str], output: Path) -> Tuning:
    """What a run file asks for. Raises :class:`UserError`, also where it is not one run with settings to be tuned."""
    from prompt_tuning.settings.members import load_run

    run = load_run(config, sets)
    given = extend(read_json(config), config)
    for dotted, value in map(parse_set, sets):
        put(given, dotted, value, f"--set {dotted}")
    fleet = given.pop("fleet", None) or {}
    wrong = sorted({*fleet} - {"random"})
    if wrong:
        raise UserError(
            f"{config}: fleet.{wrong[0]} makes members of its own; tune draws them, from fleet.random.distributions if given"
        )
    random = fleet.get("random") or {}
    space, method = random.get("distributions", SPACE), run.shared.method
    uneven = sorted(key for key in space if key.split(".")[0] == "data" or key in UNEVEN)
    if uneven:
        raise UserError(
            f"{config}: fleet.random.distributions has {uneven[0]}, but members are compared after equal steps on equal rows;"
            " take it out, and tune once for each of its values"
        )
    if not random and method != "deep_prompt":
        raise UserError(
            f"{config}: method {show(method)} has no space of its own to search; give fleet.random.distributions"
        )
    for key in ("name", "output", "$schema", "published", "description"):
        given.pop(key, None)
    if run.shared.train.patience is not None:
        raise UserError(f"{config}: train.patience would end members at steps of their own; leave it out")
    return Tuning(given, space, output, run.shared.train.batch_size, random.get("seed", 0))


def pace_of(folder: Path, tuning: Tuning) -> tuple[Tuning, float]:
    """The same tuning with the steps of one member, and examples a second, from the run folder of its pace."""
    examples = training_examples(folder)
    lines = (folder / "throughput.jsonl").read_text(encoding="utf-8").splitlines()
    rate = json.loads(lines[-1])["examples_per_second"]
    train = RunFile.model_validate(tuning.base).train
    total = train.max_steps or train.epochs * math.ceil(examples / train.batch_size)
    if total < FEWEST_STEPS:
        raise UserError(
            f"a member trains {total} steps, too few to be compared with others on the way; give train.epochs or"
            f" train.max_steps for at least {FEWEST_STEPS}"
        )
    return replace(tuning, total_steps=total), float(rate)


@dataclass(frozen=True)
class Score:
    """One of the final's recipes: its name, settings, and scores of its seeds by split."""

    name: str
    overrides: Json
    metric: str
    values: dict[str, list[float]]

    @property
    def selected_by(self) -> float:
        """Its mean score on the rows that were held out."""
        return statistics.fmean(self.values["dev"])


def scores(final: Path) -> list[Score]:
    """The final's recipes, the best first by the held-out rows; of equals the given settings."""
    found: dict[str, Score] = {}
    for member in cast(RunResult, read_json(final / "result.json"))["members"]:
        name, metric = re.sub(r"-seed\d+$", "", member["member"]), member["selects_by"]
        train = {key: value for key, value in member["overrides"].get("train", {}).items() if key != "seed"}
        overrides = {key: value for key, value in {**member["overrides"], "train": train}.items() if value != {}}
        score = found.setdefault(name, Score(name, overrides, metric, {}))
        for split in ("dev", *tested_splits(member)):
            metrics = split_metrics(member, split)
            if metric in metrics:
                score.values.setdefault(split, []).append(metrics[metric])
    able = [score for score in found.values() if score.values.get("dev")]
    return sorted(able, key=lambda score: (-score.selected_by, score.name != GIVEN))
