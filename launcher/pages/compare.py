"""A comparison of methods as a table and a page: scores under several seeds, differences and how sure they are, costs."""

from __future__ import annotations

import html
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from launcher.pages.html import drawing, new_axes, page
from launcher.pages.scores import print_table, spread
from launcher.runs.comparison import Plan, Trial, chosen, cost, finals, tested_split, trials
from prompt_tuning.metrics import Metric
from prompt_tuning.report.answers import answers_file, read_answers
from prompt_tuning.report.bootstrap import RESAMPLES, Answers, Difference, difference
from prompt_tuning.settings.merge import Json, read_json
from prompt_tuning.storage.records import split_metrics
from prompt_tuning.tasks.find import find_task

COLUMNS = (
    "method", "rate", "score", "seeds", "less the first [95 %]", "trained", "of backbone", "steps", "seconds", "peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One method of a comparison, with its best rate."""

    method: str
    rate: float
    is_at_edge: bool
    """Whether the best of several rates is the lowest or the highest that was tried."""
    trials: list[Trial]
    metric: str
    scores: dict[int, float | None]
    """On the tested split by seed; None: that one diverged."""
    difference: Difference | None
    """To the first method; None for the first itself, and where one of the two has no score."""
    trainable_parameters: int
    backbone_parameters: int
    steps: float
    seconds: float
    """Of a member's training: its steps, as measured of one member alone."""
    peak_bytes: int | None

    @property
    def values(self) -> list[float]:
        """Scores of the seeds that have one."""
        return [score for score in self.scores.values() if score is not None]

    def cells(self) -> list[str]:
        """The side as text, in the order of :data:`COLUMNS`."""
        gap, number = self.difference, len(self.scores)
        return [
            self.method,
            f"{self.rate:g}{'*' if self.is_at_edge else ''}",
            spread(self.values),
            str(number) if len(self.values) == number else f"{len(self.values)}/{number}",
            "-" if gap is None else f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]{' !' if gap.is_sure else ''}",
            f"{self.trainable_parameters:,}",
            f"{100 * self.trainable_parameters / self.backbone_parameters:.3g} %",
            f"{self.steps:,.0f}",
            f"{self.seconds:,.1f}",
            "-" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:,.0f}",
        ]

    def to_json(self) -> Json:
        """All numbers, for programs; losses that are not finite are left out."""
        tried = [{"rate": trial.rate, "score": trial.score} for trial in self.trials]
        return {**asdict(self), "trials": tried}


def read_sides(plan: Plan) -> list[Side]:
    """The methods of a comparison whose runs have all finished, in its order."""
    split, sides = tested_split(plan), list[Side]()
    metric = _metric(plan)
    first: list[Answers] = []
    for method in plan.methods:
        results, answers = _results(plan, method, split)
        if not sides:
            first = answers
        gap = difference(metric, first, answers) if sides and first and answers else None
        best, own = chosen(plan, method), cost(plan, method)
        tried = trials(plan, method)
        steps = statistics.fmean(result["steps"] for result in results)
        name = results[0]["selects_by"]
        sides.append(
            Side(
                method,
                best.rate,
                len(tried) > 2 and best.rate in (tried[0].rate, tried[-1].rate),
                tried,
                name,
                {result["seed"]: split_metrics(result, split).get(name) for result in results},
                gap,
                results[0]["trainable_parameters"],
                results[0]["backbone_parameters"],
                steps,
                own.seconds(steps),
                own.peak_bytes,
            )
        )
    return sides


def _results(plan: Plan, method: str, split: str) -> tuple[list[Any], list[Answers]]:
    """Results of a method's seeds, and the answers of those that were tested."""
    wanted = range(plan.seed + 1, plan.seed + 1 + plan.seeds)
    results, answers = [], []
    for job in finals(plan, method):
        for result in read_json(job.folder / "result.json")["members"]:
            if result["seed"] not in wanted:
                continue
            results.append(result)
            if split_metrics(result, split):
                answers.append(read_answers(answers_file(job.folder / "members" / result["member"], split)))
    return results, answers


def _metric(plan: Plan) -> Metric:
    """The metric by which the task selects."""
    (result,) = read_json(plan.output / f"measure-{plan.methods[0]}" / "result.json")["members"]
    task = find_task(plan.base["task"])
    return {**task.plain_metrics, **task.metrics}[result["selects_by"]]


def notes(plan: Plan, sides: list[Side]) -> list[str]:
    """What the table's numbers are, and what they are not."""
    selects = (
        f"{100 * plan.held_out:g} % of the training rows, held out" if plan.held_out else "the task's own dev split"
    )
    same = "epochs" if plan.equal == "epochs" else f"seconds (those of {plan.methods[0]})"
    seeds = [seed for side in sides for seed in side.scores]
    found = [
        f"Score: {sides[0].metric} on {tested_split(plan)}, mean ± standard deviation over the seeds {min(seeds)} to"
        f" {max(seeds)}. Nothing was selected on it: of {plan.trials} rates a method (seed {plan.seed}) the best on {selects},"
        " was taken, and so was the best step of every run.",
        f"All sides have the same {same}, number of rates, batches and data. The difference is to {plan.methods[0]}, with the"
        f" 95 % interval of {RESAMPLES:,} paired bootstrap resamples of test examples and of seeds; ! marks an interval without 0.",
        "Seconds are a member's steps, as measured of one member alone; peak memory is that of the process that measured them.",
    ]
    if any(side.is_at_edge for side in sides):
        found.append("* The best rate is the lowest or highest that was tried; --rates gives the method another space.")
    return found


def _title(plan: Plan) -> str:
    task = find_task(plan.base["task"]).name
    return (
        f"{task} on {plan.base['backbone']['path'].rstrip('/').removeprefix('package://')}: {len(plan.methods)} methods"
    )


def print_sides(plan: Plan, sides: list[Side]) -> None:
    """The table on the terminal."""
    console = print_table(_title(plan), COLUMNS, [side.cells() for side in sides])
    for note in notes(plan, sides):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def as_markdown(plan: Plan, sides: list[Side]) -> str:
    """The table for documents, with what it says."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(side.cells()) + " |" for side in sides]
    return "\n".join([*lines, "", *notes(plan, sides)]) + "\n"


def write_page(plan: Plan, sides: list[Side]) -> str:
    """The page's HTML. Raises :class:`UserError` without matplotlib."""
    head = "".join(f"<th{_kind(name)}>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_kind(name)}>{html.escape(cell)}</td>" for name, cell in zip(COLUMNS, side.cells(), strict=True)
        )
        + "</tr>"
        for side in sides
    )
    parts = [
        f"<h1>{html.escape(_title(plan))}</h1>",
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        *(f"<p>{html.escape(note)}</p>" for note in notes(plan, sides)),
        f"<h2>Scores of the seeds, and of the rates that were tried</h2><figure>{_figure(plan, sides)}</figure>",
    ]
    return page(_title(plan), parts)


def _kind(column: str) -> str:
    return ' class="text"' if column == "method" else ' class="score"' if column == "score" else ""


def _figure(plan: Plan, sides: list[Side]) -> str:
    """Left the scores of all seeds, right what each rate scored on the rows that selected."""
    figure, (left, right) = new_axes(11, 3.6, columns=2)
    for place, side in enumerate(sides):
        left.scatter([place] * len(side.values), side.values, color=f"C{place}", alpha=0.8)
        if side.values:
            left.hlines(statistics.fmean(side.values), place - 0.25, place + 0.25, color=f"C{place}")
        sound = [(trial.rate, trial.score) for trial in side.trials if trial.score is not None]
        right.plot([rate for rate, _ in sound], [score for _, score in sound], marker="o", label=side.method)
    left.set_xticks(range(len(sides)), [side.method for side in sides])
    left.set(ylabel=f"{sides[0].metric} on {tested_split(plan)}")
    right.set(xscale="log", xlabel="learning rate", ylabel=f"{sides[0].metric} on what selects")
    right.legend(fontsize=8)
    return drawing(figure)
