"""What single encoder families have of their own: names, poolers, dropouts, shared depths, windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from launcher import run as worker
from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.backbone.families import families
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.backbone.rows import Group, PackedRows
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.prompt.initialise import _some_tokens
from prompt_tuning.settings.sections import BackboneSection
from tests.contracts.test_families import (
    assert_equal,
    make_batch,
    make_prompt,
    open_backbone,
    prefix_gradients,
    ramp_loss,
)
from tests.support.disentangled import in_full_precision
from tests.support.fleets import open_fleet
from tests.support.tiny import CONFIGS, make_backbone, make_texts, make_tokenizer, run_json
from tests.support.written_out import rows_written_out

ENCODERS = sorted(name for name, family in families().items() if family.pooling != "last")


PRETRAINED = {
    **dict.fromkeys(("eurobert", "modernbert"), AutoModelForMaskedLM),
    **dict.fromkeys(("mt5", "umt5"), AutoModelForSeq2SeqLM),
}


@pytest.mark.parametrize("is_pretrained", [True, False])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_a_checkpoint_with_heads_is_its_backbone(tmp_path, model_type, is_pretrained):
    """All weights of the base model are found behind the model's own prefix, the pooler where there is one."""
    load = PRETRAINED.get(model_type, AutoModelForPreTraining) if is_pretrained else AutoModelForSequenceClassification
    whole = load.from_config(AutoConfig.for_model(model_type, **CONFIGS[model_type]))
    whole.save_pretrained(tmp_path)
    make_tokenizer(whole.config.pad_token_id).save_pretrained(tmp_path)
    ours = load_backbone(BackboneSection(path=str(tmp_path)), Grid())
    pooler = {} if ours.pooler is None else {f"pooler.{name}": p for name, p in ours.pooler.named_parameters()}
    found = {**dict(ours.model.named_parameters()), **pooler}
    auto = families()[model_type].auto
    base = whole.base_model if auto is AutoModel else auto.from_pretrained(tmp_path)
    expected = dict(base.named_parameters())
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_the_pooler_is_the_models(tmp_path, model_type):
    folder = make_backbone(tmp_path, model_type)
    ours = open_backbone(folder)
    theirs = ours.family.auto.from_pretrained(folder, dtype=torch.float64).eval()
    found = theirs(torch.tensor([[2, 5, 6, 3]]))
    if ours.family.pooling == "pooler":
        assert torch.equal(ours.pooler(found.last_hidden_state[:, :1]), found.pooler_output)
    else:
        assert ours.pooler is None and getattr(found, "pooler_output", None) is None


@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_dropout_of_the_config_has_its_place(model_type):
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    heads = ("classifier", "pooler", "qa_", "seq_classif", "summary")
    names = {name for name in config.to_dict() if "dropout" in name and not name.startswith(heads)}
    family = families()[model_type]
    assert {*family.hidden_dropout, *family.attention_dropout} == names


@pytest.mark.parametrize("model_type", ENCODERS)
def test_dropout_can_be_the_models_own_or_a_rate_or_off(tmp_path, model_type):
    folder = make_backbone(tmp_path, model_type)
    rates = [(True, 0.1, 0.1), (0.3, 0.3, 0.1), (False, 0, 0)]
    if not families()[model_type].hidden_dropout:
        del rates[1]
    for dropout, hidden, attention in rates:
        backbone = open_backbone(folder, dropout=dropout)
        config, family = backbone.model.config, backbone.family
        assert [getattr(config, name) for name in family.hidden_dropout] == [hidden] * len(family.hidden_dropout)
        assert [getattr(config, name) for name in family.attention_dropout] == [attention] * len(
            family.attention_dropout
        )
        prompt = make_prompt(backbone)
        batch = make_batch([prompt])
        first, second = (hidden_states(backbone, [prompt], batch) for _ in range(2))
        assert torch.equal(first, second) == (not dropout) == (not backbone.drops)


@pytest.fixture
def deep_albert(tmp_path):
    """Eight depths: two groups, of two shared layers each, run twice."""
    return make_backbone(tmp_path / "deep", "albert", num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2)


def test_groups_of_shared_layers_have_a_prefix_for_each_depth(deep_albert):
    backbone = open_backbone(deep_albert)
    assert backbone.shape.num_layers == 8
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], with_types=True)
    ours = hidden_states(backbone, [prompt], batch)
    model = AutoModel.from_pretrained(deep_albert, dtype=torch.float64).eval()
    theirs = rows_written_out(model, batch, prompt.prefix.table(), prompt.text_start)
    assert_equal(*(prefix_gradients(ramp_loss(states, batch), [prompt]) for states in (ours, theirs)), 1e-10)


def test_shared_layers_are_checkpointed_depth_by_depth(deep_albert):
    ran = []
    backbone = open_backbone(deep_albert, activation_checkpointing=True)
    shared = backbone.model.encoder.albert_layer_groups[1].albert_layers[0]
    shared.attention.register_forward_pre_hook(
        lambda module, given, named: ran.append(named["depth"]), with_kwargs=True
    )
    prompt = make_prompt(backbone)
    batch = make_batch([prompt])
    loss = ramp_loss(hidden_states(backbone, [prompt], batch), batch)
    assert ran == [4, 6]
    loss.backward()
    assert ran == [4, 6, 6, 4]


def test_a_forward_that_fails_leaves_nothing_behind(deep_albert):
    backbone = open_backbone(deep_albert)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], only_read=True)
    expected = hidden_states(backbone, [prompt], batch)

    def fail(module, given, named):
        if named["depth"] == 5:
            raise RuntimeError("out of memory")

    hook = backbone.model.encoder.albert_layer_groups[1].albert_layers[1].attention
    handle = hook.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        hidden_states(backbone, [prompt], make_batch([prompt], (5, 2), only_read=True))
    handle.remove()
    assert torch.equal(hidden_states(backbone, [prompt], batch), expected)


def test_a_shared_layer_begins_and_ends_at_a_depth(deep_albert):
    """Hidden states that enter a depth, and a forward from there on, against one whole forward."""
    backbone = open_backbone(deep_albert)
    family, model, prompt = backbone.family, backbone.model, make_prompt(backbone, layers=(5, 6))
    batch = make_batch([prompt])
    with family.layers_until(model, 5) as entering:
        model(input_ids=batch.input_ids, position_ids=batch.positions, rows=PackedRows(batch.groups))
    whole = hidden_states(backbone, [prompt], batch)
    with family.layers_from(model, 5, entering[0].detach()):
        table = prompt.prefix.by_layer()
        rows = PackedRows(batch.groups, tables=(table,))
        found = model(input_ids=batch.input_ids, position_ids=batch.positions, rows=rows).last_hidden_state[0]
    assert torch.equal(found, whole)
    assert len(family.attention_modules(model)) == 8


def test_a_prefix_is_seen_beyond_the_window_and_text_is_not(tmp_path):
    """Local layers alone, of four tokens to each side: three of them reach 12 tokens far."""
    folder = make_backbone(tmp_path, "modernbert", layer_types=["sliding_attention"] * 3)
    backbone = open_backbone(folder)
    prompt = make_prompt(backbone)
    batch = make_batch([prompt], (40,))
    before = hidden_states(backbone, [prompt], batch)
    with torch.no_grad():
        batch.input_ids[0, 0] += 1
    changed = (hidden_states(backbone, [prompt], batch) - before).abs().amax(1) > 0
    assert changed[:13].all() and not changed[13:].any()
    with torch.no_grad():
        prompt.prefix.table()[:, 2].add_(1)
    batch.input_ids[0, 0] -= 1
    assert ((hidden_states(backbone, [prompt], batch) - before).abs().amax(1) > 1e-6).all()


def test_a_local_last_layer_works_for_all_that_its_reads_see(tmp_path):
    """The head reads the first token alone; what enters the last, local layer must be all of its window."""
    folder = make_backbone(tmp_path, "modernbert")
    backbone = open_backbone(folder)
    prompt = make_prompt(backbone)
    results = []
    for only_read in (False, True):
        batch = make_batch([prompt], (3, 30, 9), only_read=only_read)
        results.append(hidden_states(backbone, [prompt], batch)[batch.first])
    assert_equal([results[1]], [results[0]], 1e-10)


def test_a_stored_table_of_sines_is_the_stored_one(tmp_path):
    """The model type can compute such positions; a file has its own, be they rounded or trained."""
    folder = make_backbone(tmp_path, "distilbert", sinusoidal_pos_embds=True)
    theirs = AutoModel.from_pretrained(folder).embeddings.position_embeddings.weight
    ours = load_backbone(BackboneSection(path=str(folder)), Grid()).model.embeddings.position_embeddings.weight
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("albert", {}),
        ("electra", {}),
        ("electra", {"embedding_size": 32}),
        ("distilbert", {}),
        ("t5", {}),
        ("umt5", {}),
    ],
)
def test_a_fine_tuned_model_is_one_of_transformers_own(tmp_path, monkeypatch, model_type, changes):
    """Exported weights load without any of ours, and give the hidden states that the exported prompt sees."""
    in_full_precision(monkeypatch)
    backbone = make_backbone(tmp_path / "backbone", model_type, **changes)
    raw = run_json(backbone, make_texts(tmp_path / "data"), method="full", train={"max_steps": 2})
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "out")]) == 0
    (member,) = (tmp_path / "out" / "members").iterdir()
    ours = attach(load_prompt(member / "prompt")).backbone
    auto = ours.family.auto
    theirs = auto.from_pretrained(member / "model", dtype=torch.float64).eval()
    start = auto.from_pretrained(backbone, dtype=torch.float64)
    assert set(theirs.state_dict()) == set(start.state_dict())
    ids = torch.tensor([[2, 5, 6, 3]])
    ours.model.eval()
    found = ours.model(ids, rows=PackedRows(Group.neighbours([(0, 4)]))).last_hidden_state
    assert_equal([found], [theirs(ids).last_hidden_state], 1e-10)
    assert (start.eval()(ids).last_hidden_state - found).abs().max() > 1e-4
    if ours.pooler is not None:
        assert not torch.equal(ours.pooler.weight, start.pooler.weight)


@pytest.mark.parametrize("init", ["normal", "text"])
@pytest.mark.parametrize("model_type", ["albert", "electra"])
def test_input_prompts_are_as_wide_as_words(tmp_path, model_type, init):
    """24 numbers, where hidden states have 32; and they train."""
    raw = run_json(
        make_backbone(tmp_path / "backbone", model_type), make_texts(tmp_path / "data"), method="shallow_prompt"
    )
    raw["prompt"]["init"] = init
    fleet = open_fleet(raw)
    inputs = fleet.members[0].prompt.inputs
    before = inputs.detach().clone()
    assert inputs.shape == (5, 24)
    fleet.train_step([0])
    assert (inputs != before).all()


def test_a_text_start_has_the_keys_and_values_of_each_depth(deep_albert, tmp_path):
    raw = run_json(deep_albert, make_texts(tmp_path / "data"), prompt={"init": "text"})
    member = open_fleet(raw).members[0]
    tokens = _some_tokens(member.splits["train"], 5, rng.key(member.seed, "init", "text")).astype(np.int64)
    model, found = AutoModel.from_pretrained(deep_albert, dtype=torch.float64).eval(), []
    for group in model.encoder.albert_layer_groups:
        for layer in group.albert_layers:
            for side in (layer.attention.key, layer.attention.value):
                side.register_forward_hook(lambda module, given, out: found.append(out[0]))
    model(torch.from_numpy(tokens)[None])
    expected = torch.stack(found, 1).view(5, 8, 2, 4, 8)
    assert_equal([member.prompt.prefix.table()], [expected], 1e-10)
