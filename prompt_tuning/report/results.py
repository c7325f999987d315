"""The results of members and of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import majority_metrics
from prompt_tuning.fleet.member import Member
from prompt_tuning.prompt.export import write_prompt
from prompt_tuning.prompt.full import write_model
from prompt_tuning.report.answers import answers_file, write_answers
from prompt_tuning.report.rates import rate
from prompt_tuning.settings.merge import read_json
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.atomic import write_json
from prompt_tuning.storage.lines import finite
from prompt_tuning.storage.records import MemberResult, RunResult


def finish_member(run: Run, member: Member, tests: dict[str, tuple[dict[str, float], float]]) -> MemberResult:
    """Export a member's best prompt and write its result.json. Returns the result.

    ``tests``: metrics and loss by test split; extra ones, ``test/<name>``, become keys of their own.
    """
    folder = run.output / "members" / member.name
    config, best = member.spec.config, member.best
    exported = None
    if best is not None and member.parameters + member.borrowed:
        export_member(folder / "prompt", member, {"step": best.step, "metrics": best.metrics})
        parts = [part for part in (folder / "prompt", folder / "model") if part.is_dir()]
        exported = sum(file.stat().st_size for part in parts for file in part.iterdir())
    extra: dict[str, Any] = {split: metrics for split, (metrics, _) in tests.items() if split != "test"}
    extra |= {split.replace("test", "test_loss", 1): loss for split, (_, loss) in tests.items() if split != "test"}
    test, test_loss = tests.get("test", (None, None))
    result: MemberResult = {
        "member": member.name,
        "status": member.status,
        "task": member.task.name,
        "method": config.method,
        "seed": config.train.seed,
        "overrides": member.spec.overrides,
        "selects_by": member.task.selects_by,
        "best": None if best is None else {"step": best.step, "metrics": best.metrics},
        "best_loss": None if best is None else best.loss,
        "test": test,
        "test_loss": test_loss,
        "majority": {split: majority_metrics(member, split) for split in member.splits if split != "train"},
        "trainable_parameters": sum(parameter.numel() for _, parameter in member.parameters + member.borrowed),
        "backbone_parameters": member.backbone.num_parameters,
        "exported_bytes": exported,
        "steps": member.step,
        "seconds": round(member.seconds, 3),
        "examples_per_second": rate(member.examples, member.seconds),
    }
    whole = cast(MemberResult, {**result, **extra})
    write_json(folder / "result.json", finite(whole))
    return whole


def keep_answers(run: Run, member: Member, split: str, gold: Any, predicted: Any) -> None:
    """Write a member's answers to a test split beside its result."""
    write_answers(answers_file(run.output / "members" / member.name, split), gold, predicted)


def earlier_result(run: Run, member: Member) -> MemberResult | None:
    """The result that an earlier start of the run has written of a member that has ended; None: it has to be written."""
    folder = run.output / "members" / member.name
    try:
        result = read_json(folder / "result.json")
    except UserError:
        return None
    steps = None if member.best is None else member.best.step
    best = result.get("best")
    as_now = {"member": member.name, "overrides": member.spec.overrides, "status": member.status, "steps": member.step}
    is_its = all(result.get(key) == value for key, value in as_now.items()) and steps == (best and best["step"])
    is_whole = member.best is None or not member.total_steps or (folder / "prompt" / "prompt.json").exists()
    return cast(MemberResult, result) if is_its and is_whole else None


def export_member(folder: Path, member: Member, best: dict[str, Any] | None = None) -> None:
    """Write the prompt of a member, with the tensors it holds now; a backbone that it has trained goes beside it."""
    config, description = member.spec.config, member.description()
    if config.method == "full":
        description["backbone"] |= write_model(folder.parent / "model", member.backbone, config.backbone.attention)
    write_prompt(folder, member.prompt, description, best)


def write_results(
    run: Run, members: Sequence[Member], results: list[MemberResult], peak_bytes: int | None = None
) -> RunResult:
    """Write the run's result.json, its last file, with the rate of all members together. Returns the result.

    ``peak_bytes``: of the rank that held most.
    """
    finished = all(result["status"] in ("finished", "stopped") for result in results)
    seconds = sum(member.seconds for member in members)
    result: RunResult = {
        "name": run.name,
        "status": "finished" if finished else "diverged",
        "seconds": round(seconds, 3),
        "examples_per_second": rate(sum(member.examples for member in members), seconds),
        "peak_bytes": peak_bytes,
        "members": results,
    }
    write_json(run.output / "result.json", finite(result))
    return result
