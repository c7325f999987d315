"""Choice of plausible alternatives: which of two sentences is the cause or the effect (Roemmele et al. 2011; SuperGLUE)."""

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Gap, Pair, Task

_WORDS = {"cause": "because", "effect": "so"}


def _connective(row: Row) -> tuple[Pair, ...]:
    if row["question"] not in _WORDS:
        raise ValueError(f"question is {row['question']!r}, neither 'cause' nor 'effect'")
    start = f"{row['premise']} {_WORDS[row['question']]}"
    return ((start, row["choice1"]), (start, row["choice2"]))


TASK = Task(
    name="copa",
    kind="choice",
    labels=("choice1", "choice2"),
    metrics={"accuracy": accuracy},
    columns=("premise", "question", "choice1", "choice2"),
    templates={"connective": _connective},
    cloze={"cloze": lambda row: tuple((start, Gap("", choice, "")) for start, choice in _connective(row))},
    hub=("aps/super_glue", "copa"),
    files=Files(folders=("COPA", "superglue/COPA")),
)
