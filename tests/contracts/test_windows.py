"""Local layers: a text token sees the nearest of its row, as many as the window has, and the whole prompt from anywhere."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from prompt_tuning.forward.run import hidden_states
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prompt import Prompt
from tests.contracts.test_families import (
    BOUNDS,
    LENGTHS,
    assert_equal,
    make_batch,
    make_prompt,
    open_backbone,
    prefix_gradients,
    ramp_loss,
    stock_model,
)
from tests.support.packed import real, text_rows
from tests.support.tiny import make_backbone

WINDOW = 3
WINDOWED = ("cohere2", "gemma2", "gemma3_text", "mistral", "phi3", "starcoder2")
EVERYWHERE = ("mistral", "phi3", "starcoder2")
"""Whose every layer is local."""


def seen(rows, length, front, window):
    """[R, 1, L, P + L] of what each token sees, place by place."""
    mask = torch.zeros(rows, 1, length, front + length, dtype=torch.bool)
    for place in range(length):
        mask[..., place, :front] = True
        mask[..., place, front + max(0, place - window + 1) : front + place + 1] = True
    return mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_window_counts_its_own_token_and_never_the_prompt(tmp_path, model_type, attention):
    """Against transformers' model under masks written out, its cache holding the prompt; rows longer than the window."""
    folder = make_backbone(tmp_path, model_type, sliding_window=WINDOW)
    backbone = open_backbone(folder, attention=attention)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt])
    ours = hidden_states(backbone, [prompt], batch)
    cache, table = DynamicCache(), prompt.prefix.table()
    for layer in range(table.shape[1]):
        cache.update(
            *(table[:, layer, side].transpose(0, 1).expand(len(LENGTHS), -1, -1, -1) for side in (0, 1)), layer
        )
    shape = len(LENGTHS), max(LENGTHS), prompt.length
    local, everywhere = seen(*shape, WINDOW), seen(*shape, max(LENGTHS))
    masks = local if model_type in EVERYWHERE else {"full_attention": everywhere, "sliding_attention": local}
    theirs = stock_model(folder)(
        input_ids=text_rows(batch.input_ids[0], batch), attention_mask=masks, past_key_values=cache
    ).last_hidden_state
    assert_equal([ours[batch.tokens]], [theirs[real(batch)]], BOUNDS["float64"])
    found = prefix_gradients(ramp_loss(ours, batch), [prompt])
    assert_equal(found, prefix_gradients(ramp_loss(theirs, batch), [prompt]), BOUNDS["float64"])


@pytest.mark.parametrize("model_type", WINDOWED)
def test_without_a_prompt_a_window_is_transformers_own(tmp_path, model_type):
    folder = make_backbone(tmp_path, model_type, sliding_window=WINDOW)
    backbone = open_backbone(folder)
    prompt = Prompt(Head(backbone.shape.hidden_size, 2, "last", 0, backbone.prompt_dtype))
    batch = make_batch([prompt])
    ours = hidden_states(backbone, [prompt], batch)
    theirs = stock_model(folder)(input_ids=text_rows(batch.input_ids[0], batch)).last_hidden_state
    assert_equal([ours[batch.tokens]], [theirs[real(batch)]], BOUNDS["float64"])


def test_a_gemma_that_looks_both_ways_does(tmp_path):
    """As embedding models have it; its config.json names the whole width of the window."""
    folder = make_backbone(tmp_path, "gemma3_text", sliding_window=4, use_bidirectional_attention=True)
    backbone = open_backbone(folder)
    prompt = Prompt(Head(backbone.shape.hidden_size, 2, "last", 0, backbone.prompt_dtype))
    batch = make_batch([prompt])
    ours = hidden_states(backbone, [prompt], batch)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = text_rows(batch.input_ids[0], batch)[row : row + 1, :length]
        theirs = stock_model(folder)(input_ids=ids).last_hidden_state
        assert_equal([text_rows(ours, batch)[row, :length]], [theirs[0]], BOUNDS["float64"])
