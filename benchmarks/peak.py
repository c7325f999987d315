"""The peak memory of work, of training steps above all, each contender in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import Contender
from benchmarks.work import Work, quiet
from model_parallel.memory import process_memory
from prompt_tuning.errors import UserError

Task = Callable[[], Any]

STEPS = 2
M_MMAP_THRESHOLD = -3
"""glibc's number for mallopt."""


def peak_bytes(contender: Contender, work: Work, threads: int) -> int:
    """Bytes at the peak of a training step above what the model took: activations, gradients, optimizer, trained copies.

    As :func:`peak_of` has it. Raises :class:`UserError` where a contender refuses its settings.
    """
    return peak_of(partial(_steps, contender, work), work.device, threads, contender.label)[0]


def peak_of(prepare: Callable[[], Task], device: str, threads: int, label: str) -> tuple[int, Any]:
    """Bytes at the peak of a task above what there was when it was prepared, and what the task returns.

    CPU (Linux, glibc): anonymous memory, sampled every 2 ms. CUDA: allocated memory. ``prepare`` runs in the process that is
    measured. Raises :class:`UserError`, also for a ValueError, as PEFT has it for settings that it refuses.
    """
    # A forked process shares the imports, but not a CUDA context; the parent has run no parallel region.
    context = multiprocessing.get_context("fork" if device == "cpu" else "spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, prepare, device, threads))
    process.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        raise RuntimeError(f"the process that measures {label} died; its message is above") from None
    finally:
        process.join()
    if isinstance(found, str):
        raise UserError(found)
    peak, result = found
    return int(peak), result


def _steps(contender: Contender, work: Work) -> Task:
    step = contender.built(work).step

    def take() -> None:
        for _ in range(STEPS):
            step()

    return take


def _measure(send: Any, prepare: Callable[[], Task], device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    quiet()
    # A fixed threshold gives freed tensors back at once, so that memory in use is seen and not what malloc holds on to:
    # repeated measurements then agree to 1 %, where they differ by 10 % otherwise.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        task = prepare()
        gc.collect()
        send.send(_peak_of_gpu(task) if device == "cuda" else _peak_of_process(task))
    except (UserError, ValueError) as error:  # PEFT raises a ValueError
        send.send(str(error))


def _peak_of_gpu(task: Task) -> tuple[int, Any]:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = task()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def _peak_of_process(task: Task) -> tuple[int, Any]:
    before = process_memory()["anonymous"]
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process_memory()["anonymous"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    result = task()
    done.set()
    watcher.join()
    return peak[0] - before, result
