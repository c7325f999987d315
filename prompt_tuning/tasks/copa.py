"""Choice of plausible alternatives: which of two sentences is the cause or the effect (Roemmele et al. 2011; SuperGLUE)."""

from prompt_tuning.tasks import Pair, Row, Task


def _connective(row: Row) -> tuple[Pair, ...]:
    start = f"{row['premise']} {'because' if row['question'] == 'cause' else 'so'}"
    return ((start, row["choice1"]), (start, row["choice2"]))


TASK = Task(
    name="copa",
    kind="choice",
    labels=("choice1", "choice2"),
    metrics=("accuracy",),
    columns=("premise", "question", "choice1", "choice2"),
    templates={"connective": _connective},
    hub=("aps/super_glue", "copa"),
    folder="COPA",
)
