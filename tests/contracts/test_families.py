"""Contract of every backbone family: prefixes act exactly as an independent computation says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, DynamicCache
from transformers.masking_utils import sdpa_mask

from model_parallel.grid import Grid
from model_parallel.plan import matches
from prompt_tuning.backbone.families import families, find_family
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.run import hidden_states, member_logits
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tokens.features import Features
from tests.support.disentangled import in_full_precision
from tests.support.packed import real, text_rows
from tests.support.tiny import CONFIGS, make_backbone
from tests.support.written_out import WRITTEN_OUT, rows_written_out

FAMILIES = sorted(name for name, family in families().items() if not family.sites)
"""But encoder-decoders, whose contract is tests/unit/test_encoder_decoders.py."""
LENGTHS = (3, 11, 7, 1)
P = 5
BOUNDS = {"float64": 1e-10, "float32": 1e-5}


def test_every_family_has_a_tiny_model():
    assert set(CONFIGS) == set(families())


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp(request.param), request.param)


def open_backbone(folder, dtype="float64", attention="sdpa", **options):
    return load_backbone(BackboneSection(path=str(folder), dtype=dtype, attention=attention), Grid(), **options)


def make_prompt(backbone, length=P, seed=3, positions="after_prefix", **options):
    """A prompt whose prefix is large enough to matter."""
    prefix = Prefix(backbone.shape, length, seed, backbone.prompt_dtype, **options)
    with torch.no_grad():
        prefix.embedding.mul_(25)
    head = Head(backbone.shape.hidden_size, 2, "first", seed, backbone.prompt_dtype)
    return Prompt(head, prefix, positions=positions)


def make_batch(
    prompts,
    lengths=LENGTHS,
    members=None,
    vocabulary=60,
    with_types=False,
    seed=0,
    only=None,
    only_read=False,
    has_encoder=False,
):
    """Rows of random tokens laid out for the members' prompts; ``only``: the one row to lay out. All tokens are read unless
    ``only_read`` leaves that to the heads. ``has_encoder``: an encoder reads the first half of each row."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = generator.integers(4, vocabulary, offsets[-1]).astype(np.int32)
    types = generator.integers(0, 2, offsets[-1]).astype(np.int8) if with_types else None
    notes = SimpleNamespace(num_encoded=(np.array(lengths) + 1) // 2 * has_encoder)
    features = Features(tokens, types, offsets, 1, np.zeros(len(lengths), np.int64), notes=notes)
    members = np.zeros(len(lengths), np.int64) if members is None else np.asarray(members)
    pool = Pool([features] * len(prompts), PromptShapes.of(prompts))
    items = Items(members, np.arange(len(lengths)), np.ones(len(lengths)))
    chosen = items if only is None else items.take(np.array([only]))
    batch = lay_out(pool, chosen, pad_token=0, device=torch.device("cpu"))
    return batch if only_read else replace(batch, read=None)


def ramp_loss(hidden, batch):
    """A fixed projection of the text tokens, by their places in their rows: a plain sum after a final norm would have no
    gradient. ``hidden`` [T, H], or padded [R, L, H]."""
    rows = text_rows(hidden, batch) if hidden.dim() == 2 else hidden
    ramp = torch.linspace(-1, 1, 11 * rows.shape[2], dtype=rows.dtype).view(11, -1)[: rows.shape[1]] ** 3
    return (rows * ramp)[real(batch)].sum()


def prefix_gradients(loss, prompts):
    """One gradient a layer and side, as separate tensors, so that no large one hides a wrong small one."""
    for prompt in prompts:
        prompt.zero_grad()
    loss.backward()
    result = []
    for prompt in prompts:
        table = prompt.prefix.embedding.grad.view(prompt.length, -1, 2, prompt.prefix.shape.layer_width // 2)
        result += [table[:, layer, side] for layer in range(table.shape[1]) for side in range(2)]
    return result


def assert_equal(found, expected, bound):
    for a, b in zip(found, expected, strict=True):
        assert b.norm() > 1e-3, "the expected tensor would prove nothing"
        assert ((a - b).norm() / b.norm()).item() < bound


def written_out(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **_):
    """Stock attention whose softmax is never in float32, as theirs is where scores are capped."""
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * scaling
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    if attention_mask is None:
        attention_mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril(scores.shape[3] - scores.shape[2])
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value.repeat_interleave(repeats, 1)).transpose(1, 2), None


def stock_model(folder, dtype="float64"):
    """Transformers' own model, by its SDPA where it has one."""
    AttentionInterface.register("exact", written_out)
    AttentionMaskInterface.register("exact", sdpa_mask)
    own = {"gemma2": "exact", "deberta": "eager", "deberta-v2": "eager"}
    model_type = AutoConfig.from_pretrained(folder).model_type
    attention = own.get(model_type, "sdpa")
    kind = find_family(model_type).auto
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()


def has_types(backbone):
    return getattr(backbone.model.config, "type_vocab_size", 1) > 1


def independent_states(folder, backbone, prompt, batch, dtype):
    """Hidden states by transformers' own cache (its model, its SDPA, one padded batch), or written out where it has none."""
    model = stock_model(folder, dtype)
    rows = len(batch.lengths)
    table = prompt.prefix.table()
    if model.config.model_type in WRITTEN_OUT:
        return rows_written_out(model, batch, table, prompt.text_start)
    cache = DynamicCache()
    for layer in range(table.shape[1]):
        key, value = (table[:, layer, side].transpose(0, 1).expand(rows, -1, -1, -1) for side in range(2))
        cache.update(key, value, layer)
    ids, present = text_rows(batch.input_ids[0], batch), real(batch)
    mask = torch.cat([torch.ones(rows, prompt.length, dtype=torch.long), present.long()], 1)
    arguments = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = text_rows(batch.token_type_ids[0], batch)
    if backbone.family.pooling != "last":
        # The route's own position ids count padding in for RoBERTa; real tokens agree either way.
        index = torch.arange(ids.shape[1]).expand_as(ids) + prompt.length
        from_padding = any(name in model.config.model_type for name in ("roberta", "camembert", "data2vec"))
        first = model.config.pad_token_id + 1 if from_padding else 0
        arguments["position_ids"] = torch.where(present, index + first, first)
    return model(**arguments).last_hidden_state


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_forward_and_gradients_equal_an_independent_computation(folder, dtype, attention):
    backbone = open_backbone(folder, dtype, attention)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], with_types=has_types(backbone))
    ours = hidden_states(backbone, [prompt], batch)
    theirs = independent_states(folder, backbone, prompt, batch, dtype)
    assert_equal([ours[batch.tokens]], [theirs[real(batch)]], BOUNDS[dtype])
    found = prefix_gradients(ramp_loss(ours, batch), [prompt])
    expected = prefix_gradients(ramp_loss(theirs, batch), [prompt])
    assert_equal(found, expected, BOUNDS[dtype])


@pytest.mark.parametrize("only_read", [False, True])
def test_checkpointing_gives_the_same_bits(folder, only_read):
    results = []
    for checkpointing in (False, True):
        backbone = open_backbone(folder, "float32", activation_checkpointing=checkpointing)
        prompt = make_prompt(backbone)
        prompt.dropout = 0.3
        batch = make_batch([prompt], only_read=only_read)
        hidden = hidden_states(backbone, [prompt], batch, row_keys=torch.arange(len(batch.lengths)))
        # Another batch beside it, whose forward comes between: each backward must know its own.
        hidden_states(backbone, [prompt], make_batch([prompt], (5, 2), only_read=True))
        results.append([hidden.detach(), *prefix_gradients(ramp_loss(hidden, batch), [prompt])])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_what_no_head_reads_changes_nothing(folder):
    """Logits, and all trained tensors' gradients, where the last layer works for the read tokens alone; in both, one row
    each of heads that see the first token and the last."""
    backbone, results = open_backbone(folder), []
    for only_read in (False, True):
        prompts = [make_prompt(backbone, 5, 1), make_prompt(backbone, 2, 2)]
        prompts[1].head.pooling = "last"
        batch = make_batch(prompts, LENGTHS, [0, 1, 1, 0], only_read=only_read)
        assert (batch.read is not None and len(batch.read) == 4) == only_read
        logits = torch.cat([found.flatten() for found in member_logits(backbone, prompts, batch)])
        gradients = prefix_gradients((logits * torch.linspace(-1, 1, len(logits))).sum(), prompts)
        results.append([logits.detach(), *gradients, *(prompt.head.weight.grad for prompt in prompts)])
    assert_equal(results[1], results[0], BOUNDS["float64"])


def test_fewer_tokens_run_through_the_last_layer(folder):
    backbone = open_backbone(folder)
    seen = []
    (*_, last) = [rule.modules for rule in backbone.family.plan.rules if rule.cut == "rows"]
    (*_, module) = [module for name, module in backbone.model.named_modules() if matches(name, last)]
    module.register_forward_hook(lambda module, given, found: seen.append(given[0].shape[-2]))
    for only_read in (False, True):
        prompt = make_prompt(backbone)
        hidden_states(backbone, [prompt], make_batch([prompt], only_read=only_read))
    # Where depths share the module, it runs once for each.
    assert [seen[len(seen) // 2 - 1], seen[-1]] == [sum(LENGTHS), len(LENGTHS)]
    assert set(seen[:-1]) == {sum(LENGTHS)}


@pytest.mark.parametrize("positions", ["after_prefix", "from_zero"])
def test_mixed_members_equal_each_row_alone(folder, positions):
    """Members of different lengths, layers and none at all in one batch, against one row of one member by itself."""
    backbone = open_backbone(folder)
    prompts = [
        make_prompt(backbone, 5, 1, positions),
        make_prompt(backbone, 2, 2, "after_prefix", layers=(0, 2)),
        Prompt(Head(backbone.shape.hidden_size, 2, "first", 0, backbone.prompt_dtype)),
    ]
    members = [0, 1, 2, 0, 1, 1, 2]
    lengths = (3, 7, 7, 3, 3, 3, 7)
    batch = make_batch(prompts, lengths, members)
    assert len(batch.groups) < len(lengths), "rows of equal length run together"
    hidden = hidden_states(backbone, prompts, batch)
    found = prefix_gradients(ramp_loss(hidden, batch), prompts[:2])
    total = 0.0
    texts = text_rows(hidden, batch)
    for row, member in enumerate(members):
        place = int((batch.examples == row).nonzero())
        alone = make_batch(prompts, lengths, members, only=row)
        expected = hidden_states(backbone, [prompts[member]], alone)
        assert_equal([texts[place, : lengths[row]]], [expected], 1e-10)
        total = total + ramp_loss(expected, alone)
    assert_equal(
        [g for g in found if g.norm() > 0], [g for g in prefix_gradients(total, prompts[:2]) if g.norm() > 0], 1e-10
    )


def test_nan_in_one_member_reaches_no_other(folder):
    backbone = open_backbone(folder)
    prompts = [make_prompt(backbone, 5, 1), make_prompt(backbone, 2, 2)]
    with torch.no_grad():
        prompts[0].prefix.embedding.fill_(float("nan"))
    batch = make_batch(prompts, (7, 7, 3, 7), [0, 1, 1, 0])
    hidden = text_rows(hidden_states(backbone, prompts, batch), batch)
    rows = batch.member_of_row == 1
    assert not hidden[~rows].isfinite().all()
    assert hidden[rows].isfinite().all()
    ramp_loss(hidden, batch).backward()
    assert prompts[1].prefix.embedding.grad.isfinite().all()


def test_positions_change_the_numbers(folder):
    """Both policies must be told apart, or the equalities above would prove nothing about positions; but where tokens have
    none of their own."""
    backbone = open_backbone(folder)
    prompts = [make_prompt(backbone, positions=positions) for positions in ("after_prefix", "from_zero")]
    after, zero = (hidden_states(backbone, [prompt], make_batch([prompt])) for prompt in prompts)
    assert ((after - zero).abs().max() > 1e-3) == backbone.family.has_positions(backbone.model.config)


def test_position_table_overflow_is_one_sentence(folder):
    backbone = open_backbone(folder)
    limit = backbone.family.max_positions(backbone.model.config)
    backbone.description.check_length(5, limit - 5, "after_prefix")
    backbone.description.check_length(5, limit, "from_zero")
    if not backbone.family.has_positions(backbone.model.config):
        backbone.description.check_length(5, limit, "after_prefix")
        return
    with pytest.raises(UserError, match=f"set data.max_length to {limit - 5} or less"):
        backbone.description.check_length(5, limit - 4, "after_prefix")


@pytest.mark.parametrize("with_prefix", [False, True])
def test_input_prompts_equal_a_hand_made_sequence(folder, with_prefix, monkeypatch):
    """Shallow prompts of two lengths in one batch, against inputs_embeds written out row by row."""
    in_full_precision(monkeypatch)
    backbone = open_backbone(folder)
    hidden_size = backbone.shape.hidden_size
    stock = stock_model(folder)
    head = Head(hidden_size, 2, "first", 0, torch.float64)
    vectors = [torch.randn(length, backbone.word_size, dtype=torch.float64) for length in (4, 2)]
    prompts = [Prompt(head, inputs=own) for own in vectors]
    if with_prefix:
        prompts[1] = make_prompt(backbone, 3)
    members = [0, 1, 1, 0]
    batch = make_batch(prompts, LENGTHS, members)
    hidden, ids = (text_rows(v, batch) for v in (hidden_states(backbone, prompts, batch), batch.input_ids[0]))
    for place, row in enumerate(batch.examples.tolist()):
        prompt, length = prompts[members[row]], LENGTHS[row]
        if prompt.inputs is None:
            continue
        words = stock.get_input_embeddings()(ids[place : place + 1, :length])
        expected = stock(inputs_embeds=torch.cat([prompt.inputs[None], words], 1)).last_hidden_state
        assert_equal([hidden[place, :length]], [expected[0, prompt.length :]], 1e-10)


def test_bfloat16_follows_float32(folder):
    """Same sign and size of gradient; no more is promised of bfloat16."""
    gradients = []
    for dtype in ("float32", "bfloat16"):
        backbone = open_backbone(folder, dtype)
        prompt = make_prompt(backbone)
        batch = make_batch([prompt])
        gradients.append(
            torch.cat(
                [
                    g.flatten()
                    for g in prefix_gradients(ramp_loss(hidden_states(backbone, [prompt], batch), batch), [prompt])
                ]
            )
        )
    assert gradients[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
