"""One thread that works; what waits while it works and goes together is done together next. There is no timer."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.serve.limits import Refusal

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """What one request asks of the thread. Jobs of equal ``together`` are run by one call, in the order they came."""

    run: Callable[[list[Any]], list[Any]]
    """From what was prepared of each of some jobs to an answer for each, or the exception that one ends in."""
    together: Hashable | None = None
    """None: runs alone, and no job that came later overtakes it."""
    prepare: Callable[[], tuple[Any, int]] = lambda: (None, 0)
    """What ``run`` takes, and its size in tokens. A job that fails here is answered by itself."""
    answer: Future[Any] = field(default_factory=Future)
    """Cancelled while it waits, the job is dropped."""
    prepared: tuple[Any, int] | None = None


class Batcher:
    """The thread and what waits for it. ``seen`` hears of every batch: how many jobs, and how many tokens."""

    def __init__(self, budget: int, seen: Callable[[int, int], None] = lambda jobs, tokens: None) -> None:
        self.budget = budget
        self._seen = seen
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        # Does not keep a process alive that has given up waiting for it.
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> Batcher:
        """Begin to work."""
        self._thread.start()
        return self

    def put(self, job: Job) -> Future[Any]:
        """Let a job wait; its answer, or the exception that it ends in."""
        with self._changed:
            if self._is_closed:
                raise Refusal(503, "the server is stopping")
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    @property
    def length(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works or waits for work."""
        return self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Take no more jobs, and wait so long for those that are there."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._gather():
            self._run(batch)

    def _gather(self) -> list[Job]:
        """The job that waits longest and those that go with it, up to the budget; none: closed, and nothing waits."""
        batch: list[Job] = []
        total = 0
        while (job := self._take(batch)) is not None:
            if not _is_prepared(job):
                continue
            assert job.prepared is not None
            total += job.prepared[1]
            if batch and total > self.budget:
                with self._changed:
                    self._waiting.appendleft(job)
                break
            batch.append(job)
        return batch

    def _take(self, batch: list[Job]) -> Job | None:
        """The next job of a batch; waits for the first one."""
        with self._changed:
            if not batch:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                return self._waiting.popleft() if self._waiting else None
            together = batch[0].together
            for place, job in enumerate(self._waiting if together is not None else ()):
                if job.together is None:
                    break
                if job.together == together:
                    del self._waiting[place]
                    return job
        return None

    def _run(self, batch: list[Job]) -> None:
        """Answer a batch. Where it fails as a whole each of its jobs is tried by itself."""
        live = [job for job in batch if job.answer.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            self._seen(len(live), sum(job.prepared[1] for job in live if job.prepared))
            answers = _run_jobs(live)
        except Exception as error:
            if len(live) == 1:
                live[0].answer.set_exception(error)
                return
            logger.warning("a batch of %s requests failed (%s); each is tried alone", len(live), error)
            for job in live:
                try:
                    (own,) = _run_jobs([job])
                except Exception as error:
                    job.answer.set_exception(error)
                else:
                    _settle(job, own)
            return
        for job, own in zip(live, answers, strict=True):
            _settle(job, own)


def _run_jobs(jobs: list[Job]) -> list[Any]:
    answers = jobs[0].run([job.prepared[0] for job in jobs if job.prepared])
    assert len(answers) == len(jobs)
    return answers


def _settle(job: Job, answer: Any) -> None:
    if isinstance(answer, Exception):
        job.answer.set_exception(answer)
    else:
        job.answer.set_result(answer)


def _is_prepared(job: Job) -> bool:
    """Whether a job is ready to run; where it fails before, it is answered here."""
    if job.answer.cancelled():
        return False
    try:
        job.prepared = job.prepared or job.prepare()
    except Exception as error:
        if not isinstance(error, (UserError, Refusal)):
            logger.debug("a request could not be prepared", exc_info=True)
        if job.answer.set_running_or_notify_cancel():
            job.answer.set_exception(error)
        return False
    return True
