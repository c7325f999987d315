"""CoNLL-2003: English entities of four types (Tjong Kim Sang and De Meulder 2003), in columns."""

from prompt_tuning.formats.columns import TABLES_OR_COLUMNS, tag_columns, words_and_tags
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.tasks.types import Files, Task

_OFFICIAL = {"train": "eng.train", "dev": "eng.testa", "test": "eng.testb"}
_PATTERNS = {split: (*patterns, _OFFICIAL[split]) for split, patterns in TABLES_OR_COLUMNS.items()}
_TYPES = ("PER", "ORG", "LOC", "MISC")

TASK = Task(
    name="conll03",
    kind="tagging",
    labels=tuple(["O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI")]),
    metrics={"f1": entity_f1, "f1_strict": strict_entity_f1},
    columns=("words",),
    templates={"words": lambda row: ((row["words"], None),)},
    files=Files(folders=("CoNLL03", "conll2003", "conll03"), patterns=_PATTERNS, read=tag_columns()),
    label_column="tags",
    word_columns=("words",),
    expand=words_and_tags,
    hub=("eriktks/conll2003", "conll2003"),
    origin="the texts are Reuters', from NIST; the annotation is at https://www.clips.uantwerpen.be/conll2003/ner",
)
