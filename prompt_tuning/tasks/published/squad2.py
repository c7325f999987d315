"""SQuAD 2.0: as SQuAD 1.1, with questions that the paragraph does not answer (Rajpurkar et al. 2018).

A question is left unanswered where the score of "no answer" exceeds that of the best text; ``best_...`` are at the best
threshold instead, chosen on the same questions, as the official scorer reports them.
"""

from prompt_tuning.formats.squad import questions
from prompt_tuning.metrics.texts import best_exact_match, best_f1, null_exact_match, null_f1
from prompt_tuning.tasks.types import Files, Task

TASK = Task(
    name="squad2",
    kind="span",
    labels=("start", "end"),
    metrics={
        "f1": null_f1,
        "exact_match": null_exact_match,
        "best_f1": best_f1,
        "best_exact_match": best_exact_match,
    },
    columns=("question", "context"),
    templates={"pair": lambda row: ((row["question"], row["context"]),)},
    hub=("rajpurkar/squad_v2", None),
    files=Files(
        folders=("squad2", "squad_v2"),
        patterns={
            "train": ("train-v2.0*.json", "train.json", "train.jsonl", "train.parquet"),
            "dev": ("dev-v2.0*.json", "dev.json", "dev.jsonl", "validation.parquet"),
        },
        read=questions,
    ),
    label_column="answers",
    has_null=True,
)
