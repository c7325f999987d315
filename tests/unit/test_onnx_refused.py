"""What has no place in an ONNX graph, and texts that a client could not make, end in a sentence."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from prompt_tuning import load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.onnx import texts, write
from prompt_tuning.onnx.texts import Cut, text_forms, write_tokenizer
from prompt_tuning.onnx.write import write_onnx
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.failures import cli_failure
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.served import export
from tests.support.tiny import (
    make_backbone,
    make_tags,
    make_texts,
    make_tokenizer,
    run_json,
    write_jsonl,
)

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"method": "shallow_prompt", "prompt": {"length": 3}}, "method 'shallow_prompt': a graph has no place"),
        ({"train": {"also": ["biases"]}}, "train.also: a graph has no place"),
    ],
    ids=["shallow", "deltas"],
)
def test_what_a_graph_has_no_place_for_is_refused(sections, why, tmp_path, capsys):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    export(tmp_path, "it", run_json(backbone, make_texts(tmp_path / "data"), **sections))
    command = ["export", str(tmp_path / "prompts" / "it"), "--format", "onnx", "--output", str(tmp_path / "onnx")]
    message = cli_failure(capsys, *command)
    assert f"it: {why}" in message and "cannot be written for ONNX" in message and not (tmp_path / "onnx").exists()


def refusal(prompts, folder, **options):
    with pytest.raises(UserError) as error:
        write_onnx(folder / "onnx", prompts, **options)
    assert not (folder / "onnx").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_texts_that_are_written_are_refused(tmp_path):
    export(tmp_path, "it", writing_run(make_writer(tmp_path / "backbone", "llama"), make_passages(tmp_path / "data")))
    prompts = {"it": load_prompt(tmp_path / "prompts" / "it")}
    message = refusal(prompts, tmp_path)
    assert "of kind generation, and a graph answers classification, regression, choice, tagging, span" in message


def test_prompts_of_texts_and_of_tokens_are_written_apart(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    export(tmp_path, "texts", run_json(backbone, make_texts(tmp_path / "texts")))
    export(tmp_path, "tags", run_json(backbone, make_tags(tmp_path / "tags"), task={"kind": "tagging", "name": "tags"}))
    message = refusal({name: load_prompt(tmp_path / "prompts" / name) for name in ("texts", "tags")}, tmp_path)
    assert "texts answers texts and tags their tokens" in message and "write them into two folders" in message


def test_quantised_backbones_and_lora_are_refused(tmp_path):
    export(tmp_path, "it", run_json(make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts")))
    exported = load_prompt(tmp_path / "prompts" / "it")
    manifest = {**exported.manifest, "backbone": {**exported.manifest["backbone"], "quantize": "int8"}}
    assert "it: backbone.quantize 'int8'" in refusal({"it": replace(exported, manifest=manifest)}, tmp_path)
    exported.prompt.lora = torch.nn.ParameterDict({"a": torch.zeros(1)})
    assert "it: method 'lora'" in refusal({"it": exported}, tmp_path)


@pytest.mark.parametrize("family", ["deberta-v2", "t5"])
def test_families_that_attend_in_ways_of_their_own_are_refused(family, tmp_path):
    export(tmp_path, "it", run_json(make_backbone(tmp_path / "backbone", family), make_texts(tmp_path / "texts")))
    message = refusal({"it": load_prompt(tmp_path / "prompts" / "it")}, tmp_path)
    assert f"{family} attends in a way of its own" in message and "use a backbone such as BERT" in message


def test_rows_for_8_bits_are_read_before_anything_that_takes_long(tmp_path, monkeypatch):
    export(tmp_path, "it", run_json(make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts")))
    monkeypatch.setattr(write, "_trace", None)
    prompts = {"it": load_prompt(tmp_path / "prompts" / "it")}
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    assert "no rows there" in refusal(prompts, tmp_path, int8=str(empty))
    other = write_jsonl(tmp_path / "other.jsonl", [{"texts": "w1"}])
    assert "no column `text`" in refusal(prompts, tmp_path, int8=str(other))


def test_what_torch_makes_no_graph_of_is_refused(tmp_path, monkeypatch):
    def raises(*_, **__):
        raise torch.onnx.OnnxExporterError("no decomposition of aten.strange")

    export(tmp_path, "it", run_json(make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts")))
    monkeypatch.setattr(torch.onnx, "export", raises)
    message = refusal({"it": load_prompt(tmp_path / "prompts" / "it")}, tmp_path)
    assert "torch makes no ONNX graph of bert (no decomposition of aten.strange); use another backbone" in message


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'promptfleet[onnx]'" in refusal({}, tmp_path)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError, match="holds other files, which would be replaced; give a folder that is new or empty"
    ):
        write_onnx(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("option", ["--int8", "--backbone"])
def test_options_of_onnx_are_refused_for_other_formats(option, capsys):
    message = cli_failure(capsys, "export", "runs/none", "--format", "peft", option, "x", "--output", "y")
    assert f"{option} x: only --format onnx takes it" in message


def test_tokenizers_in_python_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"SimpleNamespace\) is written in Python and has no tokenizer.json"):
        write_tokenizer(tmp_path / "tokenizer.json", SimpleNamespace(is_fast=False), set())


# Texts


def form(task, template=None):
    return text_forms(find_task(task), Encoding(64, template))


def test_templates_are_told_by_their_columns():
    own = {"kind": "classification", "name": "pairs", "text": "title", "text_pair": "body"}
    assert form(own) == ["{title}", "{body}"]
    assert form({"kind": "regression", "name": "values"}) == ["{text}"]


def test_a_template_that_does_more_than_join_columns_is_not_told():
    task = find_task({"kind": "classification", "name": "texts"})
    for other in (lambda row: ((row["text"].strip(), None),), lambda row: ((row["text"].lower(), None),)):
        assert text_forms(replace(task, templates={"plain": other}), Encoding(64)) is None
    joined = replace(task, templates={"plain": lambda row: ((f"Q: {row['text']}!", None),)})
    assert text_forms(joined, Encoding(64)) == ["Q: {text}!"]
    assert form("wsc") is None and form("multirc") == ["{paragraph}", "{question} {answer}"]


def test_words_and_choices_are_told_by_their_columns():
    assert form("conll03") == ["{words}"] and form("propbank") == ["{words}", "{predicate}"]
    choice = {"kind": "choice", "name": "which", "text": "premise", "choices": ["a", "b"]}
    assert form(choice) == [["{premise}", "{a}"], ["{premise}", "{b}"]]
    assert form({**choice, "choices": ["all"]}) is None and form("copa") is None
    assert form("squad2") == ["{question}", "{context}"]
    shouted = replace(
        find_task("conll03"), templates={"words": lambda row: ((list(map(str.upper, row["words"])), None),)}
    )
    assert text_forms(shouted, Encoding(64)) is None


@pytest.mark.parametrize(("strategy", "stride"), [("longest_first", 0), ("only_first", 0), ("only_second", 3)])
def test_a_tokenizer_that_cuts_otherwise_by_itself_is_refused(strategy, stride, tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    write_tokenizer(tmp_path / "tokenizer.json", tokenizer, {Cut(12, strategy, stride)})
    write_tokenizer(tmp_path / "tokenizer.json", tokenizer, {Cut(4, strategy, 4 * bool(stride))})  # no room for any
    plain = texts.cut
    monkeypatch.setattr(texts, "cut", lambda *given: plain(*given[:3], given[3]._replace(most=11), given[4]))
    with pytest.raises(UserError, match=r"cuts texts otherwise than its tokenizer\.json"):
        write_tokenizer(tmp_path / "tokenizer.json", tokenizer, {Cut(12, strategy, stride)})
