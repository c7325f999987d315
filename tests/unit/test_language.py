"""Cloze templates: candidates' tokens, their log probabilities against transformers' own models, training and export."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning.backbone.families import families
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from prompt_tuning.tokens.tokenise import word_lead
from tests.support.fleets import follow, open_fleet
from tests.support.packed import packed
from tests.support.rows import ROWS, encode, write_rows
from tests.support.tiny import make_backbone, make_language_backbone, make_tokenizer, run_json
from tests.unit.test_kinds import byte_level

MASKED = tuple(name for name, family in families().items() if family.pooling != "last" and family.has_language_head)
# BART answers no cloze template; Qwen 2's own tokenizer knows none of the tiny words.
CAUSAL = tuple(
    name for name, family in families().items() if family.pooling == "last" and name not in ("bart", "qwen2")
)
BOOLQ = find_task("boolq")
COPA = find_task("copa")


def located(task):
    return [(f"row {i}", row) for i, row in enumerate(ROWS[task.name])]


def raw_of(folder, model_type, task="boolq", **changes):
    backbone = make_language_backbone(folder / "backbone", model_type, **changes)
    raw = {**run_json(backbone, write_rows(task, folder / "data"), train={"max_steps": 3}), "task": task}
    raw["data"] = {**raw["data"], "max_length": 30, "template": "cloze"}
    return raw


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("model_type", MASKED + CAUSAL)
def test_the_language_head_is_the_stored_models(tmp_path, model_type, tie):
    """Its logits of any hidden states equal those of the model that transformers loads."""
    folder = make_language_backbone(tmp_path, model_type, tie_word_embeddings=tie)
    ours = load_backbone(BackboneSection(path=str(folder)), Grid(), language=True)
    theirs = (AutoModelForMaskedLM if model_type in MASKED else AutoModelForCausalLM).from_pretrained(folder)
    hidden = torch.randn(5, 32)
    # OPT's language model calls the inner one.
    base = getattr(theirs.base_model, "decoder", theirs.base_model)
    base.forward = lambda *given, **named: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])
    assert torch.equal(ours.language_head(hidden), theirs.eval()(torch.zeros(1, 5, dtype=torch.long)).logits[0])
    assert not any(parameter.requires_grad for parameter in ours.language_head.parameters())
    tied = ours.model.get_input_embeddings().weight
    assert any(parameter is tied for parameter in ours.language_head.parameters()) == tie


@pytest.mark.parametrize("model_type", MASKED + CAUSAL)
def test_scores_are_log_probabilities_of_the_candidates(tmp_path, model_type):
    """One sequence at a time by transformers' own model, without any prompt: head and wanted tokens are what is tried."""
    member = open_fleet(raw_of(tmp_path, model_type)).members[0]
    features, score = member.splits["dev"], member.prompt.head
    load = AutoModelForMaskedLM if model_type in MASKED else AutoModelForCausalLM
    theirs = load.from_pretrained(tmp_path / "backbone", dtype=torch.float64).eval()
    base = getattr(theirs, theirs.base_model_prefix)
    expected = []
    for row in range(len(features.offsets) - 1):
        part = slice(features.offsets[row], features.offsets[row + 1])
        inputs = {"input_ids": torch.from_numpy(features.tokens[part].astype(np.int64))[None]}
        if features.token_types is not None:
            inputs["token_type_ids"] = torch.from_numpy(features.token_types[part].astype(np.int64))[None]
        wanted = torch.from_numpy(features.tags[part].astype(np.int64))[None]
        with torch.no_grad():
            logs = torch.log_softmax(theirs(**inputs).logits, -1)
            hidden, rows = packed(base(**inputs).last_hidden_state, torch.tensor([wanted.shape[1]]))
            found = score(hidden, replace(rows, tags=wanted[0], asked=(wanted[0] >= 0).nonzero()[:, 0]))
        expected.append(
            sum(logs[0, place, wanted[0, place]].item() for place in range(logs.shape[1]) if wanted[0, place] >= 0)
        )
        assert found.item() == pytest.approx(expected[-1], abs=1e-9)
    assert len(set(expected)) > 2


def test_masked_models_see_masks_and_causal_ones_the_token_before():
    masked = encode(BOOLQ, make_tokenizer(with_mask=True), located(BOOLQ)[:1], Encoding(40, "cloze"), BOOLQ.labels)
    tokenizer = make_tokenizer(with_mask=True)
    assert masked.rows_per_example == 2
    names = tokenizer.convert_ids_to_tokens(masked.tokens[: masked.offsets[1]])
    assert names.count("[MASK]") == 1 and names[-2:] == ["[MASK]", "[SEP]"]
    at = masked.tags >= 0
    assert tokenizer.convert_ids_to_tokens(masked.tags[at]) == ["no.", "yes."], "in the order of the labels"
    causal = encode(BOOLQ, make_tokenizer(), located(BOOLQ)[:1], Encoding(40, "cloze"), BOOLQ.labels)
    assert np.array_equal(np.flatnonzero(causal.tags >= 0) + 1, np.flatnonzero(at))
    assert "[MASK]" not in make_tokenizer().convert_ids_to_tokens(causal.tokens)


def test_candidates_of_several_tokens_are_wanted_whole():
    tokenizer = make_tokenizer(with_mask=True)
    features = encode(COPA, tokenizer, located(COPA)[:1], Encoding(40, "cloze"), COPA.labels)
    texts = [tokenizer.convert_ids_to_tokens(features.tags[a:b][features.tags[a:b] >= 0])
             for a, b in zip(features.offsets, features.offsets[1:], strict=False)]  # fmt: skip
    assert texts == [["w2"], ["w3", "w4"]]


def test_byte_level_candidates_keep_their_space():
    tokenizer = byte_level(False, True)
    assert word_lead(tokenizer) == " "
    row = {"premise": "ab", "question": "cause", "choice1": "ab", "choice2": "c"}
    features = encode(COPA, tokenizer, [("here", row)], Encoding(40, "cloze"), COPA.labels)
    wanted = tokenizer.convert_ids_to_tokens(features.tags[features.tags >= 0])
    assert wanted == ["Ġab", "Ġc"]


@pytest.mark.parametrize(
    ("model_type", "task"), [("bert", "cb"), ("roberta", "copa"), ("llama", "boolq"), ("mistral", "record")]
)
def test_a_prompt_learns_by_the_language_models_answers(tmp_path, model_type, task):
    raw = raw_of(tmp_path, model_type, task)
    fleet = open_fleet(raw)
    assert [name for name, _ in fleet.members[0].parameters] == ["prefix.embedding"]
    course = follow(fleet, 8)
    (losses,) = course.losses.values()
    assert losses[-1] < losses[0] - 1e-3


def test_an_exported_prompt_answers_alike(tmp_path):
    raw = raw_of(tmp_path, "bert")
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "out")]) == 0
    (folder,) = (tmp_path / "out" / "members").iterdir()
    result = json.loads((folder / "result.json").read_text())
    prompt = load_prompt(folder / "prompt")
    assert set(prompt.manifest["tensors"]) == {"prefix"}
    found = attach(prompt).predict(ROWS["boolq"])
    right = [answer["label"] == str(row["label"]) for answer, row in zip(found, ROWS["boolq"], strict=True)]
    assert np.mean(right) == pytest.approx(result["best"]["metrics"]["accuracy"])
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in found)


def test_backbones_without_language_head_are_refused(tmp_path):
    raw = raw_of(tmp_path, "bert")
    raw["backbone"]["path"] = str(make_backbone(tmp_path / "plain", "bert"))
    with pytest.raises(UserError, match="needs the language-model head, which the weights lack"):
        open_fleet(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "head"}, "lets the language model answer, so there is no head to train"),
        ({"method": "full"}, "use method 'deep_prompt' or 'shallow_prompt'"),
        ({"task": "squad"}, "data.template='cloze' is no template of squad; choose pair"),
    ],
)
def test_what_does_not_fit_is_said_at_once(changes, message):
    raw = {"task": "boolq", "backbone": {"path": "."}, "data": {"template": "cloze"}, **changes}
    with pytest.raises(ValueError, match=message):
        RunFile.model_validate(raw)


def test_long_contexts_are_cut_and_questions_are_not(tmp_path):
    folder = make_language_backbone(tmp_path, "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [("here", {"question": "w1 w2", "passage": " ".join(["w5"] * 50), "label": True})]
    features = encode(BOOLQ, tokenizer, rows, Encoding(20, "cloze"), BOOLQ.labels)
    assert set(np.diff(features.offsets)) == {20} and (features.tags >= 0).sum() == 2
    with pytest.raises(UserError, match=r"leaves no room for context beside a question of \d+ tokens"):
        encode(BOOLQ, tokenizer, rows, Encoding(8, "cloze"), BOOLQ.labels)
