"""Words in context: has a word the same meaning in two sentences (Pilehvar and Camacho-Collados 2019; SuperGLUE).

``question`` is the template that P-tuning v2 uses with RoBERTa, ``word_pair`` the one it uses with BERT.
"""

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Pair, Task, yes_or_no


def _question(row: Row) -> tuple[Pair, ...]:
    text = f"{row['sentence1']} {row['sentence2']} Does {row['word']} have the same meaning in both sentences?"
    return ((text, None),)


def _word_pair(row: Row) -> tuple[Pair, ...]:
    return ((f"{row['word']}: {row['sentence1']}", f"{row['word']}: {row['sentence2']}"),)


TASK = Task(
    name="wic",
    kind="classification",
    labels=("False", "True"),
    metrics={"accuracy": accuracy},
    columns=("word", "sentence1", "sentence2"),
    templates={"question": _question, "word_pair": _word_pair},
    cloze={
        "cloze": lambda row: yes_or_no(
            f"{row['sentence1']} {row['sentence2']}", f"Does {row['word']} mean the same in both?"
        )
    },
    hub=("aps/super_glue", "wic"),
    files=Files(folders=("WiC", "superglue/WiC")),
)
