"""What a DeBERTa's config may ask for, each against the layers written out; the contract of all families is elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from prompt_tuning.backbone.families.deberta import _index
from prompt_tuning.errors import UserError
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prompt import Prompt
from tests.contracts.test_families import (
    BOUNDS,
    assert_equal,
    has_types,
    independent_states,
    make_batch,
    make_prompt,
    open_backbone,
    prefix_gradients,
    ramp_loss,
)
from tests.support.packed import real, text_rows
from tests.support.tiny import make_backbone

RELEASED = {"position_biased_input": False, "type_vocab_size": 0}
ONE = {
    "as released": RELEASED,
    "content to position": {"pos_att_type": ["c2p"]},
    "position to content": {"pos_att_type": "p2c"},
    "no relative positions": {"relative_attention": False, "pos_att_type": None},
    "no terms of position": {"pos_att_type": []},
    "texts longer than the table": {**RELEASED, "max_relative_positions": 4},
}
TWO = {
    "as released": {**RELEASED, "share_att_key": True, "position_buckets": 8, "conv_kernel_size": 0},
    "convolution with shared keys": {**RELEASED, "share_att_key": True, "conv_kernel_size": 5, "conv_act": "tanh"},
    "content to position": {"pos_att_type": ["c2p"]},
    "position to content": {"pos_att_type": ["p2c"], "share_att_key": True},
    "no relative positions": {"relative_attention": False},
    "no buckets": {"position_buckets": -1},
    "texts longer than the table": {**RELEASED, "position_buckets": -1, "max_relative_positions": 4},
    "positions without norm": {"norm_rel_ebd": "none", "position_buckets": 6},
    "one layer": {"num_hidden_layers": 1},
}
VARIANTS = [("deberta", name) for name in ONE] + [("deberta-v2", name) for name in TWO]


@pytest.fixture(scope="module", params=VARIANTS, ids=" ".join)
def folder(request, tmp_path_factory):
    model_type, name = request.param
    changes = (ONE if model_type == "deberta" else TWO)[name]
    return make_backbone(tmp_path_factory.mktemp("deberta"), model_type, **changes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_variant_equals_its_layers_written_out(folder, attention):
    backbone = open_backbone(folder, attention=attention)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], with_types=has_types(backbone))
    ours = hidden_states(backbone, [prompt], batch)
    theirs = independent_states(folder, backbone, prompt, batch, "float64")
    assert_equal([ours[batch.tokens]], [theirs[real(batch)]], BOUNDS["float64"])
    found = prefix_gradients(ramp_loss(ours, batch), [prompt])
    assert_equal(found, prefix_gradients(ramp_loss(theirs, batch), [prompt]), BOUNDS["float64"])


def test_every_variant_without_prefix_equals_transformers(folder):
    """Its own model, one padded batch; the written-out layers and ours could share a mistake."""
    backbone = open_backbone(folder, "float32")
    prompt = Prompt(Head(backbone.shape.hidden_size, 2, "first", 0, torch.float32))
    batch = make_batch([prompt], with_types=has_types(backbone))
    model = AutoModel.from_pretrained(folder).eval()
    arguments = {} if batch.token_type_ids is None else {"token_type_ids": text_rows(batch.token_type_ids[0], batch)}
    ids, present = text_rows(batch.input_ids[0], batch), real(batch)
    theirs = model(input_ids=ids, attention_mask=present.long(), **arguments).last_hidden_state
    ours = hidden_states(backbone, [prompt], batch)
    assert_equal([ours[batch.tokens]], [theirs[present]], BOUNDS["float32"])


def test_checkpointing_and_what_is_read_change_no_variant(folder):
    """Attention and hidden dropout on; of what no head reads only the numbers may differ."""
    results = []
    for checkpointing in (False, True):
        backbone = open_backbone(folder, "float32", dropout=True, activation_checkpointing=checkpointing)
        prompt = make_prompt(backbone)
        batch = make_batch([prompt], only_read=True)
        torch.manual_seed(5)
        hidden = hidden_states(backbone, [prompt], batch)
        ramp = torch.linspace(-1, 1, len(batch.read) * hidden.shape[1]).view(len(batch.read), -1) ** 3
        results.append([hidden.detach()[batch.read], *prefix_gradients((hidden[batch.read] * ramp).sum(), [prompt])])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
    backbone = open_backbone(folder, "float64")
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], only_read=True)
    some, every = (hidden_states(backbone, [prompt], own)[batch.read] for own in (batch, replace(batch, read=None)))
    assert_equal([some], [every], BOUNDS["float64"])


@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2"])
@pytest.mark.parametrize("name", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_dropout_of_the_backbone_is_drawn_in_training_alone(tmp_path, model_type, name):
    rates = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, name: 0.5}
    backbone = open_backbone(make_backbone(tmp_path, model_type, **rates), dropout=True)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt])
    first, second = (hidden_states(backbone, [prompt], batch) for _ in range(2))
    assert not torch.equal(first, second)
    backbone.model.eval()
    first, second = (hidden_states(backbone, [prompt], batch) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("buckets", [4, 6, 32, 256])
def test_buckets_are_those_of_the_model(buckets):
    """Of version 2's own table, for rows of every length up to 600."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    class Encoder:
        position_buckets, max_relative_positions = buckets, 512

    rows = torch.empty(600, 1)
    theirs = (build_relative_position(rows, rows, buckets, 512)[0] + buckets).clamp(0, 2 * buckets - 1)
    for length in (1, 2, 17, 600):
        index = _index(Encoder, length)
        assert torch.equal(index, torch.cat([theirs[:length, 0].flip(0), theirs[0, 1:length]]))


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("deberta", {"talking_head": True}, "sets talking_head, which mixes the heads"),
        ("deberta-v2", {"attention_head_size": 4}, "attention_head_size=4, and 4 heads of a hidden size of 32 have 8"),
        ("deberta-v2", {"embedding_size": 24}, "embedding_size=24 beside hidden_size=32"),
        ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size=4, which must be odd"),
    ],
)
def test_what_prompts_are_not_built_for_is_refused_in_a_sentence(tmp_path, model_type, changes, said):
    from transformers import AutoConfig

    from tests.support.tiny import CONFIGS, make_tokenizer

    AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes}).save_pretrained(tmp_path)
    make_tokenizer(0).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        open_backbone(tmp_path)
