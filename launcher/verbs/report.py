"""The verb ``report``: tables and one HTML page of finished members."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser("report", help="tables and one HTML page of finished members")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders that hold several")
    verb.add_argument(
        "--output", metavar="DIR", help="folder for report.md, report.csv and report.html (default: the first RUN)"
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print the table, write it as Markdown and CSV, and the page."""
    from launcher.pages.html import write_page
    from launcher.pages.scores import as_csv, as_markdown, print_report, read_groups
    from launcher.pages.search import print_search, searches
    from prompt_tuning.storage.atomic import make_folder, write_text

    folders = [Path(run) for run in options.runs]
    print_report(folders, options.runs[0])
    groups, output = read_groups(folders), Path(options.output or options.runs[0])
    for search in searches(groups):
        print_search(search)
    make_folder(output)
    title = f"{output.resolve().name}: {len(groups)} recipes on {len({group.task for group in groups})} tasks"
    files = {"report.md": as_markdown(groups), "report.csv": as_csv(groups), "report.html": write_page(groups, title)}
    for name, text in files.items():
        write_text(output / name, text)
        print(output / name)
    return 0
