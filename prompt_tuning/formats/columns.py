"""Files of tagged sentences: CoNLL columns, predicates and arguments in columns, and one proposition a line.

A sentence ends at a blank line, at ``-DOCSTART-`` or at the end of the file. Words become ``words``, tags ``tags`` (IOB2),
and a predicate ``predicate``, a list of its words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS, LocatedRow, Reader, Row
from prompt_tuning.formats.tags import OUTSIDE, brackets_to_iob2, to_iob2

logger = logging.getLogger(__name__)

Cells = list[tuple[int, list[str]]]
"""Line number and columns of each word."""


TABLES_OR_COLUMNS = {
    split: tuple(f"{stem}{rest}" for stem in stems for rest in (".*", "/*")) for split, stems in STEMS.items()
}
"""Patterns of files with any suffix, by themselves or in a folder of the split's name."""


def tag_columns(word: int | None = None, tag: int = -1) -> Reader:
    """Reader of one word and its tag a line, among other columns; counted from 0, or from the last as -1.

    Without ``word`` it is the first column, or the second where the first counts the words.
    """

    def read(file: Path) -> Iterator[LocatedRow]:
        sentences = list(_sentences(file))
        is_counted = word is None and _is_counted(sentences)
        if is_counted:
            sentences = _without_extra_rows(file, sentences)
            if tag == -1 and _ends_in_remarks(sentences):
                raise UserError(
                    f"{file}: ten columns as in CoNLL-U, whose last one holds remarks and no tags; name the column of the"
                    " tags: task.tag_column 3 for universal parts of speech, 4 for the language's own"
                )
        for sentence in sentences:
            line, width = sentence[0][0], len(sentence[0][1])
            if width < 2:
                raise UserError(
                    f"{file}:{line}: one column only; a line holds a word and its tag, parted by tab or space"
                )
            _check_width(file, sentence, max((word or 0) + 1, tag + 1, -tag))
            column = int(is_counted) if word is None else word
            words = [cells[column] for _, cells in sentence]
            yield f"{file}:{line}", {"words": words, "tags": to_iob2([cells[tag] for _, cells in sentence])}

    return read


_EXTRA = re.compile(r"[0-9]+[-.][0-9]+")
"""How CoNLL-U counts a row that is no word: several words written as one (1-2), or a word that is not written (8.1)."""


def _is_counted(sentences: list[Cells]) -> bool:
    """Whether the first of three or more columns counts the words, in every sentence of a file."""
    for sentence in sentences:
        numbers = [cells[0] for _, cells in sentence if not _EXTRA.fullmatch(cells[0])]
        if len(sentence[0][1]) < 3 or numbers not in [
            [str(first + i) for i in range(len(numbers))] for first in (0, 1)
        ]:
            return False
    return bool(sentences)


def _ends_in_remarks(sentences: list[Cells]) -> bool:
    """Whether the last of ten columns is CoNLL-U's MISC: ``_`` or ``Name=Value|...``."""
    return all(
        len(cells) == 10 and (cells[-1] == "_" or "=" in cells[-1]) for sentence in sentences for _, cells in sentence
    )


def _without_extra_rows(file: Path, sentences: list[Cells]) -> list[Cells]:
    """Sentences of the words alone; says how many rows are left out."""
    kept = [[row for row in sentence if not _EXTRA.fullmatch(row[1][0])] for sentence in sentences]
    left = sum(map(len, sentences)) - sum(map(len, kept))
    if left:
        logger.info("%s: %d rows are no words of their own (such as 1-2 or 8.1) and are left out", file, left)
    return [sentence for sentence in kept if sentence]


def words_and_tags(row: Row) -> Iterator[Row]:
    """A row under this module's names: ``tokens`` and ``ner_tags`` become ``words`` and ``tags``, and so do ``entities``,
    objects with a ``type``, the first word ``start`` and the word after the last ``end``."""
    names = {"tokens": "words", "ner_tags": "tags"}
    found = row if "words" in row else {names.get(key, key): value for key, value in row.items()}
    if "tags" not in found and isinstance(found.get("entities"), list):
        found = {**found, "tags": _entity_tags(found["entities"], len(found["words"]))}
    yield found


def _entity_tags(entities: list[Any], num_words: int) -> list[str]:
    """Tags of words in IOB2. Raises :class:`ValueError` where an entity has no words, or shares some with another."""
    tags = [OUTSIDE] * num_words
    for entity in entities:
        name, start, end = entity["type"], int(entity["start"]), int(entity["end"])
        if not 0 <= start < end <= num_words or any(tag != OUTSIDE for tag in tags[start:end]):
            raise ValueError(
                f"entity {name} from word {start} to {end} is empty, out of the sentence or inside another"
            )
        tags[start:end] = [f"B-{name}", *[f"I-{name}"] * (end - start - 1)]
    return tags


def argument_columns(word: int, predicate: int, first: int, after: int = 0) -> Reader:
    """Reader of CoNLL propositions: a row for each predicate, its arguments in one column of brackets.

    Args:
        word: column of the words.
        predicate: column that is ``-`` but at predicates.
        first: first column of arguments; the others follow in the order of the predicates.
        after: columns behind the last one of arguments.
    """

    def read(file: Path) -> Iterator[LocatedRow]:
        for sentence in _sentences(file):
            line = sentence[0][0]
            _check_width(file, sentence, max(word, predicate, first - 1) + 1 + after)
            words = [cells[word] for _, cells in sentence]
            marked = [i for i, (_, cells) in enumerate(sentence) if cells[predicate] != "-"]
            columns = range(first, len(sentence[0][1]) - after)
            if len(columns) != len(marked):
                raise UserError(
                    f"{file}:{line}: {len(marked)} predicates but {len(columns)} columns of arguments; give one a predicate"
                )
            for column, place in zip(columns, marked, strict=True):
                where = f"{file}:{line} column {column + 1}"
                try:
                    tags = brackets_to_iob2([cells[column] for _, cells in sentence])
                except ValueError as error:
                    raise UserError(f"{where}: {error}") from None
                yield where, {"words": words, "predicate": [words[place]], "tags": tags}

    return read


def proposition_lines(file: Path) -> Iterator[LocatedRow]:
    """Rows of ``predicate-index word word ... ||| tag tag ...``, one proposition a line, the index from 0."""
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        left, bar, right = line.partition("|||")
        index, words, tags = (left.split() or [""])[0], left.split()[1:], right.split()
        if not bar or not index.isdigit():
            raise UserError(f"{where}: a line is `predicate-index word word ... ||| tag tag ...`")
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} words but {len(tags)} tags; give one tag a word")
        if int(index) >= len(words):
            raise UserError(f"{where}: the predicate is word {index}, counted from 0, but there are {len(words)} words")
        yield where, {"words": words, "predicate": [words[int(index)]], "tags": to_iob2(tags)}


def propositions(file: Path) -> Iterator[LocatedRow]:
    """Rows of either :func:`proposition_lines` or, where no line has ``|||``, of CoNLL-2012's columns."""
    if any("|||" in line for _, line in _lines(file)):
        return proposition_lines(file)
    # document, part, number, word, part of speech, parse, lemma, frameset, and then the arguments (PropBank's gold_conll),
    # or first sense, speaker, entities, and behind the arguments coreference (CoNLL-2012)
    is_short = all(
        len(sentence[0][1]) == 8 + sum(cells[7] != "-" for _, cells in sentence)
        for sentence in _sentences(file)
        if all(len(cells) > 7 for _, cells in sentence)
    )
    return iter(argument_columns(3, 7, 8)(file) if is_short else argument_columns(3, 7, 11, after=1)(file))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            yield number, line.rstrip("\r\n")


def _sentences(file: Path) -> Iterator[Cells]:
    sentence: Cells = []
    for number, line in _lines(file):
        cells = line.split("\t") if "\t" in line else line.split(" ")
        cells = [cell for cell in cells if cell]
        is_comment = line.startswith("#") and (
            cells[0].startswith("# ") if "\t" in line else " = " in line or line.startswith(("#begin ", "#end "))
        )
        if not cells or cells[0] == "-DOCSTART-" or is_comment or line.startswith("#end document"):
            if sentence:
                yield sentence
            sentence = []
        else:
            sentence.append((number, cells))
    if sentence:
        yield sentence


def _check_width(file: Path, sentence: Cells, least: int) -> None:
    """Raise :class:`UserError` unless all words have as many columns, and no fewer than ``least``."""
    line, width = sentence[0][0], len(sentence[0][1])
    if width < least:
        raise UserError(f"{file}:{line}: {width} column(s), but at least {least} are needed")
    for number, cells in sentence:
        if len(cells) != width:
            raise UserError(
                f"{file}:{number}: {len(cells)} columns, but the sentence starts with {width}; give every word as many"
            )
