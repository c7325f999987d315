"""Whatever a file holds, it is features or one clear error: every task, every reader."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source, read_rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats.columns import argument_columns, propositions, tag_columns
from prompt_tuning.formats.squad import questions
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Files, Task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.rows import ROWS
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer(with_mask=True)
TOKENIZER.eos_token = "[SEP]"
FIXTURE = [HealthCheck.function_scoped_fixture]
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.just(["w1"]), st.just({"text": 3}), st.just([{"text": "w1"}]), st.just("\ud800"), st.just(["w1", 2]),
)  # fmt: skip


def places(value, path=()):
    """Every place inside a value of JSON."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


@settings(max_examples=400, deadline=None, suppress_health_check=FIXTURE)
@given(data=st.data(), name=st.sampled_from(sorted(ROWS)), odd=ODD, is_removed=st.booleans())
def test_a_row_with_anything_in_any_place_is_features_or_one_error(tmp_path, data, name, odd, is_removed):
    task = find_task(name)
    rows = copy.deepcopy(ROWS[name])
    path = data.draw(st.sampled_from([path for path in places(rows) if len(path) > 1]))
    holder = rows
    for key in path[:-1]:
        holder = holder[key]
    if is_removed:
        del holder[path[-1]]
    else:
        holder[path[-1]] = odd
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    template = data.draw(st.sampled_from(sorted(task.all_templates())))
    try:
        found = load_task_data(task, TOKENIZER, Source(str(tmp_path)), Encoding(40, template, stride=3))
    except UserError as error:
        assert "train.jsonl" in str(error) or "task" in str(error) or "dev.jsonl" in str(error)
        return
    assert found.splits["train"].is_labelled


def test_rows_without_any_example_are_named(tmp_path):
    row = json.loads(json.dumps(ROWS["record"][0]))
    row["passage"]["entities"] = []
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        UserError, match=r"train\.jsonl:1: neither this row nor any other holds an example of task 'record'"
    ):
        load_task_data(find_task("record"), TOKENIZER, Source(str(tmp_path)), Encoding(40))


READERS = {
    "columns": tag_columns(),
    "arguments": argument_columns(0, 1, 2),
    "lines": propositions,
    "questions": questions,
}
PIECES = ["a", " ", "\t", "\n", "\r", "|||", "0", "(A*", "*)", "*", "-", "B-X", "O", "#", " = ", "\x85", "\ufeff"]
PIECE = st.sampled_from([*PIECES, "{", "}", '"data"', ":", "[", "]"])


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
@given(
    content=st.one_of(st.binary(max_size=60), st.lists(PIECE, max_size=25).map(lambda parts: "".join(parts).encode()))
)
def test_any_bytes_are_rows_or_one_error(tmp_path, name, content):
    task = Task("x", "tagging", None, {}, (), {}, files=Files(read=READERS[name]))
    file = tmp_path / "train.txt"
    file.write_bytes(content)
    try:
        rows = read_rows(file, task)
    except UserError as error:
        assert "train.txt" in str(error)
        return
    for where, row in rows:
        assert "train.txt" in where
        assert name == "questions" or len(row["words"]) == len(row["tags"]) > 0
