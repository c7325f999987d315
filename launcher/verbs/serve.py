"""The verb ``serve``: prompts over HTTP."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from launcher.clusters.placement import count
from launcher.ranks.environment import VARIABLES
from prompt_tuning.errors import UserError

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
        type=Path,
        help="a prompt's folder, or one with prompts below it, such as a run's",
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
    limits = verb.add_argument_group("limits")
    limits.add_argument(
        "--max-requests", type=count, default=256, metavar="N", help="inside at once; more get 429 (default: 256)"
    )
    limits.add_argument("--max-rows", type=count, default=256, metavar="N", help="of one request (default: 256)")
    limits.add_argument(
        "--max-tokens", type=count, default=1 << 16, metavar="N", help="of one request (default: 65536)"
    )
    limits.add_argument(
        "--max-new-tokens", type=count, default=1024, metavar="N", help="written behind a text (default: 1024)"
    )
    limits.add_argument(
        "--max-body", type=count, default=1 << 20, metavar="BYTES", help="of one request (default: 1048576)"
    )
    limits.add_argument(
        "--timeout", type=count, default=60, metavar="SECONDS", help="from a request to its answer (default: 60)"
    )
    limits.add_argument(
        "--stop-timeout", type=count, default=30, metavar="SECONDS", help="for those inside at the end (default: 30)"
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
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.serve.app import Service
    from prompt_tuning.serve.limits import Keys, Limits
    from prompt_tuning.serve.store import find_prompts

    keys = Keys(read_keys(options.api_keys))
    found = find_prompts(options.folders)
    listener = bind(options.host, options.port)
    quiet_libraries()
    model = attach([load_prompt(folder) for folder in found.values()], options.backbone)
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
    )
    service = Service(model, list(found), options.folders, limits, keys)
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
