"""The verb ``synthesise``: training rows for documents' prompts, written by the frozen model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.options import add_overrides
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.backbone.find import Description
    from prompt_tuning.backbone.load import Backbone
    from prompt_tuning.documents.synthesise import Asking
    from prompt_tuning.settings.schema import RunFile

PASSAGE_TOKENS = 200


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "synthesise",
        help="questions and answers about a document, written by the frozen model, to train its prompt on",
        description="For each member whose task is of kind 'document': the backbone reads the document passage by passage, asks"
        " itself questions about each, answers them, and what it expects in each place of the answers is kept in train.jsonl of"
        " data.path, from which the run file then trains. Where there is no dev file, every tenth row goes to dev.jsonl."
        " Interrupted, the same command goes on behind the last passage done.",
    )
    verb.add_argument("config", metavar="CONFIG")
    verb.add_argument(
        "--questions",
        type=int,
        default=24,
        metavar="N",
        help="most that the model writes about a passage (default: 24)",
    )
    verb.add_argument(
        "--passage-tokens",
        type=int,
        metavar="N",
        help=f"most tokens of a passage (default: {PASSAGE_TOKENS}, or what the backbone's window leaves)",
    )
    verb.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    verb.add_argument(
        "--beginnings",
        metavar="FILE",
        help="how questions begin, for other languages than English: a JSON object of lists of texts by kind",
    )
    add_overrides(verb)
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Write the rows of every document of the run file."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.settings.members import load_run

    resolved = load_run(options.config, options.set)
    members = {
        (config.data.path, repr(config.task)): config for config in (member.config for member in resolved.members)
    }
    for config in members.values():
        _check(options.config, config)
    if len({path for path, _ in members}) < len(members):
        raise UserError(f"{options.config}: two documents share one data.path; give each a folder of its own")
    quiet_libraries()
    from prompt_tuning.backbone.find import describe_backbone
    from prompt_tuning.prompt.build import check_lengths

    described = describe_backbone(resolved.shared.backbone, writes=True)
    for config in members.values():
        check_lengths(config, described)
    plans = [(config, _asking(options, config, described)) for config in members.values()]
    backbone: Backbone | None = None
    for config, asking in plans:
        backbone = _rows(config, asking, described, backbone)
    return 0


def _check(file: str, config: RunFile) -> None:
    """Raise :class:`UserError` unless a member learns a document in a folder of one's own."""
    from prompt_tuning.tasks.find import find_task

    kind = find_task(config.task).kind
    if kind != "document":
        raise UserError(f"{file}: the task is of kind {kind!r}; synthesise is for kind 'document'")
    if config.data.path is None or config.data.files:
        raise UserError(f"{file}: set data.path to the folder that is to hold train.jsonl, and leave data.files out")


def _asking(options: argparse.Namespace, config: RunFile, described: Description) -> Asking:
    """How a document is asked about. Raises :class:`UserError`."""
    from prompt_tuning.backbone.find import smallest_window
    from prompt_tuning.documents.questions import read_beginnings
    from prompt_tuning.documents.synthesise import NEAR_TOKENS, Asking

    behind = config.data.max_length + config.data.max_target_length + NEAR_TOKENS
    window, positions = smallest_window(described.config), described.family.max_positions(described.config)
    room = min(positions, window or positions) - behind - 1  # for a token that begins the text
    passage = min(PASSAGE_TOKENS, room) if options.passage_tokens is None else options.passage_tokens
    if room < 1 or passage > room:
        raise UserError(
            f"--passage-tokens {max(passage, 1)}: {described.path} leaves {room} beside data.max_length, data.max_target_length"
            f" and {NEAR_TOKENS} for a sentence; lower one of them"
        )
    for name, value in (("questions", options.questions), ("passage-tokens", passage)):
        if value < 1:
            raise UserError(f"--{name} {value}: give 1 or more")
    return Asking(options.questions, passage, options.seed, read_beginnings(options.beginnings))


def _rows(config: RunFile, asking: Asking, described: Description, backbone: Backbone | None) -> Backbone | None:
    """Write the rows of a document that are not there yet, and return the backbone where it was needed."""
    from dataclasses import asdict

    from model_parallel.grid import Grid, local_device
    from prompt_tuning.backbone.load import load_backbone
    from prompt_tuning.bars import RowsBar
    from prompt_tuning.data.load import encoding_of
    from prompt_tuning.documents.files import gathering, is_complete, write_splits
    from prompt_tuning.documents.synthesise import synthesise
    from prompt_tuning.storage.atomic import expand, make_folder
    from prompt_tuning.storage.lines import json_line, open_lines, start_of_line
    from prompt_tuning.tasks.find import find_task
    from prompt_tuning.tokens.passages import cut, read_document
    from prompt_tuning.tokens.tokenise import tokenizer_digest

    task = find_task(config.task)
    assert task.document is not None and config.data.path is not None
    document, path = read_document(task.document), expand(config.data.path)
    passages = cut(document.text, described.tokenizer, asking.passage_tokens)
    encoding = encoding_of(config.data)
    identity: dict[str, Any] = {
        "document": {"sha256": document.digest, "passages": len(passages)},
        "teacher": {
            **config.backbone.model_dump(mode="json", include={"path", "revision", "dtype", "quantize"}),
            "tokenizer": tokenizer_digest(described.tokenizer),
        },
        "asking": {**asdict(asking), "beginnings": {kind: list(own) for kind, own in asking.beginnings.items()}},
        "lengths": [encoding.max_length, encoding.max_target_length],
    }
    make_folder(path)
    if is_complete(path, identity):
        print(f"{path}: its rows are there already")
        return backbone
    target, numbers = gathering(path), range(len(passages))
    with (
        open_lines(target, identity, (start_of_line({"passage": number}) for number in numbers)) as lines,
        RowsBar(len(passages), lines.count, title=f"passages of {Path(task.document).name}") as bar,
    ):
        if lines.count:
            print(f"{path}: {lines.count} of {len(passages)} passages are there from an earlier start", file=sys.stderr)
        if backbone is None and lines.count < len(passages):
            backbone = load_backbone(
                config.backbone, Grid(device=local_device(0)), language=True, description=described
            )
        for number in numbers[lines.count :]:
            assert backbone is not None
            rows = synthesise(backbone, task, encoding, passages[number], number, asking)
            lines.write([json_line({"passage": number, "rows": rows})])
            bar.show(lines.count)
        counts = write_splits(path, identity)
    assert target.file is not None
    target.file.unlink()  # its rows are in the splits now
    said = " and ".join(f"{count} rows in {split}.jsonl" for split, count in sorted(counts.items(), reverse=True))
    print(f"{path}: {said}, about {len(passages)} passages of {task.document}")
    return backbone
