"""Training of a run: from its settings to members' prompts and results. Reads top to bottom from :func:`train`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from model_parallel.collectives import any_rank, barrier, broadcast_object, gather_objects, wait_long
from model_parallel.grid import Grid
from model_parallel.memory import peak_memory
from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.load import TaskData, task_data
from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint
from prompt_tuning.fleet.divergence import Pending
from prompt_tuning.fleet.divergence import stop as stop_diverged
from prompt_tuning.fleet.evaluate import evaluate
from prompt_tuning.fleet.fidelity import say_fidelity
from prompt_tuning.fleet.halving import halve
from prompt_tuning.fleet.member import Best, Member
from prompt_tuning.fleet.step import Fleet, StepRecord
from prompt_tuning.kinds import find_kind
from prompt_tuning.placement.foresee import foresee
from prompt_tuning.prompt.build import build_prompt, check_lengths
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.prompt.initialise import measure_scale, start_from_data, start_from_ids, start_from_prompt, start_ids
from prompt_tuning.report.boards import check_boards
from prompt_tuning.report.curve import open_progress
from prompt_tuning.report.holdings import prove_frozen
from prompt_tuning.report.metrics_log import MetricsLog
from prompt_tuning.report.progress import Progress
from prompt_tuning.report.rates import Rates
from prompt_tuning.report.results import earlier_result, finish_member, keep_answers, write_results
from prompt_tuning.settings.identity import experiment
from prompt_tuning.settings.run import MemberSpec, Run
from prompt_tuning.storage.records import MemberResult, RunResult
from prompt_tuning.tasks.find import find_task

logger = logging.getLogger(__name__)


def train(run: Run, grid: Grid, stop: Callable[[], bool] = lambda: False) -> RunResult | None:
    """Train all members of ``run`` (continuing from its newest checkpoint), write their results, return the run's result.

    Where ``stop`` asks for it on any rank the run is checkpointed and left for later; the result is then None. Several
    ranks agree on that every ``train.log_steps``, one process alone after each step.
    """
    check_boards(run.shared.train, grid)
    checkpoints, names = run.output / "checkpoints", [spec.name for spec in run.members]
    path = _newest(checkpoints, grid)
    run = run if path is None else checkpoint.in_order(path, run)
    fleet = build_fleet(run, grid)
    prove_frozen(fleet)
    step = 0
    if path is None:
        say_fidelity(fleet)
    else:
        step = _resume(fleet, path, run)
    ended = [member for member in fleet.members if member.status != "running"]
    log, pending, rates = MetricsLog(run, fleet, step), Pending(fleet), Rates(fleet.members)
    judged = set[int]()  # members evaluated since the last checkpoint
    ahead = [m.total_steps - m.step for m in fleet.members if m.status == "running"]
    horizon = step + max(max(ahead, default=0), math.ceil(sum(ahead) / fleet.concurrent))
    stop()  # what is asked from here on is answered after a step
    with log, open_progress(horizon, step, visible=grid.is_first) as progress:
        _evaluate(fleet, [index for index in fleet.running() if not fleet.members[index].total_steps], log, progress)
        _finish(fleet)
        while fleet.running():
            step += 1
            _step(fleet, pending, rates)
            due = _due(fleet)
            is_logged = bool(due) or step % run.shared.train.log_steps == 0
            if is_logged:
                log.steps(pending.read())
                log.throughput(rates.settle(step))
                progress.show(step, log.latest)
            judged.update(due)
            _evaluate(fleet, [index for index in due if fleet.members[index].status == "running"], log, progress)
            _finish(fleet)
            fleet.free_ended()
            stops = fleet.running() and (is_logged or grid.size == 1) and any_rank(stop(), grid)
            if _checkpoint_due(run, step, judged, fleet) or not fleet.running() or stops:
                log.steps(pending.read())
                log.throughput(rates.settle(step))
                if grid.is_first:
                    checkpoint.save(checkpoints, fleet, step, experiment(run), run.shared.train.keep_checkpoints)
                wait_long(grid)
                barrier(grid)
                judged.clear()
            if stops:
                logger.warning("asked to stop: step %d is saved, and the same command continues from it", step)
                return None
    if fleet.backbone.zero is not None:
        most = fleet.backbone.zero.peak_numel / fleet.backbone.num_parameters
        logger.info("ZeRO-3 gathered at most %.1f %% of the backbone at once on this rank", 100 * most)
    return _results(run, fleet, names, ended)


def build_fleet(run: Run, grid: Grid) -> Fleet:
    """Read every member's data, then load the backbone once and build the untrained prompts."""
    shared = run.shared
    described = describe_backbone(shared.backbone, run.writes)
    data: dict[str, TaskData] = {}
    for spec in run.members:
        identity = _data_of(spec)
        if identity not in data:
            data[identity] = task_data(spec.config, described.tokenizer, described.has_encoder)
            for features in data[identity].splits.values():
                described.check_tokens(features.largest_token)
        check_lengths(spec.config, described)
    starts = start_ids([spec.config for spec in run.members], described)
    wait_long(grid)  # hosts differ in what they have kept of large data
    _check_same_data(data, grid)
    if grid.is_first:
        longest = max(int(np.diff(found.splits["train"].offsets).max(initial=0)) for found in data.values())
        foresee(run, described, longest, grid)
    backbone = load_backbone(
        shared.backbone,
        grid,
        dropout=shared.train.backbone_dropout,
        activation_checkpointing=shared.train.activation_checkpointing,
        trainable=shared.method == "full",
        zero=shared.deepspeed.model_dump(exclude_none=True) if shared.parallel.zero else None,
        language=any(spec.config.asks_language_model for spec in run.members),
        description=described,
    )
    members: list[Member] = []
    for spec, ids in zip(run.members, starts, strict=True):
        lender = members[0] if run.shared_prompt and members else None
        members.append(_build_member(spec, backbone, data[_data_of(spec)], lender, ids))
    longest = max(member.total_steps for member in members)
    if run.halving is not None and run.halving.rungs[-1] >= longest:
        raise UserError(f"fleet.halving.rungs={run.halving.rungs}: members end after {longest} steps; give lower rungs")
    return Fleet(backbone, members, grid, run.halving, len(members) if run.shared_prompt else run.concurrent)


def _check_same_data(data: dict[str, TaskData], grid: Grid) -> None:
    """Raise :class:`UserError` where ranks have read other data under the same settings, as from copies on their hosts."""
    own = {
        (number, split): (found.labels, len(features), features.digest)
        for number, found in enumerate(data.values())
        for split, features in found.splits.items()
    }
    everyone = gather_objects(own, grid)
    for rank, other in enumerate(everyone):
        for number, split in sorted({*everyone[0], *other}):
            if everyone[0].get((number, split)) != other.get((number, split)):
                raise UserError(
                    f"rank {rank} has read another {split} split or other labels than rank 0; give all hosts the same data"
                )


def _data_of(spec: MemberSpec) -> str:
    """Equal for members that train and are judged on the same tokens."""
    return repr((spec.config.task, spec.config.data, spec.config.asking))


def _build_member(
    spec: MemberSpec, backbone: Backbone, data: TaskData, lender: Member | None, ids: np.ndarray | None
) -> Member:
    """A member with its untrained prompt, whose prefix is ``lender``'s where there is one; ``ids`` are what it starts from."""
    config = spec.config
    task = find_task(config.task)
    prompt = build_prompt(config, backbone, len(data.labels), find_kind(task.kind))
    if prompt.prefix is not None and prompt.prefix.scale is not None:
        measure_scale(prompt.prefix, backbone, data.splits["train"])
    if ids is not None:
        start_from_ids(prompt, backbone, ids)
    if config.prompt.init == "data" and prompt.length:
        start_from_data(prompt, backbone, data.splits["train"], config.train.seed)
    if config.prompt.init_from is not None:
        source = load_prompt(config.prompt.init_from)
        source.check_backbone(backbone)
        start_from_prompt(prompt, source.prompt, config.prompt.init_from)
    borrowed = []
    if lender is not None:
        prompt.prefix = lender.prompt.prefix
        borrowed = [(name, p) for name, p in prompt.trained() if name.startswith("prefix.")]
    prompt.to(backbone.grid.device)
    return Member(spec, task.for_labels(data.labels), data.labels, data.splits, prompt, backbone, borrowed)


def _newest(folder: Path, grid: Grid) -> Path | None:
    """The newest sound checkpoint, the same on every rank; None: there is none."""
    path = None
    if grid.is_first:
        path = checkpoint.newest(folder)
        checkpoint.set_aside(folder, path)
    path = broadcast_object(path, grid)
    return None if path is None else Path(str(path))


def _resume(fleet: Fleet, path: Path, run: Run) -> int:
    """Load a checkpoint; members that bear another name now take their folders with them. Returns the step."""
    step = checkpoint.load(path, fleet, experiment(run))
    logger.info("continuing from %s", path)
    for saved, member in zip(checkpoint.read_state(path)["members"], fleet.members, strict=False):
        old, new = (run.output / "members" / name for name in (saved["name"], member.name))
        if fleet.grid.is_first and old != new and old.exists() and not new.exists():
            old.rename(new)
            logger.info("%s is now called %s", old.name, new.name)
    return step


def _step(fleet: Fleet, pending: Pending, rates: Rates) -> None:
    rates.begin()
    record: StepRecord = fleet.train_step(fleet.active())
    rates.count(record)
    for index in record.members:
        member = fleet.members[index]
        member.examples += len(member.step_examples(member.step))
        member.step += 1
    pending.add(record)


def _due(fleet: Fleet) -> list[int]:
    """Members at work that have reached an evaluation or their last step."""
    due = []
    for index in fleet.active():
        member = fleet.members[index]
        every = member.spec.config.train.eval_steps or member.steps_per_epoch
        if member.step % every == 0 or member.step >= member.total_steps or fleet.is_at_rung(member):
            due.append(index)
    return due


def _evaluate(fleet: Fleet, due: list[int], log: MetricsLog, progress: Progress) -> None:
    """Evaluate members on dev together, keep each one's best, stop those without progress."""
    if not due:
        return
    for index, (metrics, loss) in evaluate(fleet, due, "dev").items():
        member = fleet.members[index]
        log.evaluation(index, metrics, loss)
        if not math.isfinite(loss):
            stop_diverged(member, member.step, fleet.grid.is_first)
            continue
        key = member.task.selects_by
        if fleet.is_at_rung(member):
            member.rungs[member.step] = metrics[key]
        if member.best is None or metrics[key] > member.best.metrics[key]:
            member.best = Best(member.step, metrics, loss, member.tensors())
            member.stale = 0
        else:
            member.stale += 1
        progress.evaluated(member, metrics)
        patience = member.spec.config.train.patience
        if patience is not None and member.stale >= patience:
            member.status = "stopped"
    if fleet.halving is not None:
        halve(fleet.members, due, fleet.halving, fleet.grid.is_first)


def _finish(fleet: Fleet) -> None:
    for index in fleet.running():
        member = fleet.members[index]
        if member.step >= member.total_steps:
            member.status = "finished"


def _checkpoint_due(run: Run, step: int, judged: set[int], fleet: Fleet) -> bool:
    """Every ``train.checkpoint_steps``, or once all members at work were evaluated since the last checkpoint."""
    every = run.shared.train.checkpoint_steps
    return bool(judged) and judged >= set(fleet.active()) if every is None else step % every == 0


def _results(run: Run, fleet: Fleet, names: list[str], ended: list[Member]) -> RunResult:
    """Test every member with its best tensors, export its prompt and write results, the run's own last.

    ``names``: members in the order of the run file; ``ended``: those that had ended before this start, which keep a result.
    """
    found = {m.name: earlier_result(run, m) for m in ended} if fleet.grid.is_first else {}
    kept: dict[str, MemberResult] = broadcast_object({n: r for n, r in found.items() if r is not None}, fleet.grid)
    for member in fleet.members:
        member.part()
        if member.best is not None:
            member.load_tensors(member.best.tensors)
    tests: list[dict[str, tuple[dict[str, float], float]]] = [{} for _ in fleet.members]
    keep = partial(keep_answers, run) if fleet.grid.is_first else None
    for split in dict.fromkeys(name for m in fleet.members for name in m.splits if name.startswith("test")):
        able = [i for i, m in enumerate(fleet.members) if split in m.splits and m.best is not None]
        tested = [i for i in able if fleet.members[i].name not in kept]
        for index, scores in (evaluate(fleet, tested, split, keep) if tested else {}).items():
            tests[index][split] = scores
    results = dict(kept)
    if fleet.grid.is_first:
        for member, scores_by_split in zip(fleet.members, tests, strict=True):
            if member.name not in kept:
                results[member.name] = finish_member(run, member, scores_by_split)
    peaks = [peak for peak in gather_objects(peak_memory(fleet.grid.device), fleet.grid) if peak is not None]
    ordered = [results[name] for name in names] if fleet.grid.is_first else []
    result = write_results(run, fleet.members, ordered, max(peaks, default=None)) if fleet.grid.is_first else None
    wait_long(fleet.grid)  # the first rank has exported and written for all
    whole: RunResult = broadcast_object(result, fleet.grid)
    return whole
