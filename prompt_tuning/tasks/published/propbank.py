"""PropBank over the English Web Treebank: who did what to whom in web text (Bonial et al. 2014; Silveira et al. 2014).

The sentence is followed by the predicate as a second text. ``f1`` counts all spans, the verb's own too, as the published
numbers do; ``f1_without_v`` is that of the CoNLL-2005 scorer.
"""

from collections.abc import Iterable
from pathlib import Path

from prompt_tuning.formats import LocatedRow
from prompt_tuning.formats.columns import argument_columns, propositions
from prompt_tuning.metrics.spans import argument_f1, entity_f1
from prompt_tuning.tasks.types import Files, Task

_PATTERNS = {
    split: (f"ewt_{stem}.*", f"{stem}.*") for split, stem in (("train", "train"), ("dev", "dev"), ("test", "test"))
}

_ewt = argument_columns(word=1, predicate=5, first=6)


def _columns(file: Path) -> Iterable[LocatedRow]:
    """The treebank's words with arguments, or the release's own gold_conll."""
    return propositions(file) if file.suffix == ".gold_conll" else _ewt(file)


TASK = Task(
    name="propbank",
    kind="tagging",
    labels=None,
    metrics={"f1": entity_f1, "f1_without_v": argument_f1},
    columns=("words", "predicate"),
    templates={"predicate": lambda row: ((row["words"], row["predicate"]),)},
    files=Files(folders=("propbank", "srl"), patterns=_PATTERNS, read=_columns),
    label_column="tags",
    word_columns=("words", "predicate"),
    origin="https://github.com/propbank/propbank-release, its words filled in from https://catalog.ldc.upenn.edu/LDC2012T13",
)
