"""Decoders as people have them: files with older names, configs that ask for more than is done here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from model_parallel.apply import _scale
from model_parallel.grid import Grid
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.tiny import make_backbone, make_language_backbone


def load(folder, **options):
    return load_backbone(BackboneSection(path=str(folder)), Grid(), **options)


def test_masks_that_old_files_hold_beside_the_weights_are_no_loss(tmp_path):
    folder = make_language_backbone(tmp_path, "gpt_neox")
    tensors = load_file(folder / "model.safetensors")
    assert "embed_out.weight" in tensors, "the head's name in files"
    for name, value in {"bias": torch.ones(1, 1, 4, 4), "masked_bias": torch.tensor(-1e9)}.items():
        tensors[f"gpt_neox.layers.0.attention.{name}"] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(folder, language=True).language_head[0].weight, tensors["embed_out.weight"])


@pytest.mark.parametrize(
    ("model_type", "changes", "sentence"),
    [
        ("opt", {"word_embed_proj_dim": 16}, "its words have 16 numbers and its layers 32"),
        ("opt", {"layerdrop": 0.1}, r"drops whole layers in training \(layerdrop 0.1\)"),
        ("cohere", {"use_qk_norm": True}, r"normed head by head \(use_qk_norm\)"),
        ("gpt_bigcode", {"multi_query": False}, r"\(multi_query false\)"),
    ],
)
def test_configs_that_ask_for_more_are_refused_in_a_sentence(tmp_path, model_type, changes, sentence):
    folder = make_backbone(tmp_path, model_type)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(UserError, match=f"backbone.path=.*{sentence}"):
        load(folder)


def test_an_embedding_that_scales_keeps_its_weights_and_its_scale(tmp_path):
    """Transformers would draw a module anew whose buffers are made on the spot."""
    folder = make_backbone(tmp_path, "gemma3_text")
    words = load(folder).model.embed_tokens
    assert torch.equal(words.weight, load_file(folder / "model.safetensors")["embed_tokens.weight"])
    assert torch.allclose(words(torch.tensor([5])), words.weight[5] * 32**0.5)


def test_a_scale_is_rounded_where_transformers_rounds_it():
    """To the weights' type, as Gemma's: sqrt(640) = 25.298... is 25.25 in bfloat16. BART's is not."""
    gemma = Gemma3TextScaledWordEmbedding(6, 4, 0, embed_scale=640**0.5)
    bart = BartScaledWordEmbedding(6, 4, 0, embed_scale=640**0.5)
    assert _scale(gemma, torch.bfloat16) == 25.25 and _scale(bart, torch.bfloat16) == 640**0.5
    assert _scale(torch.nn.Embedding(6, 4), torch.bfloat16) is None
