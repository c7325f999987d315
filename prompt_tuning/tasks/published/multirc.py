"""MultiRC: which answers to a question about a paragraph are right (Khashabi et al. 2018; SuperGLUE).

Every answer is an example; EM counts questions whose answers are all judged rightly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prompt_tuning.formats import Row
from prompt_tuning.metrics.groups import all_answers_right, f1_over_answers
from prompt_tuning.tasks.types import Files, Task, yes_or_no


def _answers(row: Row) -> Iterator[Row]:
    """SuperGLUE's files nest questions and answers in a passage; the hub has an answer a row."""
    if not isinstance(row.get("passage"), dict):
        yield row
        return
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label"),
                "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer.get("idx")},
            }


def _question(row: Row) -> Any:
    """What answers to one question share."""
    index = row.get("idx")
    return (index["paragraph"], index["question"]) if isinstance(index, dict) else (row["paragraph"], row["question"])


def _by_question(questions: Sequence[Any], gold: np.ndarray, outputs: np.ndarray) -> tuple[Any, Any]:
    predicted = outputs.argmax(axis=1)
    groups: dict[Any, list[int]] = {}
    for example, question in enumerate(questions):
        groups.setdefault(question, []).append(example)
    return [gold[members] for members in groups.values()], [predicted[members] for members in groups.values()]


TASK = Task(
    name="multirc",
    kind="classification",
    labels=("False", "True"),
    metrics={"f1_a": f1_over_answers, "exact_match": all_answers_right},
    columns=("paragraph", "question", "answer"),
    templates={"pair": lambda row: ((row["paragraph"], f"{row['question']} {row['answer']}"),)},
    cloze={"cloze": lambda row: yes_or_no(row["paragraph"], f"{row['question']} Is it {row['answer']}?")},
    hub=("aps/super_glue", "multirc"),
    files=Files(folders=("MultiRC", "superglue/MultiRC")),
    expand=_answers,
    remember=_question,
    regroup=_by_question,
)
