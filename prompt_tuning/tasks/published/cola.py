"""CoLA: is a sentence acceptable English (Warstadt et al. 2019; GLUE)."""

from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS, LocatedRow
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.metrics.classes import accuracy, matthews
from prompt_tuning.tasks.types import Files, Task, named


def _sentences(file: Path) -> Iterator[LocatedRow]:
    """A table, or as CoLA's own files are, without names of columns: source, label, the author's mark, sentence."""
    with file.open(encoding="utf-8-sig") as lines:
        has_names = "sentence" in next(lines, "").rstrip("\r\n").split("\t")
    if has_names:
        yield from TABLES[".tsv"](file)
        return
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:
                continue
            if len(cells) != 4:
                raise UserError(
                    f"{file}:{number}: {len(cells)} columns; a line is source, label, mark and sentence, parted by tabs"
                )
            yield f"{file}:{number}", {"label": cells[1], "sentence": cells[3]}


TASK = Task(
    name="cola",
    kind="classification",
    labels=("unacceptable", "acceptable"),
    metrics={"matthews": matthews, "accuracy": accuracy},
    columns=("sentence",),
    templates={"text": lambda row: ((row["sentence"], None),)},
    hub=("nyu-mll/glue", "cola"),
    files=Files(
        folders=("CoLA", "cola"),
        patterns={
            "train": ("train.*", "in_domain_train.*"),
            "dev": (*(f"{stem}.*" for stem in STEMS["dev"]), "in_domain_dev.*"),
            "test": ("test.*",),
            "test/out_of_domain": ("out_of_domain_dev.*",),
        },
        read=_sentences,
    ),
    expand=named(),
)
