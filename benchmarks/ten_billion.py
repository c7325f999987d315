"""Two training steps of a prompt on a random GLM-4-9B, sharded over tensor ranks: memory, bytes read, seconds.

    python benchmarks/ten_billion.py --folder /tmp/ten_billion

Writes the checkpoint (18.8 GB in bfloat16, LM head included, as published ones have it) unless the folder has it already,
then starts the worker under torchrun. The machine needs about 18 GB of free memory; the LM head is neither read nor kept.
``--layers``, ``--hidden`` and so on shrink the shape, ``--tensor``, ``--ranks`` and ``--zero`` change the topology. ``--tensor 1
--quantize int8`` or ``nf4`` trains a quantised one in one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

    from launcher.ranks.environment import share_processor

    share_processor()

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from typing import Any

import psutil

from model_parallel.memory import process_memory

SHARD_BYTES = 2 * 10**9


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """Config of a GLM-4-9B-0414, or of the smaller one that the options ask for."""
    return {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 128,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": options.intermediate,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": [1],
        "dtype": "bfloat16",
    }


def write_checkpoint(folder: Path, config: dict[str, Any]) -> int:
    """Write random weights as sharded safetensors, a tokenizer and config.json, which comes last; returns the bytes."""
    import torch
    from safetensors.torch import save_file
    from tqdm import tqdm
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    tensors = model.state_dict()
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.05 * total:
        sys.exit(
            f"{folder} has {free / 1e9:.1f} GB free, and the checkpoint takes {total / 1e9:.1f} GB; choose --folder"
        )
    generator, shard, filled, files, where = torch.Generator().manual_seed(0), {}, 0, 0, {}
    for number, (name, tensor) in enumerate(tqdm(tensors.items(), unit="tensor", desc="writing")):
        if name.endswith("norm.weight"):
            shard[name] = torch.ones(tensor.shape, dtype=torch.bfloat16)
        else:
            # Uniform with the standard deviation of the usual start, 0.02; several times faster than Gaussian.
            values = torch.empty(tensor.shape, dtype=torch.bfloat16)
            shard[name] = values.uniform_(-0.0346, 0.0346, generator=generator)
        filled += 2 * tensor.numel()
        if filled >= SHARD_BYTES or number == len(tensors) - 1:
            files += 1
            file = f"model-{files:05d}.safetensors"
            save_file(shard, folder / file)
            where.update(dict.fromkeys(shard, file))
            shard, filled = {}, 0
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return total


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a thousand words that adds nothing to a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i + 2 for i in range(1000)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def write_texts(folder: Path, count: int, words: int) -> None:
    """So many training texts of so many words each, and two of dev; two classes."""
    for split, number in (("train", count), ("dev", 2)):
        rows = [
            {"text": " ".join(f"w{(7 * i + j) % 999}" for j in range(words)), "label": f"c{i % 2}"}
            for i in range(number)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, backbone: Path, options: argparse.Namespace) -> Path:
    """A run file and its data: texts of ``--tokens`` words, two classes."""
    write_texts(folder, 2 * options.batch, options.tokens)
    run = {
        "task": {"kind": "classification", "name": "random"},
        "backbone": {"path": str(backbone), "dtype": "bfloat16", "quantize": options.quantize},
        "data": {"path": str(folder), "max_length": options.tokens + 2},
        "prompt": {"length": 16},
        "train": {"max_steps": 2, "batch_size": options.batch, "log_steps": 1, "eval_steps": 2},
        "parallel": {"tensor": options.tensor, "zero": options.zero},
    }
    file = folder / "run.json"
    file.write_text(json.dumps(run))
    return file


class Watch(threading.Thread):
    """Watches a process and all it starts, twice a second: anonymous and shared memory of each, and the most together."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.root, self.done = psutil.Process(process), threading.Event()
        self.by_process: dict[int, int] = {}
        self.together = 0

    def run(self) -> None:
        while not self.done.wait(0.5):
            held = {}
            for process in [self.root, *self.root.children(recursive=True)]:
                found = process_memory(Path(f"/proc/{process.pid}/status"))
                held[process.pid] = found.get("anonymous", 0) + found.get("shared", 0)
            for pid, size in held.items():
                self.by_process[pid] = max(size, self.by_process.get(pid, 0))
            self.together = max(self.together, sum(held.values()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ten_billion",
        help="where the checkpoint is or goes",
    )
    options.add_argument("--tensor", type=int, default=2, help="tensor ranks (default: %(default)s)")
    options.add_argument("--ranks", type=int, help="ranks in all (default: as many as tensor ranks)")
    options.add_argument("--zero", action="store_true", help="ZeRO-3 over the data ranks")
    options.add_argument("--quantize", choices=["int8", "nf4"], help="store linear layers so (default: as they are)")
    options.add_argument("--layers", type=int, default=40, help="layers (default: %(default)s)")
    options.add_argument(
        "--hidden", type=int, default=4096, help="hidden size, a multiple of 128 (default: %(default)s)"
    )
    options.add_argument("--intermediate", type=int, default=13696, help="MLP width (default: %(default)s)")
    options.add_argument("--vocabulary", type=int, default=151552, help="tokens (default: %(default)s)")
    options.add_argument("--batch", type=int, default=2, help="texts in a step (default: %(default)s)")
    options.add_argument("--tokens", type=int, default=16, help="tokens of a text (default: %(default)s)")
    options.add_argument("--json", type=Path, help="write the figures here too")
    chosen = options.parse_args()
    config = shape(chosen)
    if not (chosen.folder / "config.json").is_file():
        started = time.perf_counter()
        total = write_checkpoint(chosen.folder, config)
        print(f"wrote {total / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")
    elif json.loads((chosen.folder / "config.json").read_text()) != config:
        sys.exit(f"{chosen.folder} holds a checkpoint of another shape; choose another --folder")
    with tempfile.TemporaryDirectory() as scratch:
        report(chosen, train(Path(scratch), chosen))


def train(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start the worker on all ranks; returns the figures."""
    ranks = options.ranks or options.tensor
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={ranks}",
        str(ROOT / "launcher/run.py"),
    ]
    command += [
        "--config",
        str(write_run(scratch, options.folder.resolve(), options)),
        "--output",
        str(scratch / "out"),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    watch = Watch(process.pid)
    watch.start()
    code = process.wait()
    watch.done.set()
    if code:
        sys.exit(f"the worker ended with {code}")
    result = json.loads((scratch / "out" / "result.json").read_text())["members"][0]
    log = (scratch / "out" / "log.txt").read_text().splitlines()
    lines = [line for line in log if "bytes per rank" in line]
    largest = sorted(watch.by_process.values(), reverse=True)[:ranks]
    return {
        "seconds": time.perf_counter() - started,
        "seconds_per_step": result["seconds"] / result["steps"],
        "trainable_parameters": result["trainable_parameters"],
        "backbone_parameters": result["backbone_parameters"],
        "rank_bytes": largest,
        "together_bytes": watch.together,
        "line": lines[0].partition("bytes per rank")[2] if lines else "",
        "fidelity": next((line for line in log if "has a cosine of" in line), ""),
    }


def report(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures, one a line."""
    print(f"backbone without LM head     {figures['backbone_parameters'] / 1e9:.3f} billion parameters, bfloat16")
    print(f"trained                      {figures['trainable_parameters']:,} parameters")
    print(f"bytes per rank              {figures['line']}")
    if figures["fidelity"]:
        print(figures["fidelity"])
    for rank, size in enumerate(figures["rank_bytes"]):
        print(f"anonymous + shared, peak     {size / 1e9:.2f} GB in process {rank}")
    print(
        f"anonymous + shared, together {figures['together_bytes'] / 1e9:.2f} GB at the machine's peak, launcher included"
    )
    print(
        f"seconds per step             {figures['seconds_per_step']:.1f} ({options.batch} texts of {options.tokens} tokens)"
    )
    print(f"seconds in all               {figures['seconds']:.0f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
