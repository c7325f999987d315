"""WNUT-17: emerging and rare entities in posts (Derczynski et al. 2017), in columns."""

from prompt_tuning.formats.columns import TABLES_OR_COLUMNS, tag_columns, words_and_tags
from prompt_tuning.metrics.spans import entity_f1, strict_entity_f1
from prompt_tuning.tasks.types import Files, Task

_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")

TASK = Task(
    name="wnut17",
    kind="tagging",
    labels=tuple(["O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI")]),
    metrics={"f1": entity_f1, "f1_strict": strict_entity_f1},
    columns=("words",),
    templates={"words": lambda row: ((row["words"], None),)},
    files=Files(folders=("wnut17", "ner/wnut17"), patterns=TABLES_OR_COLUMNS, read=tag_columns()),
    label_column="tags",
    word_columns=("words",),
    expand=words_and_tags,
    hub=("leondz/wnut_17", None),
)
