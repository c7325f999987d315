"""Writes are whole or not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.storage.atomic import expand, make_folder, new_folder, sha256, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_equal_values_give_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None, "é"]})
    write_json(tmp_path / "b.json", {"a": [0.1, None, "é"], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [0.1, None, "é"], "b": 1}
    assert names(tmp_path) == ["a.json", "b.json"]


@pytest.mark.parametrize("value", [float("nan"), {"x": float("inf")}, {1, 2}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == "old"


def test_text_replaces_an_older_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new é"


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "there") as target:
        (target / "inner").mkdir()
        (target / "inner" / "file").write_text("x")
        assert not (tmp_path / "there").exists()
    assert (tmp_path / "there" / "inner" / "file").read_text() == "x"
    assert names(tmp_path) == ["there"]


def test_a_new_folder_replaces_an_older_one_whole(tmp_path):
    for name in ("old", "new"):
        with new_folder(tmp_path / "there") as target:
            (target / name).write_text(name)
    assert names(tmp_path / "there") == ["new"]
    assert names(tmp_path) == ["there"]


def test_a_folder_that_fails_leaves_the_older_one(tmp_path):
    with new_folder(tmp_path / "there") as target:
        (target / "old").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "there") as target:
        (target / "new").write_text("new")
        raise RuntimeError
    assert names(tmp_path / "there") == ["old"]
    with new_folder(tmp_path / "there") as target:
        assert names(target) == [], "what the failed one left is gone"


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_make_folder_makes_parents_and_leaves_nothing_behind(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="cannot be written: File exists; choose another with --output"):
        make_folder(tmp_path / "file")


def test_the_home_folder_is_expanded_where_there_is_one():
    assert expand("~/x") == Path.home() / "x"
    assert expand("~no_such_user/x") == Path("~no_such_user/x")
