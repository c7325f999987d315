"""The verb ``contexts``: a document's prompt beside the document itself in the model's context."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.options import add_prompt
from launcher.prompts import attach_prompt
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.documents.contexts import Worth


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "contexts",
        help="compare a document's prompt with no context, the document's first tokens, and all of it",
        description="Ask the questions of a split behind nothing, behind as many first tokens of the document as the prompt is"
        " long, behind the whole document, and behind the prompt, with transformers' own model and cache. Says the metrics of"
        " the answers, bytes of the keys and values, and tokens written a second.",
    )
    add_prompt(verb)
    verb.add_argument("--data", required=True, metavar="PATH", help="folder with the questions")
    verb.add_argument("--split", default="test", help="train, dev or test (default: test)")
    verb.add_argument("--document", metavar="FILE", help="the document, where it is not at its recorded path")
    verb.add_argument(
        "--batch", type=int, default=8, metavar="N", help="rows that write at once for the rate (default: 8)"
    )
    verb.add_argument(
        "--written", type=int, default=32, metavar="N", help="tokens that each writes for it (default: 32)"
    )
    verb.add_argument("--json", metavar="FILE", help="also write everything to a file")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print a row for each context."""
    from prompt_tuning.data.load import load_task_data
    from prompt_tuning.data.read import Source
    from prompt_tuning.documents.contexts import compare_contexts
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.storage.atomic import write_json
    from prompt_tuning.storage.lines import finite
    from prompt_tuning.tokens.passages import read_document

    for name in ("batch", "written"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give 1 or more")
    exported = load_prompt(options.prompt)
    task = exported.task
    if task.document is None:
        raise UserError(f"--prompt {options.prompt}: it answers {task.name!r}, of kind {task.kind}, and no document")
    document = read_document(options.document or task.document)
    model = attach_prompt(exported, options.backbone)
    data = load_task_data(
        task,
        model.backbone.tokenizer,
        Source(options.data),
        exported.encoding,
        splits=(options.split,),
        labels=exported.labels,
    )
    if options.split not in data.splits:
        raise UserError(f"--split {options.split}: {options.data} has none with answers")
    found = compare_contexts(model, document, data.splits[options.split], options.batch, options.written)
    _show(options.split, len(data.splits[options.split]), found)
    if options.json:
        write_json(Path(options.json), finite({own.context: vars(own) for own in found}))
    return 0


def _show(split: str, rows: int, found: list[Worth]) -> None:
    """The comparison as a table."""
    from launcher.pages.scores import print_table

    names = list(found[0].metrics)
    columns = ("context", "tokens", "MB", *names, "tokens/s")
    cells = [
        [
            own.context,
            str(own.tokens),
            f"{own.num_bytes / 1e6:.3g}",
            *(f"{own.metrics[name]:.4g}" for name in names),
            f"{own.tokens_per_second:.3g}",
        ]
        for own in found
    ]
    print_table(f"{rows} rows of {split}: keys and values in MB, tokens written a second", columns, cells)
