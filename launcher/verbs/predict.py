"""The verb ``predict``: a file's rows, each with what a prompt answers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from launcher.options import add_prompt
from launcher.prompts import attach_prompt
from launcher.ranks.exit_codes import BROKEN_PIPE
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.data.stream import Source
    from prompt_tuning.formats import LocatedRow
    from prompt_tuning.predict import AttachedPrompts
    from prompt_tuning.storage.lines import Lines, Target
    from prompt_tuning.tokens.recipe import Encoding

CHUNK = 1000
"""Rows in memory at once: enough to fill batches of like lengths."""


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "predict",
        help="labels and probabilities for the rows of a file",
        description="Write every row of a file as a line of JSON, with what the prompt answers behind its own columns:"
        " label and probabilities, tags, value, or answer. A row's own columns are never replaced: where any row of the"
        " input has a column of that name, the prediction is called predicted_<name> in all of them. An output file"
        " appears once it is complete; until then its lines gather in <output>.partial, where the same command continues.",
    )
    add_prompt(verb)
    verb.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSONL, CSV, TSV, Parquet, or any file that the task trains on; - for standard input",
    )
    verb.add_argument(
        "--format",
        metavar="SUFFIX",
        help="read the input as a file of this suffix, such as csv or txt (default: its own; jsonl for a pipe)",
    )
    verb.add_argument("--output", default="-", metavar="FILE", help="JSONL to write (default: -, standard output)")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Check the output, look through the input, load the backbone, and write predictions as they come."""
    from prompt_tuning.data.stream import open_source
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.storage.lines import find_target, open_lines, start_of_line

    exported = load_prompt(options.prompt)
    target = find_target(options.output)
    with open_source(options.input, exported.task, options.format) as source:
        survey = look_through(source, exported.encoding)
        model = attach_prompt(exported, options.backbone)
        identity = {"prompt": exported.manifest, "columns": sorted(survey.columns), "is_nested": survey.is_nested}
        try:
            with open_lines(target, identity, (start_of_line(row) for _, row in source.rows())) as lines:
                _write(model, source, lines, target, survey)
        except BrokenPipeError:
            if target.descriptor == 1:  # what is left in its buffer would fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return BROKEN_PIPE
    return 0


@dataclass(frozen=True)
class Survey:
    """What is known of an input before its first prediction."""

    total: int
    columns: set[str]
    """Of all rows together."""
    is_nested: bool
    """Whether some row holds several examples, or none; each row then gets a list of predictions."""


def look_through(source: Source, encoding: Encoding) -> Survey:
    """Look at every row once. Raises :class:`UserError` for one that does not fit the task."""
    from prompt_tuning.predict import prediction_rows
    from prompt_tuning.tokens.rows import checked_text, sequences, template_of

    total, columns, is_nested = 0, set[str](), False
    build = template_of(source.task, encoding.template)
    for where, row in source.rows():
        examples = prediction_rows(source.task, where, row)
        is_nested |= len(examples) != 1
        for _, own in examples:
            for pair in sequences(source.task, where, build, own):
                for text in pair:
                    if isinstance(text, str):
                        checked_text(where, text)
        total += 1
        columns.update(row)
    return Survey(total, columns, is_nested)


def _write(model: AttachedPrompts, source: Source, lines: Lines, target: Target, survey: Survey) -> None:
    """Write the lines that are not there yet, in chunks, with a bar on a terminal."""
    from model_parallel.memory import give_back
    from prompt_tuning.bars import RowsBar
    from prompt_tuning.storage.lines import json_line

    if lines.count:
        print(
            f"{target.partial}: has {lines.count} of {survey.total} rows from an earlier run; continuing",
            file=sys.stderr,
        )
    rows, total = islice(source.rows(), lines.count, None), survey.total
    try:
        with RowsBar(total, lines.count, is_hidden=target.is_terminal) as bar:
            while chunk := list(islice(rows, CHUNK)):
                for part, answers in answered(model, chunk):
                    merged = [merge(*both, survey) for both in zip(part, answers, strict=True)]
                    lines.write([json_line(row) for row in merged])
                    bar.show(lines.count)
                give_back()
    except BaseException:
        if target.file is not None and lines.count:
            print(
                f"{lines.count} of {total} rows are done and kept in {target.partial};"
                " the same command continues behind them",
                file=sys.stderr,
            )
        raise


def answered(
    model: AttachedPrompts, rows: Sequence[LocatedRow]
) -> Iterator[tuple[Sequence[LocatedRow], list[dict[str, Any]]]]:
    """Rows with their predictions; before the error of a bad row is raised, all rows in front of it are answered."""
    try:
        answers = model.predict_located(rows)
    except UserError:
        if len(rows) == 1:
            raise
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            yield from answered(model, half)
        return
    yield rows, answers


def merge(located: LocatedRow, answer: Mapping[str, Any], survey: Survey) -> dict[str, Any]:
    """A row and its prediction behind it, under names that are no column of the input."""
    where, row = located
    merged = dict(row)
    if survey.is_nested and "predictions" not in answer:
        answer = {"predictions": [answer]}
    for key, value in answer.items():
        name = key
        while name in survey.columns:
            name = f"predicted_{name}"
        if name in merged:
            raise UserError(
                f"{where}: column `{name}` was not there when the file was looked through; let it be complete"
            )
        merged[name] = value
    return merged
