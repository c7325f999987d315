"""Data that are tokenised in parts, by several processes, kept in files and mapped: the same as at once in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from model_parallel import rng
from prompt_tuning.data import cache as module_cache
from prompt_tuning.data import encode as module
from prompt_tuning.data import load
from prompt_tuning.data.encode import encoded
from prompt_tuning.data.load import load_task_data, task_data
from prompt_tuning.data.parts import Parts, mapped
from prompt_tuning.data.read import Source
from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError
from prompt_tuning.kinds import find_kind
from prompt_tuning.settings.members import resolve
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.arrays import Values, to_arrays
from prompt_tuning.tokens.recipe import Encoding, Recipe
from tests.contracts.test_tasks import ENCODING, FIXED, TOKENIZER, located
from tests.support.rows import encode
from tests.support.tiny import make_backbone, make_questions, make_tags, make_texts, run_json, write_jsonl

ROOT = Path(__file__).parents[2]


def assert_same(one, other):
    assert one.digest == other.digest and one.rows_per_example == other.rows_per_example
    assert one.largest_token == other.largest_token and dict(one.remarks) == dict(other.remarks)
    for name in ("tokens", "token_types", "offsets", "labels", "tags"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None) and (left is None or np.array_equal(left, right)), name
    if one.notes is None:
        assert other.notes is None
        return
    left, right = to_arrays(one.notes), to_arrays(other.notes)
    assert left.keys() == right.keys() and fields(one.notes) == fields(other.notes)
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)


@pytest.mark.parametrize("name", FIXED)
def test_every_task_is_the_same_in_parts_in_processes_and_in_files(name, tmp_path, in_parts):
    task = find_task(name)
    rows = (located(name) * 3)[:7]
    labels = task.labels or find_kind(task.kind).collect_labels(task, rows)
    whole = encode(task, TOKENIZER, rows, ENCODING, labels)
    recipe = Recipe(task, TOKENIZER, ENCODING, labels)
    for number, processes in enumerate((1, 3)):
        in_memory, in_files = Parts(), Parts(tmp_path / str(number))
        for part in encoded(recipe, rows, processes):
            in_memory.add(part)
            in_files.add(part)
        described = json.loads(json.dumps(in_files.written(find_kind(task.kind))))
        assert_same(in_memory.joined(find_kind(task.kind)), whole)
        assert_same(mapped(tmp_path / str(number), find_kind(task.kind), described), whole)


def test_choices_that_some_rows_alone_lack_are_marked_in_all_parts(in_parts):
    task = find_task({"kind": "choice", "choices": ["options"], "most_choices": 3})
    full = {"text": "w1", "options": ["w2", "w3 w4", "w5"], "label": 0}
    short = {**full, "options": ["w2", "w3"]}
    for rows in ([full] * 4 + [short] * 3, [short] * 3 + [full] * 4):
        located_rows = [(f"row {i}", dict(row)) for i, row in enumerate(rows)]
        parts = Parts()
        for part in encoded(Recipe(task, TOKENIZER, Encoding(20), task.labels), located_rows):
            parts.add(part)
        assert_same(parts.joined(find_kind("choice")), encode(task, TOKENIZER, located_rows, Encoding(20), task.labels))


def texts(count, bad=()):
    rows = [{"text": f"w{i % 40} w{i % 7}", "label": f"class{i % 2}"} for i in range(count)]
    for place in bad:
        rows[place]["label"] = "other"
    return [(f"rows:{i}", row) for i, row in enumerate(rows, 1)]


TEXTS = find_task({"kind": "classification"})
RECIPE = Recipe(TEXTS, TOKENIZER, Encoding(16), ("class0", "class1"))


def test_the_first_bad_row_is_named_whichever_process_meets_it(in_parts):
    with pytest.raises(UserError, match=r"rows:6: label 'other'"):
        list(encoded(RECIPE, texts(30, bad=(5, 6, 20)), 3))


def test_a_process_that_is_killed_is_said_and_none_is_left(in_parts, monkeypatch):
    started = []
    stock = module._work

    def work(*arguments):
        if arguments[2] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        stock(*arguments)

    monkeypatch.setattr(module, "_work", work)
    process = module.multiprocessing.get_context("fork").Process
    monkeypatch.setattr(process, "start", lambda self, start=process.start: (start(self), started.append(self))[0])
    with pytest.raises(UserError, match="ended without a word: killed, or out of memory"):
        list(encoded(RECIPE, texts(30), 3))
    assert len(started) == 3 and not any(one.is_alive() for one in started)


def test_a_process_that_is_killed_while_it_sends_is_said_too(in_parts, monkeypatch):
    def work(*arguments):
        os.write(arguments[4].fileno(), (256).to_bytes(4, "big") + b"a part of 256 bytes")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "_work", work)
    with pytest.raises(UserError, match="ended without a word: killed, or out of memory"):
        list(encoded(RECIPE, texts(30), 2))


def test_threads_of_a_tokenizer_do_not_hang_its_processes():
    code = """
from launcher.ranks.environment import quiet_libraries
quiet_libraries()
from tests.unit.test_large_data import RECIPE, TOKENIZER, encoded, texts
TOKENIZER([f"w{i}" for i in range(5000)])
print(sum(len(part) for part in encoded(RECIPE, texts(3000), 2)))
"""
    variables = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["3000"], done.stderr


def test_a_mistake_of_ours_in_a_process_is_told_whole(in_parts, monkeypatch):
    monkeypatch.setattr(module, "_encode", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(encoded(RECIPE, texts(30), 2))


@pytest.fixture
def large(tmp_path, monkeypatch, in_parts):
    """A run of texts that count as large, and how often a tokenizer is asked for some."""
    monkeypatch.setattr(load, "SMALL", 5)
    monkeypatch.setattr(load, "num_processes", lambda: 2)
    config = resolve(
        run_json(
            make_backbone(tmp_path / "backbone", "bert"),
            make_texts(tmp_path / "texts"),
            data={"cache": str(tmp_path / "cache"), "path": str(tmp_path / "texts")},
        ),
        tmp_path / "run.json",
    ).shared
    filled = []
    stock = load._fill
    monkeypatch.setattr(load, "_fill", lambda *arguments: (filled.append(arguments[2]), stock(*arguments))[1])
    return config, filled


def test_large_data_are_tokenised_once_and_mapped(large, tmp_path, caplog):
    caplog.set_level("INFO", logger="prompt_tuning")
    config, filled = large
    first, second = task_data(config, TOKENIZER), task_data(config, TOKENIZER)
    assert filled == ["train", "dev", "test"] and first.labels == second.labels
    memory = load_task_data(find_task(config.task), TOKENIZER, Source(config.data.path), load.encoding_of(config.data))
    assert list(second.splits) == list(memory.splits)
    for split, features in memory.splits.items():
        assert_same(second.splits[split], features)
        assert second.splits[split].tokens.base is not None and not second.splits[split].tokens.flags.writeable
    assert "by 2 processes" in caplog.text and "tokenised before, and kept in" in caplog.text


@pytest.mark.parametrize(
    "change", ["a row", "the length", "the tokenizer", "its side", "the limit", "the code", "a file of it"]
)
def test_kept_data_are_those_of_the_same_source_settings_tokenizer_and_code(large, tmp_path, change, monkeypatch):
    config, filled = large
    task_data(config, TOKENIZER)
    filled.clear()
    tokenizer = TOKENIZER
    if change == "a row":
        write_jsonl(tmp_path / "texts" / "dev.jsonl", [row for _, row in texts(9)])
    elif change == "the tokenizer":
        tokenizer = type(TOKENIZER).from_pretrained(tmp_path / "backbone")
        tokenizer.add_tokens(["w1 w2"])
    elif change == "its side":
        tokenizer = type(TOKENIZER).from_pretrained(tmp_path / "backbone", truncation_side="left")
        assert tokenizer.truncation_side == "left"
    elif change == "the code":
        monkeypatch.setattr(module_cache, "_code", lambda: "another")
    elif change == "a file of it":
        file = next((tmp_path / "cache").rglob("tokens.bin"))
        file.write_bytes(file.read_bytes()[:-4])
    else:
        key = {"the length": "max_length", "the limit": "max_train_examples"}[change]
        config = config.model_copy(update={"data": config.data.model_copy(update={key: 7})})
    data = task_data(config, tokenizer)
    assert filled[:2] == ["train", "dev"] and len(data.splits["dev"]) > 0
    filled.clear()
    task_data(config, tokenizer)
    assert filled == []


def test_a_folder_that_cannot_be_written_is_named(large, tmp_path):
    config, _ = large
    (tmp_path / "file").touch()
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache": str(tmp_path / "file" / "x")})})
    with pytest.raises(UserError, match=r"data\.cache=.*file/x: tokenised data cannot be kept there: Not a directory"):
        task_data(config, TOKENIZER)


def test_a_build_that_fails_leaves_nothing_behind(large, tmp_path):
    config, _ = large
    rows = [row for _, row in texts(20)]
    write_jsonl(tmp_path / "texts" / "dev.jsonl", [*rows, {"text": "w1", "label": "third"}])
    with pytest.raises(UserError, match=r"dev\.jsonl:21: .*third"):
        task_data(config, TOKENIZER)
    assert not list((tmp_path / "cache").rglob("data.json"))
    write_jsonl(tmp_path / "texts" / "dev.jsonl", rows)
    assert len(task_data(config, TOKENIZER).splits["dev"]) == 20


@pytest.mark.parametrize(("kind", "make"), [("span", make_questions), ("tagging", make_tags)])
def test_kept_notes_score_as_those_in_memory(tmp_path, monkeypatch, kind, make):
    monkeypatch.setattr(load, "SMALL", 1)
    folder = make(tmp_path / "data")
    raw = run_json(
        make_backbone(tmp_path / "backbone", "bert"),
        folder,
        task={"kind": kind, "name": "own", **({"has_null": True} if kind == "span" else {})},
        data={"path": str(folder), "cache": str(tmp_path / "cache"), "stride": 4, "max_length": 20},
    )
    config = resolve(raw, tmp_path / "run.json").shared
    kept = task_data(config, TOKENIZER)
    memory = load_task_data(find_task(config.task), TOKENIZER, Source(str(folder)), load.encoding_of(config.data))
    for split, features in memory.splits.items():
        assert_same(kept.splits[split], features)


def test_limits_stop_reading():
    def endless():
        number = 0
        while True:
            number += 1
            assert number < 100, "read on behind the limit"
            yield f"row {number}", {"text": "w1", "label": "a"}

    assert Rows(endless, str).first(TEXTS, 50).count() == 50


def test_values_come_back_as_they_went_in():
    values = [None, "ü \ud800 \n", ("a", ("b", 1), 2.5), {"a": ("b",)}, (), True]
    found = Values.of(values)
    assert list(found) == values and found[-1] is True and found[1:3] == values[1:3]


@pytest.mark.parametrize("count", [1, 5, 1000, 70_000])
def test_an_order_in_windows_is_the_permutation(count):
    whole = rng.permutation(rng.key(7, "order", count), count)
    order = rng.Order(rng.key(7, "order", count), count, window=300)
    starts = [*range(0, count, max(1, count // 40)), 3 % count]
    for start in starts:
        assert order.take(start, start + 17).tolist() == whole[start : start + 17].tolist()
        assert len(order._order) <= 300 + count // 1000 + 64


def test_data_that_change_while_they_are_tokenised_are_not_kept(large, tmp_path, monkeypatch):
    config, _ = large
    stock = load._write

    def write(*arguments):
        stock(*arguments)
        write_jsonl(tmp_path / "texts" / "dev.jsonl", [row for _, row in texts(9)])

    monkeypatch.setattr(load, "_write", write)
    with pytest.raises(UserError, match="data have changed while they were tokenised; start again"):
        task_data(config, TOKENIZER)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("value", ["-1", -1, " ", None])
def test_a_row_without_label_is_named_by_training_and_by_validate(tmp_path, value):
    rows = [row for _, row in texts(6)]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [*rows[:3], {**rows[3], "label": value}, *rows[4:]])
    raw = run_json("unused", tmp_path, task={"kind": "classification", "name": "t", "labels": ["class0", "class1"]})
    config = resolve(raw, tmp_path / "run.json").shared
    for read in (task_data, load.check_data):
        with pytest.raises(UserError, match=r"train\.jsonl:4: (no label in column|column `label` of task 't' is null)"):
            read(config, TOKENIZER)


def test_validate_goes_once_through_a_split_and_keeps_a_chunk(tmp_path, monkeypatch, in_parts):
    make_texts(tmp_path)
    config = resolve(run_json("unused", tmp_path), tmp_path / "run.json").shared
    held, passes = [], []
    stock, chunks = load.class_labels, load.chunks
    monkeypatch.setattr(load, "class_labels", lambda *given: (held.append(len(given[1])), stock(*given))[1])
    monkeypatch.setattr(load, "chunks", lambda rows: (passes.append(rows), chunks(rows))[1])
    load.check_data(config, TOKENIZER)
    assert len(passes) == 3 and max(held) == 2


def test_a_document_is_read_once_before_several_processes_tokenise_it(large, tmp_path, monkeypatch):
    config, _ = large
    rows = [row for _, row in texts(20)]
    for split in ("train", "dev", "test"):
        (tmp_path / "texts" / f"{split}.jsonl").unlink()
        (tmp_path / "texts" / f"{split}.json").write_text(json.dumps(rows))
    seen = []
    stock = load.encoded
    monkeypatch.setattr(
        load, "encoded", lambda recipe, rows, count: (seen.append(type(rows)), stock(recipe, rows, count))[1]
    )
    assert len(task_data(config, TOKENIZER).splits["train"]) == 20 and seen == [list] * 3
