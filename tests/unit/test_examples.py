"""What a task calls an example: limits and `promptfleet evaluate` count those, not rows of files or windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launcher import cli
from model_parallel.grid import Grid
from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source
from prompt_tuning.data.rows import Rows
from prompt_tuning.fleet.evaluate import num_examples
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from prompt_tuning.tokens.rows import first_examples
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_questions, make_texts, make_tokenizer, run_json, write_jsonl


def multirc(passages):
    """Passages of two questions with two and one answers."""
    questions = [
        {"idx": 0, "question": "w1", "answers": [{"text": "w2", "label": 0}, {"text": "w3", "label": 1}]},
        {"idx": 1, "question": "w4", "answers": [{"text": "w5", "label": 1}]},
    ]
    return [{"idx": i, "passage": {"text": "w6", "questions": questions}} for i in range(passages)]


def record(passages):
    """Passages of two entities and two queries."""
    queries = [{"idx": i, "query": f"w{i} @placeholder", "answers": [{"text": "w2"}]} for i in range(2)]
    places = [{"start": 0, "end": 1}, {"start": 3, "end": 4}]
    return [{"idx": i, "passage": {"text": "w1 w2", "entities": places}, "qas": queries} for i in range(passages)]


def features(folder, task, rows, limit):
    for split in ("train", "dev"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    data = load_task_data(
        find_task(task), make_tokenizer(), Source(str(folder)), Encoding(40), {"train": limit, "dev": limit}
    )
    return data.splits["train"]


@pytest.mark.parametrize(("limit", "count"), [(None, 9), (1, 1), (3, 3), (4, 4), (8, 8), (20, 9)])
def test_limits_count_the_answers_of_multirc(tmp_path, limit, count):
    found = features(tmp_path, "multirc", multirc(3), limit)
    assert len(found) == num_examples(find_task("multirc"), found) == count


@pytest.mark.parametrize(("limit", "queries"), [(None, 6), (1, 1), (2, 2), (3, 3), (9, 6)])
def test_limits_count_the_queries_of_record_with_all_their_entities(tmp_path, limit, queries):
    found = features(tmp_path, "record", record(3), limit)
    assert len(found) == 2 * queries and num_examples(find_task("record"), found) == queries


def test_limits_are_the_same_for_rows_of_files_and_of_the_hub():
    task = find_task("multirc")
    nested = [(f"file:{i}", row) for i, row in enumerate(multirc(2), 1)]
    flat = [(f"hub {i}", dict(own)) for i, own in enumerate(own for _, row in nested for own in task.expand(row))]
    for limit in range(1, 8):
        few = [own for _, row in first_examples(task, nested, limit) for own in (task.expand(row))]
        assert few == [row for _, row in first_examples(task, flat, limit)] == [row for _, row in flat[:limit]]


def test_a_bad_row_behind_the_limit_is_not_looked_at():
    rows = [("file:1", record(1)[0]), ("file:2", {"passage": None})]
    assert list(first_examples(find_task("record"), rows, 2)) == rows[:1]


def exported(folder, raw, capsys):
    export_member(folder / "prompt", build_fleet(resolve(raw, folder / "run.json"), Grid()).members[0])
    capsys.readouterr()  # what libraries say when they are first imported
    return str(folder / "prompt")


def test_evaluate_counts_questions_not_windows(tmp_path, capsys):
    data = make_questions(tmp_path / "data")
    raw = run_json(
        make_backbone(tmp_path / "backbone", "bert"),
        data,
        task={"kind": "span", "name": "questions", "has_null": True},
        data={"stride": 4, "max_length": 20},
    )
    prompt = exported(tmp_path, raw, capsys)
    assert cli.main(["evaluate", "--prompt", prompt, "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 5


def test_evaluate_reads_the_prompts_own_configuration_of_a_hub_data_set(tmp_path, capsys, monkeypatch):
    data = make_texts(tmp_path / "data")
    raw = run_json(
        make_backbone(tmp_path / "backbone", "bert"),
        data,
        task={"kind": "classification", "name": "texts", "hub_config": "german"},
    )
    prompt, seen = exported(tmp_path, raw, capsys), []

    def read_hub_split(task, path, split, hub_config):
        seen.append((path, split, hub_config))
        return Rows(lambda: [("hub row 1", {"text": "w1", "label": "class0"})], str)

    monkeypatch.setattr("prompt_tuning.data.read.read_hub_split", read_hub_split)
    assert cli.main(["evaluate", "--prompt", prompt, "--data", "someone/texts"]) == 0
    assert seen == [("someone/texts", "dev", "german")] and json.loads(capsys.readouterr().out)["examples"] == 1


def test_numbers_that_are_not_finite_are_printed_as_null(tmp_path, capsys, monkeypatch):
    data = make_texts(tmp_path / "data")
    prompt = exported(tmp_path, run_json(make_backbone(tmp_path / "backbone", "bert"), data), capsys)
    monkeypatch.setattr("prompt_tuning.fleet.evaluate.score", lambda *_: ({"accuracy": np.nan}, float("inf")))
    assert cli.main(["evaluate", "--prompt", prompt, "--data", str(data)]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert printed["metrics"] == {"accuracy": None} and printed["loss"] is None


def test_a_test_split_without_labels_is_not_tokenised(tmp_path):
    make_texts(tmp_path)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "only here", "label": label} for label in (None, "", -1, "-1")])
    seen: list[str] = []

    def tokenizer(texts, *rest, **options):
        seen.extend(texts)
        return stock(texts, *rest, **options)

    stock = make_tokenizer()
    tokenizer.num_special_tokens_to_add = stock.num_special_tokens_to_add
    data = load_task_data(find_task({"kind": "classification"}), tokenizer, Source(str(tmp_path)), Encoding(40))
    assert list(data.splits) == ["train", "dev"] and seen and "only here" not in seen
