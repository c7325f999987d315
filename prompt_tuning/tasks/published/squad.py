"""SQuAD 1.1: the piece of a paragraph that answers a question (Rajpurkar et al. 2016)."""

from prompt_tuning.formats.squad import questions
from prompt_tuning.metrics.texts import span_exact_match, span_f1
from prompt_tuning.tasks.types import Files, Task

FILES = {
    "train": ("train-v1.1*.json", "train.json", "train.jsonl", "train.parquet"),
    "dev": ("dev-v1.1*.json", "dev.json", "dev.jsonl", "validation.parquet"),
}

TASK = Task(
    name="squad",
    kind="span",
    labels=("start", "end"),
    metrics={"f1": span_f1, "exact_match": span_exact_match},
    columns=("question", "context"),
    templates={"pair": lambda row: ((row["question"], row["context"]),)},
    hub=("rajpurkar/squad", None),
    files=Files(folders=("squad",), patterns=FILES, read=questions),
    label_column="answers",
)
