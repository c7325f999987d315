"""The driver: promptfleet VERB, where VERB is a file of :mod:`launcher.verbs`.

``promptfleet --help`` and ``validate`` do not import torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from launcher.completion import add_completion
from launcher.ranks.environment import share_processor
from launcher.ranks.exit_codes import INTERRUPTED
from launcher.ranks.stop import Stopped
from prompt_tuning.errors import UserError

DESCRIPTION = """\
Deep prompts (P-tuning v2) for frozen transformer backbones.

Training is started by a launcher that you know, on as many ranks as you like:
  deepspeed launcher/run.py --config configs/quickstart.json
  torchrun --nproc-per-node 2 launcher/run.py --config configs/boolq.json

What comes before and after it:"""

EXAMPLES = """\
examples:
  promptfleet new reviews --data reviews/
  promptfleet validate my.json
  promptfleet validate --no-data configs/*.json
  promptfleet submit configs/boolq.json --backend slurm --nodes 2 --ranks 16 --gpus --time 4:00:00 --dry-run
  promptfleet suite configs/boolq.json configs/copa.json --seeds 3 --output runs/suite
  promptfleet suite configs/*_minilm.json --backend slurm --time 4:00:00 --output runs/suite
  promptfleet tune configs/wnut17_minilm.json --budget 30m
  promptfleet compare configs/quickstart.json --methods deep_prompt,head,lora,full --seeds 3
  promptfleet status runs/suite
  promptfleet report runs/suite
  promptfleet profile configs/quickstart.json --trace trace.json
  promptfleet plan configs/quickstart.json --ranks 8 --memory 24GiB --interconnect 100GB/s
  promptfleet predict --prompt runs/quickstart/members/tickets-deep_prompt-seed11/prompt --input tickets.jsonl
  promptfleet evaluate --prompt runs/boolq/members/boolq-deep_prompt-seed11/prompt --task boolq --data data/BoolQ
  promptfleet export runs/boolq --output exported/
  promptfleet export runs/boolq --format peft --output peft/
  promptfleet export runs/boolq --format onnx --output onnx/
  promptfleet import peft/boolq-deep_prompt-seed11 --backbone roberta-large --task boolq --output imported/
  promptfleet push runs/boolq/members/boolq-deep_prompt-seed11 owner/boolq --license apache-2.0 --dry-run
  promptfleet serve exported/ --port 8000"""


VERBS = (
    "new",
    "validate",
    "submit",
    "suite",
    "tune",
    "compare",
    "status",
    "report",
    "profile",
    "plan",
    "tasks",
    "families",
    "schema",
    "synthesise",
    "contexts",
    "join",
    "predict",
    "evaluate",
    "export",
    "import",
    "push",
    "serve",
)
"""Files of :mod:`launcher.verbs`, in the order of ``--help``; each has ``add(verbs)`` and ``run(options)``."""


def parser() -> argparse.ArgumentParser:
    """The driver's options."""
    options = argparse.ArgumentParser(
        prog="promptfleet",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_completion(options)
    verbs = options.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        importlib.import_module(f"launcher.verbs.{name}").add(verbs)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = parser().parse_args(arguments)
    share_processor()
    try:
        return int(options.call(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'input or output failed'}: {error.strerror or error}", file=sys.stderr)
    except (KeyboardInterrupt, Stopped) as request:
        print("interrupted", file=sys.stderr)
        return request.exit_code if isinstance(request, Stopped) else INTERRUPTED
    return 1


if __name__ == "__main__":
    sys.exit(main())
