"""ReCoRD: which entity of a passage fills the gap in a query (Zhang et al. 2018; SuperGLUE).

Every entity is an example, right or wrong; a query is answered by the entity that is likeliest to be right.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prompt_tuning.formats import Row
from prompt_tuning.metrics.texts import exact_match, f1
from prompt_tuning.tasks.types import Files, Task, yes_or_no

_GAP = "@placeholder"


def _entities(row: Row) -> Iterator[Row]:
    """SuperGLUE's files nest queries in a passage with the places of its entities; the hub has a query a row."""
    if not isinstance(row.get("passage"), dict):
        yield from _candidates(row["passage"], row["entities"], row["query"], row.get("answers"), row.get("idx"))
        return
    passage = row["passage"]["text"]
    names = [passage[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
    for query in row["qas"]:
        answers = query.get("answers")
        texts = None if answers is None else [answer["text"] for answer in answers]
        yield from _candidates(passage, names, query["query"], texts, (row.get("idx"), query.get("idx")))


def _candidates(passage: str, entities: list[str], query: str, answers: list[str] | None, index: Any) -> Iterator[Row]:
    if _GAP not in query:
        raise ValueError(f"the query has no {_GAP}")
    for entity in dict.fromkeys(entities):
        label = None if answers is None else int(entity in answers)
        yield {"passage": passage, "query": query, "entity": entity, "label": label, "answers": answers, "idx": index}


def _pair(row: Row) -> tuple[tuple[str, str], ...]:
    return ((row["passage"].replace("@highlight\n", "- "), row["query"].replace(_GAP, row["entity"])),)


def _query(row: Row) -> Any:
    """What the entities of one query share."""
    return str(row["idx"]), row["passage"], row["query"]


def _remember(row: Row) -> tuple[Any, str, Any]:
    return _query(row), row["entity"], row["answers"]


def _by_query(notes: Sequence[Any], gold: np.ndarray, outputs: np.ndarray) -> tuple[Any, Any]:
    odds = outputs[:, 1] - outputs[:, 0]
    best: dict[Any, int] = {}
    for example, (query, _, _) in enumerate(notes):
        if query not in best or odds[example] > odds[best[query]]:
            best[query] = example
    return [notes[i][2] for i in best.values()], [notes[i][1] for i in best.values()]


TASK = Task(
    name="record",
    kind="classification",
    labels=("False", "True"),
    metrics={"f1": f1, "exact_match": exact_match},
    columns=("passage", "query", "entity"),
    templates={"pair": _pair},
    cloze={"cloze": lambda row: yes_or_no(_pair(row)[0][0], f"{_pair(row)[0][1]} Is this true?")},
    hub=("aps/super_glue", "record"),
    files=Files(folders=("ReCoRD", "superglue/ReCoRD")),
    expand=_entities,
    example=_query,
    remember=_remember,
    regroup=_by_query,
)
