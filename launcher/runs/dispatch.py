"""Running a suite's fleets: on the free hosts of a hostfile, on this machine, or as one SLURM array.

A driver may end at any time: what runs goes on, holds the lock of its folder, and is waited for by the next driver, which
learns from ``starts.jsonl`` where it runs. Whether a start has helped is read from the run folder and never from an exit code,
which some launchers lose: a start that took the run further does not count against the retries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.clusters.backends import Submission, open_process, render, slurm
from launcher.clusters.placement import Place, divide, place_on, submission
from launcher.ranks.exit_codes import STOPPED
from launcher.ranks.stop import DRIVER_SIGNALS, POLL_SECONDS, StopRequest, ask_to_stop
from launcher.runs.journal import queued, read_starts, record_starts, submit_array
from launcher.runs.plan import FleetJob, find_jobs, plan
from launcher.runs.state import owner_of, result_status, saved_step
from prompt_tuning.errors import UserError
from prompt_tuning.storage.atomic import make_folder, write_json
from prompt_tuning.storage.lock import locked

_MOST_FAILURES = 3
"""Starts without progress, one after the other, after which a place gets no more of them."""


def suite(options: argparse.Namespace) -> int:
    """The driver's verb: run every member that is not done yet; the exit code."""
    jobs = find_jobs(options.configs, options.set, options.seeds, not options.no_baselines)
    output = Path(options.output)
    wanted = submission(options, output, output)
    places = divide(wanted)
    if wanted.master and len(places) > 1:
        raise UserError("--master-addr is one address, but fleets run on several groups of hosts; leave it out")
    if wanted.hosts is not None and len(wanted.hosts) % wanted.nodes:
        idle = len(wanted.hosts) % wanted.nodes
        print(f"{idle} of {len(wanted.hosts)} hosts stay idle: a fleet takes {wanted.nodes}", file=sys.stderr)
    make_folder(output)
    with locked(output):
        is_slurm = options.backend == "slurm"
        in_queue = queued(output) if is_slurm else {}
        fleets, done = plan(jobs, output, options.fleet_size, frozenset(in_queue))
        if done:
            print(f"{len(done)} of {len(jobs)} members are done already")
        for name, state in in_queue.items():
            print(f"{name} is in SLURM's queue already ({state})")
        if options.dry_run:
            _say_what_would_run(fleets, wanted, options.backend, places[0], options.retries)
            return 0
        if fleets:
            write_json(output / "suite.json", {"fleets": sorted({*in_queue, *(fleet.file.stem for fleet in fleets)})})
        if is_slurm:
            fleets = [fleet for fleet in fleets if owner_of(fleet.folder) is None]
            if fleets:
                submit_array([_of(wanted, fleet) for fleet in fleets], output, options.retries)
            print(f"promptfleet status {output}   shows how far they are")
            return 0
        dispatcher = Dispatcher(wanted, options.backend, output, places, options.retries)
        failed = dispatcher.run(fleets)
    for fleet in failed:
        print(f"failed: {fleet.file.stem}; its log is {fleet.folder / 'log.txt'}", file=sys.stderr)
    if dispatcher.is_asked_to_stop:
        print("asked to stop; the same command continues", file=sys.stderr)
        return STOPPED
    print(f"promptfleet report {output}   shows the scores")
    return 1 if failed else 0


def _say_what_would_run(fleets: list[FleetJob], wanted: Submission, backend: str, place: Place, retries: int) -> None:
    if backend == "slurm" and fleets:
        placed = [_of(wanted, fleet) for fleet in fleets]
        rendered = slurm.render_array(placed, wanted.output, retries, wanted.output.resolve().name)
        sys.stdout.write(rendered.describe(wanted.variables))
        return
    for fleet in fleets:
        print(f"{fleet.file.stem}: {', '.join(fleet.members)}")
        sys.stdout.write(render(backend, place_on(_of(wanted, fleet), place)).describe(wanted.variables))


@dataclass
class _Running:
    fleet: FleetJob
    place: Place
    process: subprocess.Popen[bytes] | None
    """None: started by an earlier driver, or refused because one of its starts still runs."""
    step: int = 0

    def has_ended(self) -> bool:
        if self.process is not None and self.process.poll() is None:
            return False
        return owner_of(self.fleet.folder) is None


@dataclass
class Dispatcher:
    """Starts fleets on places until all have a result or have used up their retries."""

    submission: Submission
    backend: str
    output: Path
    places: list[Place]
    retries: int
    failures: Counter[str] = field(default_factory=Counter)
    """Starts without progress, by fleet."""
    bad_luck: Counter[Place] = field(default_factory=Counter)
    """The same in a row, by place."""
    left_out: set[Place] = field(default_factory=set)
    has_succeeded: bool = False
    """Whether any start has taken its run further: before that, fleets may be to blame as well as places."""
    is_quiet: bool = False
    """Whether what runs say goes into files even where there is one place."""
    is_asked_to_stop: bool = False
    """Whether :meth:`run` has ended because of a signal."""

    def run(self, fleets: list[FleetJob]) -> list[FleetJob]:
        """Returns the fleets that have failed. Raises :class:`UserError` where a program is not installed."""
        waiting, free = deque(fleets), deque(self.places)
        running = self._already_running(waiting, free)
        failed: list[FleetJob] = []
        with StopRequest(DRIVER_SIGNALS) as stop:
            while True:
                self.is_asked_to_stop = stop()
                if not running and (self.is_asked_to_stop or not waiting):
                    return failed
                while waiting and free and not self.is_asked_to_stop:
                    running.append(self._start(waiting.popleft(), free.popleft(), len(fleets)))
                ended = [job for job in running if job.has_ended()]
                for job in ended:
                    running.remove(job)
                    if self._again(job):
                        waiting.append(job.fleet)
                    elif result_status(job.fleet.folder) != "finished":
                        failed.append(job.fleet)
                    self._give_back(job.place, free)
                if self.is_asked_to_stop:
                    for job in running:
                        ask_to_stop(job.fleet.folder)
                if not ended:
                    time.sleep(POLL_SECONDS)

    def _already_running(self, waiting: deque[FleetJob], free: deque[Place]) -> list[_Running]:
        """What an earlier driver has started and left running; takes it and its hosts out of what is waiting and free."""
        running = []
        hosts = {record["fleet"]: record.get("hosts") for record in read_starts(self.output)}
        for fleet in list(waiting):
            owner = owner_of(fleet.folder)
            if owner is None:
                continue
            waiting.remove(fleet)
            place = next((place for place in free if _names(place) == hosts.get(fleet.file.stem)), ())
            if place != ():
                free.remove(place)
            print(f"{fleet.file.stem} runs already ({owner}); waiting for it", flush=True)
            running.append(_Running(fleet, place, None, saved_step(fleet.folder)))
        return running

    def _start(self, fleet: FleetJob, place: Place, count: int) -> _Running:
        names = ", ".join(fleet.members[:4]) + (", ..." if len(fleet.members) > 4 else "")
        where = f" on {', '.join(_names(place))}" if place else ""
        print(f"{fleet.file.stem}{where}: {len(fleet.members)} members ({names}), one of {count} fleets", flush=True)
        rendered = render(self.backend, place_on(_of(self.submission, fleet), place))
        record_starts(self.output, [{"fleet": fleet.file.stem, "hosts": _names(place)}])
        # Several at once would write into each other's lines.
        log = (
            None if len(self.places) == 1 and not self.is_quiet else (self.output / f"{fleet.file.stem}.txt").open("ab")
        )
        try:
            process = open_process(rendered, log)
        finally:
            if log is not None:
                log.close()
        return _Running(fleet, place, process, saved_step(fleet.folder))

    def _again(self, job: _Running) -> bool:
        """Whether an ended start is to be followed by another; says so."""
        name, step = job.fleet.file.stem, saved_step(job.fleet.folder)
        has_result = result_status(job.fleet.folder) is not None
        if has_result or step > job.step:
            self.has_succeeded, self.bad_luck[job.place] = True, 0
        else:
            self.failures[name] += 1
            self.bad_luck[job.place] += 1
        if has_result:
            return False
        if self.is_asked_to_stop:
            return True
        if self.failures[name] > self.retries:
            return False
        print(f"{name} has ended at step {step} without a result; it starts again", file=sys.stderr, flush=True)
        return True

    def _give_back(self, place: Place, free: deque[Place]) -> None:
        """A place that has just failed waits behind the others; one that fails always is left out while others are there."""
        if place == ():
            return
        is_to_blame = self.bad_luck[place] >= _MOST_FAILURES and self.has_succeeded
        if is_to_blame and len(self.left_out) < len(self.places) - 1:
            self.left_out.add(place)
            names = ", ".join(_names(place))
            print(
                f"{names}: {_MOST_FAILURES} starts in a row have failed; not used any more", file=sys.stderr, flush=True
            )
        elif self.bad_luck[place]:
            free.append(place)
        else:
            free.appendleft(place)


def _names(place: Place) -> list[str]:
    return [host.name for host in place or ()]


def _of(submission: Submission, fleet: FleetJob) -> Submission:
    """The submission of one fleet."""
    return replace(submission, config=fleet.file, output=fleet.folder)
