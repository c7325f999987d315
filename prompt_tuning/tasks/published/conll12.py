"""CoNLL-2012: who did what to whom in OntoNotes 5 (Pradhan et al. 2013).

The sentence is followed by the predicate as a second text. ``f1`` counts all spans, the verb's own too, as the published
numbers do; ``f1_without_v`` is that of the CoNLL-2005 scorer.
"""

from prompt_tuning.formats.columns import propositions
from prompt_tuning.metrics.spans import argument_f1, entity_f1
from prompt_tuning.tasks.types import Files, Task

_PATTERNS = {
    "train": ("train.*", "conll2012.train.*"),
    "dev": ("dev.*", "conll2012.devel.*"),
    "test": ("test.*", "conll2012.test.*"),
}

TASK = Task(
    name="conll12",
    kind="tagging",
    labels=None,
    metrics={"f1": entity_f1, "f1_without_v": argument_f1},
    columns=("words", "predicate"),
    templates={"predicate": lambda row: ((row["words"], row["predicate"]),)},
    files=Files(folders=("CoNLL12", "conll12", "conll2012"), patterns=_PATTERNS, read=propositions),
    label_column="tags",
    word_columns=("words", "predicate"),
    origin="the texts are the LDC's (https://catalog.ldc.upenn.edu/LDC2013T19);"
    " write `predicate-index words ||| tags`, one proposition a line",
)
