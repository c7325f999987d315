"""CoNLL-2004: English entities of four types from news (Roth and Yih 2004), in columns or as JSON with ``entities``."""

from prompt_tuning.formats.columns import TABLES_OR_COLUMNS, tag_columns, words_and_tags
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.tasks.types import Files, Task

_TYPES = ("Loc", "Peop", "Org", "Other")

_PATTERNS = {split: (*patterns, f"conll04_{split}.*") for split, patterns in TABLES_OR_COLUMNS.items()}

TASK = Task(
    name="conll04",
    kind="tagging",
    labels=tuple(["O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI")]),
    metrics={"f1": entity_f1, "f1_strict": strict_entity_f1},
    columns=("words",),
    templates={"words": lambda row: ((row["words"], None),)},
    files=Files(folders=("CoNLL04", "conll2004", "conll04"), patterns=_PATTERNS, read=tag_columns()),
    label_column="tags",
    word_columns=("words",),
    expand=words_and_tags,
    origin="it comes with https://cogcomp.seas.upenn.edu/page/resource_view/43; write one word and its tag a line",
)
