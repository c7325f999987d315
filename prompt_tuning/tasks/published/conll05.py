"""CoNLL-2005: who did what to whom in the Wall Street Journal, and in the Brown corpus as ``test/brown`` (Carreras and Marquez 2005).

The sentence is followed by the predicate as a second text. ``f1`` counts all spans, the verb's own too, as the published
numbers do; ``f1_without_v`` is that of the CoNLL-2005 scorer.
"""

from prompt_tuning.formats.columns import propositions
from prompt_tuning.metrics.spans import argument_f1, entity_f1
from prompt_tuning.tasks.types import Files, Task

_PATTERNS = {
    "train": ("train.*", "conll05.train.*"),
    "dev": ("dev.*", "conll05.devel.*"),
    "test": ("test.*", "test-wsj.*", "conll05.test.wsj.*"),
    "test/brown": ("test-brown.*", "conll05.test.brown.*"),
}

TASK = Task(
    name="conll05",
    kind="tagging",
    labels=None,
    metrics={"f1": entity_f1, "f1_without_v": argument_f1},
    columns=("words", "predicate"),
    templates={"predicate": lambda row: ((row["words"], row["predicate"]),)},
    files=Files(folders=("CoNLL05", "conll05", "conll2005"), patterns=_PATTERNS, read=propositions),
    label_column="tags",
    word_columns=("words", "predicate"),
    origin="the texts are the LDC's (https://catalog.ldc.upenn.edu/LDC99T42);"
    " write `predicate-index words ||| tags`, one proposition a line",
)
