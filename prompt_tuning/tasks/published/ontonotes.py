"""OntoNotes 5: English entities of 18 types (Weischedel et al. 2013), in columns, the tag the last one."""

from prompt_tuning.formats.columns import TABLES_OR_COLUMNS, tag_columns, words_and_tags
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.tasks.types import Files, Task

_TYPES = (
    "CARDINAL",
    "DATE",
    "EVENT",
    "FAC",
    "GPE",
    "LANGUAGE",
    "LAW",
    "LOC",
    "MONEY",
    "NORP",
    "ORDINAL",
    "ORG",
    "PERCENT",
    "PERSON",
    "PRODUCT",
    "QUANTITY",
    "TIME",
    "WORK_OF_ART",
)

TASK = Task(
    name="ontonotes",
    kind="tagging",
    labels=tuple(["O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI")]),
    metrics={"f1": entity_f1, "f1_strict": strict_entity_f1},
    columns=("words",),
    templates={"words": lambda row: ((row["words"], None),)},
    files=Files(folders=("ontoNotes", "ontonotes", "OntoNotes"), patterns=TABLES_OR_COLUMNS, read=tag_columns()),
    label_column="tags",
    word_columns=("words",),
    expand=words_and_tags,
    origin="it is free of charge from https://catalog.ldc.upenn.edu/LDC2013T19; write one word and its tag a line",
)
