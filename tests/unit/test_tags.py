"""Spans written as tags in every manner, and read from brackets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.formats.tags import brackets_to_iob2, spans, to_iob2


@st.composite
def sentences(draw):
    """A number of words, and spans (type, first, last) in order that do not overlap; neighbours may touch."""
    found, at = [], 0
    for _ in range(draw(st.integers(0, 4))):
        first = at + draw(st.integers(0, 2))
        last = first + draw(st.integers(0, 3))
        found.append((draw(st.sampled_from(["A", "B", "C-A"])), first, last))
        at = last + 1
    return at + draw(st.integers(1, 2)), found


def write(size, found, inside, single, end):
    """Tags of spans with given prefixes for words inside, for a span of one word, and for its last word."""
    tags = ["O"] * size
    for name, first, last in found:
        for i in range(first, last + 1):
            tags[i] = f"{'B' if i == first else inside}-{name}"
        tags[last] = f"{single if first == last else end}-{name}"
    return tags


def iob1(size, found):
    """B only where a span touches one of its own type."""
    tags = ["O"] * size
    for i, (name, first, last) in enumerate(found):
        tags[first : last + 1] = [f"I-{name}"] * (last + 1 - first)
        if i and found[i - 1][0] == name and found[i - 1][2] == first - 1:
            tags[first] = f"B-{name}"
    return tags


@given(sentence=sentences())
def test_every_manner_of_writing_is_the_same_iob2(sentence):
    size, found = sentence
    iob2 = write(size, found, "I", "B", "I")
    assert to_iob2(iob2) == iob2
    assert to_iob2(iob1(size, found)) == iob2
    assert to_iob2(write(size, found, "I", "U", "L")) == iob2, "BILOU"
    assert to_iob2(write(size, found, "I", "S", "E")) == iob2, "BIOES"
    assert spans(iob2) == found


@given(sentence=sentences())
def test_brackets_are_the_same_spans(sentence):
    size, found = sentence
    cells = ["*"] * size
    for name, first, last in found:
        cells[first] = f"({name}*"
        cells[last] += ")"
    assert spans(brackets_to_iob2(cells)) == found


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["(A*", "(B*", "*)"], "opens inside 'A'"),
        (["*", "*)"], "closes nothing"),
        (["(A*", "*"], "'A' never closes"),
        (["A"], "is not like"),
        (["(*)"], "is not like"),
        (["(A"], "is not like"),
        (["(A(B*))"], "is not like"),
    ],
)
def test_brackets_that_do_not_match_are_refused(cells, why):
    with pytest.raises(ValueError, match=r"word|never") as error:
        brackets_to_iob2(cells)
    assert why in str(error.value)


def test_names_without_a_prefix_stay():
    assert to_iob2(["NOUN", "X-ray", "O"]) == ["NOUN", "X-ray", "O"]
    assert spans(["NOUN", "O"]) == []
