"""The verb ``tune``: the best settings of a run file that some time can find."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.clusters.placement import add_placement, count
from launcher.options import add_overrides
from launcher.ranks.exit_codes import STOPPED
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run
from prompt_tuning.storage.lock import locked

if TYPE_CHECKING:
    from launcher.runs.tuning import Score, Tuning


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "tune",
        help="search the settings that matter, within some time, and write the winner's run file",
        description="Search the settings of a run file that matter (rates, length and start of the prompt) within some time:"
        " members drawn at random train as fleets, by halving; the best three and the given settings are trained again"
        " with several seeds. Training rows that are held out select, so dev and test are only reported. The settings"
        " searched are those of fleet.random.distributions where the run file has it. The same command continues.",
    )
    verb.add_argument("config", metavar="CONFIG")
    add_overrides(verb)
    verb.add_argument(
        "--budget", type=duration, default="30m", metavar="TIME", help="such as 90s, 30m or 2h (default: 30m)"
    )
    verb.add_argument("--seeds", type=count, default=3, metavar="N", help="seeds of a finalist (default: 3)")
    verb.add_argument("--output", metavar="DIR", help="folder of the search (default: runs/tune-NAME)")
    add_placement(verb)
    verb.set_defaults(call=run)


def duration(text: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``1.5h``, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def run(options: argparse.Namespace) -> int:
    """Measure the pace, search while there is time, train the finalists, and write the winner."""
    from launcher.runs.tuning import find_tuning, pace_of
    from prompt_tuning.storage.atomic import make_folder

    config = Path(options.config)
    output = Path(options.output or f"runs/tune-{config.stem}")
    if options.backend == "slurm":
        raise UserError("tune waits for its runs, one after the other; give --backend local, mpi or deepspeed")
    tuning = find_tuning(config, options.set, output)
    make_folder(output)
    with locked(output):
        train(options, "the pace", tuning.pace())
        tuning, rate = pace_of(output / "pace", tuning)
        rounds = search(options, tuning, rate)
        final(options, tuning, rounds)
    return 0


def train(options: argparse.Namespace, title: str, file: Path) -> None:
    """Run a run file to its end in the folder beside it. Raises :class:`UserError`; exits where it was asked to stop."""
    from launcher.runs.plan import FleetJob
    from launcher.runs.stages import run_all

    job = FleetJob(file, file.with_suffix(""), [spec.name for spec in load_run(file).members])
    if not run_all(title, [job], options, file.parent):
        say("asked to stop; the same command continues")
        sys.exit(STOPPED)


def search(options: argparse.Namespace, tuning: Tuning, rate: float) -> int:
    """Add rounds to the search while there is time for another and for the final; how many there are.

    Raises :class:`UserError` where there is no time for one.
    """
    from launcher.runs.tuning import read_progress, write_progress

    longest, reserve = (n / rate for n in (tuning.examples_of_a_round, tuning.examples_of_the_final(options.seeds)))
    paces = f"about {in_words(longest)} for a round of the search and {in_words(reserve)} for the final"
    say(f"{rate:.0f} examples a second: {paces}")
    rounds, spent = read_progress(tuning.output)
    if not rounds and longest + reserve > options.budget:
        raise UserError(
            f"--budget {in_words(options.budget)}: at {rate:.0f} examples a second it takes {paces}; give"
            f" {in_words(longest + reserve)} or more, fewer train.epochs, or data.max_train_examples"
        )
    while not rounds or spent + longest + reserve <= options.budget:
        if rounds and tuning.count(rounds + 1) == tuning.count(rounds):
            say("every point of the space has been tried")
            break
        began = time.monotonic()
        train(options, f"round {rounds + 1} of the search", tuning.search(rounds + 1))
        longest = time.monotonic() - began
        rounds, spent = rounds + 1, spent + longest
        write_progress(tuning.output, rounds, spent)
        say(f"round {rounds}: {tuning.count(rounds)} members, {in_words(spent)} of {in_words(options.budget)}")
    return rounds


def final(options: argparse.Namespace, tuning: Tuning, rounds: int) -> None:
    """Train the best few of the search and the given settings with several seeds; write the winner's run file."""
    from launcher.runs.tuning import GIVEN, finalists, scores
    from launcher.verbs import report

    file = tuning.final(finalists(tuning.output / "search"), options.seeds, rounds)
    train(options, "the final", file)
    ranked = scores(file.with_suffix(""))
    show(ranked, options.seeds)
    best = ranked[0]
    kept = "the given settings, which nothing found has beaten" if best.name == GIVEN else best.name
    print(f"{tuning.winner(best)}: {kept}")
    folders = [str(tuning.output / "search"), str(file.with_suffix(""))]
    report.run(argparse.Namespace(runs=folders, output=str(tuning.output)))


def show(ranked: list[Score], seeds: int) -> None:
    """The finalists as a table, the best first."""
    from launcher.pages.scores import print_table, spread

    metric = ranked[0].metric
    splits = ["dev", *sorted({split for score in ranked for split in score.values if split != "dev"})]
    lines = []
    for score in ranked:
        settings = json.dumps(score.overrides) if score.overrides else "the run file's own"
        lines.append([score.name, *(spread(score.values.get(split, [])) for split in splits), settings])
    heads = ["", *(f"{metric}, {'held out' if split == 'dev' else split}" for split in splits), "settings"]
    print_table(f"The final: mean and standard deviation of {seeds} seeds", heads, lines)


def in_words(seconds: float) -> str:
    """A duration such as 40 s, 12 min or 2.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
