"""What a model that nothing has trained is asked: an instruction and examples in front of each source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from model_parallel import rng
from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.rows import own_rows, sequences, template_of

FIRST = 1000
"""Training rows from which examples are drawn, the first ones."""


def member_task(config: RunFile, rows: Mapping[str, Rows]) -> Task:
    """A member's task; of method ``none`` with what stands before its sources. Raises :class:`UserError`."""
    task = find_task(config.task)
    if config.asking is None:
        return task
    text, shots, seed = config.asking
    pairs = _pairs(config, task, rows["train"]) if shots else []
    if len(pairs) < shots:
        raise UserError(f"prompt.shots={shots}: the training split has {len(pairs)} rows with a target; ask for fewer")
    drawn = rng.permutation(rng.key(seed, "shots"), len(pairs)).tolist()[:shots] if shots else []
    examples = [f"{source}{task.separator}{target}\n\n" for source, target in (pairs[place] for place in drawn)]
    return replace(task, lead="".join([f"{text}\n\n" if text else "", *examples]), is_whole=True)


def _pairs(config: RunFile, task: Task, rows: Rows) -> list[tuple[str, str]]:
    """Sources and first targets of the training rows that have both."""
    build, found = template_of(task, config.data.template), []
    for where, row in own_rows(task, list(islice(rows, FIRST))):
        ((source, _),) = sequences(task, where, build, row)
        target = row.get(task.label_column)
        first = target[0] if isinstance(target, list) and target else target
        if isinstance(first, str):
            found.append((source, first))
    return found
