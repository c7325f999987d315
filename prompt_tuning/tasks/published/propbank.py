"""PropBank over the English Web Treebank: who did what to whom in web text (Bonial et al. 2014; Silveira et al. 2014).

The sentence is followed by the predicate as a second text. ``f1`` counts all spans, the verb's own too, as the published
numbers do; ``f1_without_v`` is that of the CoNLL-2005 scorer.
"""

from prompt_tuning.formats.columns import argument_columns
from prompt_tuning.metrics.spans import argument_f1, entity_f1
from prompt_tuning.tasks.types import Files, Task

_PATTERNS = {
    split: (f"ewt_{stem}.*", f"{stem}.*") for split, stem in (("train", "train"), ("dev", "dev"), ("test", "test"))
}

TASK = Task(
    name="propbank",
    kind="tagging",
    labels=None,
    metrics={"f1": entity_f1, "f1_without_v": argument_f1},
    columns=("words", "predicate"),
    templates={"predicate": lambda row: ((row["words"], row["predicate"]),)},
    files=Files(folders=("propbank", "srl"), patterns=_PATTERNS, read=argument_columns(word=1, predicate=5, first=6)),
    label_column="tags",
    word_columns=("words", "predicate"),
    origin="https://github.com/propbank/propbank-release, its words filled in from https://catalog.ldc.upenn.edu/LDC2012T13",
)
