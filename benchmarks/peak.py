"""The peak memory of training steps, each contender in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
from typing import Any

import torch

from benchmarks.contenders import Contender
from benchmarks.work import Work, quiet
from model_parallel.memory import process_memory
from prompt_tuning.errors import UserError

STEPS = 2
M_MMAP_THRESHOLD = -3
"""glibc's number for mallopt."""


def peak_bytes(contender: Contender, work: Work, threads: int) -> int:
    """Bytes at the peak of a training step above what the model took: activations, gradients, optimizer, trained copies.

    CPU (Linux, glibc): anonymous memory, sampled every 2 ms, above that of the process when the model was loaded. CUDA:
    allocated memory above the same. Raises :class:`UserError` where a contender refuses its settings.
    """
    # A forked process shares the imports, but not a CUDA context; the parent has run no parallel region.
    context = multiprocessing.get_context("fork" if work.device == "cpu" else "spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, contender, work, threads))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        raise RuntimeError(f"the process that measures {contender.label} died; its message is above") from None
    finally:
        process.join()
    if isinstance(found, str):
        raise UserError(found)
    return found


def _measure(send: Any, contender: Contender, work: Work, threads: int) -> None:
    torch.set_num_threads(threads)
    quiet()
    # A fixed threshold gives freed tensors back at once, so that memory in use is seen and not what malloc holds on to:
    # repeated measurements then agree to 1 %, where they differ by 10 % otherwise.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        step = contender.built(work).step
        gc.collect()
        send.send(_peak_of_gpu(step) if work.device == "cuda" else _peak_of_process(step))
    except ValueError as error:  # what PEFT raises
        send.send(str(error))


def _peak_of_gpu(step: Any) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_of_process(step: Any) -> int:
    before = process_memory()["anonymous"]
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process_memory()["anonymous"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for _ in range(STEPS):
        step()
    done.set()
    watcher.join()
    return peak[0] - before
