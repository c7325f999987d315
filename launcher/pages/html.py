"""One self-contained HTML page of a report: table, score against published, training curves, parameters and bytes."""

from __future__ import annotations

import html
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from launcher.pages.scores import COLUMNS, TEXTS, Group, cells, rows
from launcher.pages.search import Search, searches
from prompt_tuning.errors import UserError

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1d2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #dfe3ea; text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: #f4f6f9; } .text { text-align: left; }
tr.other-task td { border-top: 2px solid #9aa5b5; } td.score { font-weight: 600; }
figure { margin: 1rem 0; display: inline-block; } svg { max-width: 100%; height: auto; } p { max-width: 50rem; color: #485366; }
"""


def write_page(groups: list[Group], title: str) -> str:
    """The page's HTML; its plots are drawings inside it. Raises :class:`UserError` without matplotlib."""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>Scores are fractions of 1, mean ± standard deviation over seeds; published numbers are in per cent, of the"
        " paper and of its released code run again. <i>dev</i> is the best evaluation, on which the prompt was selected.</p>",
        "<h2>Scores</h2>",
        _table(groups),
    ]
    for heading, figure in (
        ("Score against published", _published(groups)),
        ("Score and trained parameters", _sizes(groups)),
    ):
        if figure:
            parts += [f"<h2>{heading}</h2>", f"<figure>{figure}</figure>"]
    for search in searches(groups):
        parts += [
            f"<h2>Search: {html.escape(search.task)}</h2>",
            f"<p>{html.escape(search.verdict)}</p>",
            _ranking(search),
            f"<figure>{_search(search)}</figure>",
        ]
    parts.append("<h2>Training curves</h2>")
    parts += [f"<figure>{_curves(task, groups)}</figure>" for task in dict.fromkeys(group.task for group in groups)]
    return page(title, parts)


def page(title: str, parts: list[str]) -> str:
    """A whole page of some parts of HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(groups: list[Group]) -> str:
    kinds = {name: "text" if name in TEXTS else "score" if name == "score" else "" for name in COLUMNS}
    head = "".join(f'<th class="{"text" if kinds[name] == "text" else ""}">{name}</th>' for name in COLUMNS)
    body, last = [], None
    for row in rows(groups):
        mark = ' class="other-task"' if row.group.task != last else ""
        last = row.group.task
        texts = zip(kinds.values(), cells(row), strict=True)
        body.append(f"<tr{mark}>" + "".join(f'<td class="{k}">{html.escape(text)}</td>' for k, text in texts) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def new_axes(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes. Raises :class:`UserError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the HTML page needs an extra package: pip install 'promptfleet[report]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def drawing(figure: Any) -> str:
    """The figure as SVG, the same bytes each time."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "promptfleet", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _published(groups: list[Group]) -> str:
    """Score of every row with a published number against that number, with the line of equality."""
    points = [row for row in rows(groups) if row.paper is not None or row.rerun is not None]
    if not points:
        return ""
    figure, axes = new_axes(6, 5)
    for name, mark in (("paper", "o"), ("rerun", "s")):
        some = [row for row in points if getattr(row, name) is not None]
        ours = [100 * statistics.fmean(row.values) for row in some]
        axes.scatter([getattr(row, name) for row in some], ours, marker=mark, label=name, alpha=0.8)
    for row in points:
        number = row.paper if row.paper is not None else row.rerun
        axes.annotate(f"{row.group.label} {row.metric}", (number, 100 * statistics.fmean(row.values)), fontsize=7)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    axes.set(xlabel="published (per cent)", ylabel="measured here (per cent)")
    axes.legend()
    return drawing(figure)


def _sizes(groups: list[Group]) -> str:
    """The selecting metric of every recipe against its trained parameters, and the bytes of its prompt."""
    from matplotlib.ticker import NullFormatter

    some = [group for group in groups if group.finished and group.finished[0]["exported_bytes"]]
    figure, (left, right) = new_axes(11, 2.5 + 0.14 * len(some), columns=2)
    tasks = list(dict.fromkeys(group.task for group in some))
    marks = dict(zip(dict.fromkeys(group.method for group in some), "osD^v", strict=False))
    for group in some:
        score = statistics.fmean(group.values("dev", group.metrics()[0]))
        place = tasks.index(group.task)
        left.scatter(
            group.finished[0]["trainable_parameters"], score, color=f"C{place % 10}", marker=marks[group.method]
        )
    for place, task in enumerate(tasks):
        left.scatter([], [], color=f"C{place % 10}", label=task)
    for method, mark in marks.items():
        left.scatter([], [], color="grey", marker=mark, label=method)
    left.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    left.set(xscale="log", xlabel="trained parameters", ylabel="dev score of the selecting metric")
    names = [f"{group.task} {group.label}" for group in some]
    right.barh(range(len(some)), [(group.finished[0]["exported_bytes"] or 0) / 1000 for group in some])
    right.set_yticks(range(len(some)), names, fontsize=7)
    right.invert_yaxis()
    right.set(xscale="log", xlabel="kB of an exported prompt")
    for axes in (left, right):
        axes.xaxis.set_minor_formatter(NullFormatter())
    return drawing(figure)


def _ranking(search: Search) -> str:
    """The recipes of a search, the best first."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*search.keys, search.metric, "seeds", "steps"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in search.cells(group)) + "</tr>"
        for group in search.groups
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _search(search: Search) -> str:
    """The score of every recipe against each setting that differs; numbers that span much on a logarithmic axis."""
    figure, several = new_axes(4 * len(search.keys), 3.2, columns=len(search.keys))
    settings = [search.settings(group) for group in search.groups]
    for place, (key, axes) in enumerate(zip(search.keys, np.atleast_1d(several), strict=True)):
        values = [own[place] for own in settings]
        is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        shown = values if is_number else [str(value) for value in values]
        axes.scatter(shown, [search.score(group) for group in search.groups], alpha=0.8)
        if is_number and min(values) > 0 and max(values) / min(values) >= 20:
            axes.set_xscale("log")
        axes.set(xlabel=key, ylabel=f"dev {search.metric}")
    return drawing(figure)


def _curves(task: str, groups: list[Group]) -> str:
    """Training loss and the selecting metric on dev over the steps, one line a member, one colour a recipe."""
    figure, (left, right) = new_axes(11, 3.4, columns=2)
    for number, group in enumerate(group for group in groups if group.task == task):
        for place, folder in enumerate(group.folders):
            lines = _lines(folder / "metrics.jsonl")
            style = {"color": f"C{number % 10}", "linewidth": 1, "label": group.label if place == 0 else None}
            losses = [(line["step"], line["loss"]) for line in lines if line.get("event") == "train"]
            left.plot(*_columns(losses), **style)
            metric = next(iter(group.metrics()), None)
            scores = [
                (line["step"], line["metrics"][metric]) for line in lines if line.get("event") == "dev" and metric
            ]
            right.plot(*_columns(scores), marker=".", **style)
            right.set_ylabel(f"dev {metric}")
    left.set(title=task, xlabel="step", ylabel="training loss")
    right.set(title=task, xlabel="step")
    right.legend(fontsize=8)
    return drawing(figure)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, y in points if y is not None], [y for _, y in points if y is not None]


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a metrics.jsonl."""
    found = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found
