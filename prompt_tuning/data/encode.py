"""Rows become tokens: in chunks, and where there are many in several processes, which give their chunks back in order."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from model_parallel.cores import usable_cores
from prompt_tuning.data.parts import Parts
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import find_kind
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import own_rows

CHUNK = 1000
"""Rows of a file tokenised at once: the tokenizer's own answer takes a hundred times the room of ours."""


def encode(recipe: Recipe, rows: Iterable[LocatedRow]) -> Features:
    """The features of rows, in memory. Raises :class:`UserError`."""
    rows, parts = list(rows), Parts()
    for features in encoded(recipe, rows):
        parts.add(features)
    if not parts.num_examples:
        raise no_example(recipe.task, rows)
    return parts.joined(find_kind(recipe.task.kind))


def no_example(task: Task, rows: Iterable[LocatedRow]) -> UserError:
    """What to say of rows that hold nothing of a task."""
    where, _ = next(iter(rows))
    return UserError(
        f"{where}: neither this row nor any other holds an example of task {task.name!r}; fill or remove them"
    )


def encoded(recipe: Recipe, rows: Iterable[LocatedRow], processes: int = 1) -> Iterator[Features]:
    """The features of rows, part by part; parts without example are left out. Raises :class:`UserError`."""
    if processes == 1:
        for _, chunk in chunks(rows):
            features = _encode(recipe, chunk)
            if features is not None:
                yield features
        return
    yield from _from_processes(recipe, rows, processes)


def num_processes() -> int:
    """How many processes may tokenise here: one for each core that this process may use."""
    return usable_cores() if "fork" in multiprocessing.get_all_start_methods() else 1


def _encode(recipe: Recipe, rows: list[LocatedRow]) -> Features | None:
    own = list(own_rows(recipe.task, rows))
    if not own:
        return None
    return find_kind(recipe.task.kind).encode(recipe, own)


def chunks(rows: Iterable[LocatedRow]) -> Iterator[tuple[int, list[LocatedRow]]]:
    """Rows, :data:`CHUNK` at a time, numbered from 0."""
    stream, number = iter(rows), 0
    while chunk := list(islice(stream, CHUNK)):
        yield number, chunk
        number += 1


class _Failure(NamedTuple):
    """What a process could not do."""

    text: str
    is_users: bool


def _from_processes(recipe: Recipe, rows: Iterable[LocatedRow], processes: int) -> Iterator[Features]:
    """Chunk ``i`` comes from process ``i % processes``. Each reads all rows, which is cheap beside tokenising its own."""
    context = multiprocessing.get_context("fork")
    workers: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        for place in range(processes):
            here, there = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work, args=(recipe, rows, place, processes, there, [*pipes, here]), daemon=True
            )
            worker.start()
            there.close()
            workers.append(worker)
            pipes.append(here)
        number = 0
        while True:
            try:
                found = pipes[number % processes].recv()
            except (EOFError, OSError):
                raise UserError(
                    "a process that tokenises has ended without a word: killed, or out of memory; start again"
                ) from None
            if isinstance(found, _Failure):
                raise UserError(found.text) if found.is_users else RuntimeError(found.text)
            if isinstance(found, str):
                return
            if found is not None:
                yield found
            number += 1
    finally:
        for started in workers:
            started.kill()
            started.join()
        for pipe in pipes:
            pipe.close()


_END = "end"
"""Behind the last chunk of a process."""


def _work(
    recipe: Recipe,
    rows: Iterable[LocatedRow],
    place: int,
    processes: int,
    pipe: Connection,
    others: Sequence[Connection],
) -> None:
    """The life of one process; without the ``others``' ends of pipes it notices when its parent is gone."""
    for other in others:
        other.close()
    try:
        for number, chunk in chunks(rows):
            if number % processes == place:
                pipe.send(_encode(recipe, chunk))
        pipe.send(_END)
    except UserError as error:
        pipe.send(_Failure(str(error), True))
    except BrokenPipeError:
        pass  # the other side has had enough
    except Exception:
        pipe.send(_Failure(traceback.format_exc(), False))
    finally:
        pipe.close()
        os._exit(0)  # nothing of the parent's is to be ended here
