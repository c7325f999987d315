"""The verb ``serve``: prompts over HTTP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from launcher.clusters.placement import count
from launcher.options import quantity
from launcher.ranks.environment import VARIABLES
from prompt_tuning.errors import UserError
from prompt_tuning.serve.bounds import Limits

KEYS = "PROMPTFLEET_API_KEYS"


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "serve",
        help="answer requests over HTTP, with many prompts on one backbone",
        description="Answer requests over HTTP with all prompts that lie in and below some folders, on one backbone: rows of"
        " several prompts share its forwards. Prompts may be added out of these folders and removed while it runs. SIGTERM and"
        " Ctrl-C let nobody in any more and end when those inside are answered. docs/serving.md has the requests.",
    )
    verb.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="a prompt's folder, or one with prompts below it, such as a run's; or a prompt's hub id, owner/name[@revision]",
    )
    verb.add_argument("--backbone", metavar="PATH", help="the prompts' backbone, where it is not at its recorded path")
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    verb.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one (default: 8000)")
    verb.add_argument(
        "--api-keys",
        metavar="FILE",
        type=Path,
        help=f"keys, one a line, of which a request has to show one (default: those in the variable {KEYS}, with blanks between)",
    )
    verb.add_argument(
        "--tokens-per-batch", type=count, metavar="N", help="most tokens of one forward (default: as `predict`)"
    )
    _add_limits(verb)
    verb.set_defaults(call=run)


def _add_limits(verb: argparse.ArgumentParser) -> None:
    limits, own = verb.add_argument_group("limits"), Limits()

    def bound(option: str, default: float, metavar: str, what: str) -> None:
        limits.add_argument(
            option, type=count, default=int(default), metavar=metavar, help=f"{what} (default: {int(default)})"
        )

    bound("--max-requests", own.requests, "N", "inside at once; more get 429")
    bound("--max-rows", own.rows, "N", "of one request")
    bound("--max-tokens", own.tokens, "N", "of one request")
    bound("--max-new-tokens", own.new_tokens, "N", "written behind a text")
    bound("--max-body", own.body_bytes, "BYTES", "of one request")
    bound("--timeout", own.seconds, "SECONDS", "from a request to its answer")
    bound("--stop-timeout", own.stop_seconds, "SECONDS", "for those inside at the end")
    limits.add_argument(
        "--prompt-memory",
        metavar="2GiB",
        help="of prompts' tensors on the device; the others are read from their folders when asked for (default: all stay there)",
    )


def run(options: argparse.Namespace) -> int:
    """Find the prompts, load the backbone once, and answer until a signal."""
    try:
        from prompt_tuning.serve.server import bind
        from prompt_tuning.serve.server import run as run_server
    except ImportError:
        raise UserError("`serve` needs extra packages: pip install 'promptfleet[serve]'") from None
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.predict import attach
    from prompt_tuning.prompt.hub import local_copy
    from prompt_tuning.serve.app import Service
    from prompt_tuning.serve.limits import Keys
    from prompt_tuning.serve.shelf import open_prompts
    from prompt_tuning.serve.store import find_prompts

    keys = Keys(read_keys(options.api_keys))
    memory = quantity(options.prompt_memory, "prompt_memory")
    prompt_bytes = None if memory is None else int(memory)
    folders = [local_copy(given) for given in options.folders]  # here alone: clients name no hub ids
    found = find_prompts(folders)
    listener = bind(options.host, options.port)
    quiet_libraries()
    model = attach(open_prompts(found, prompt_bytes), options.backbone)
    if options.tokens_per_batch is not None:
        model.budget = options.tokens_per_batch
    limits = Limits(
        requests=options.max_requests,
        body_bytes=options.max_body,
        rows=options.max_rows,
        tokens=options.max_tokens,
        new_tokens=options.max_new_tokens,
        seconds=options.timeout,
        stop_seconds=options.stop_timeout,
        prompt_bytes=prompt_bytes,
    )
    service = Service(model, list(found), folders, limits, keys)
    host, port = listener.getsockname()[:2]
    if not host.startswith("127.") and host != "::1" and not keys:
        print(f"warning: {host} may be reached from other machines, and no API keys are asked for", file=sys.stderr)
    listener.listen()  # from now on nobody is turned away
    at = f"[{host}]" if ":" in host else host
    print(f"serving {len(found)} prompts on http://{at}:{port}", file=sys.stderr, flush=True)
    return 0 if run_server(service, listener) else 1


def read_keys(file: Path | None) -> list[str]:
    """API keys from a file or the environment. Raises :class:`UserError` for a file without."""
    if file is None:
        return VARIABLES.get(KEYS, "").split()
    try:
        keys = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--api-keys {file}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    if not keys:
        raise UserError(f"--api-keys {file}: no key in it; write one a line, or leave the option out")
    return keys
