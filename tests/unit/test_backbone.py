"""Backbones: found, loaded, frozen, fingerprinted. How prefixes act on them is a contract of the families."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from model_parallel.grid import Grid
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.data.load import encode
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.kinds import Encoding
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.schema import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import CONFIGS, make_backbone, make_texts, make_tokenizer, run_json


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("bert"), "bert")


def load(folder, dtype="float64", **options):
    return load_backbone(BackboneSection(path=str(folder), dtype=dtype), Grid(), **options)


def test_folders_and_packages_are_found(bert, tmp_path, monkeypatch):
    assert find_folder(str(bert)) == bert
    package = tmp_path / "some_backbone"
    shutil.copytree(bert, package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_folder("package://some_backbone/model") == package / "model"
    assert "some_backbone" not in sys.modules, "the package's own code is not run"


@pytest.mark.parametrize(("dropout", "hidden", "attention"), [(True, 0.1, 0.1), (False, 0.0, 0.0), (0.25, 0.25, 0.1)])
def test_dropout_rates(bert, dropout, hidden, attention):
    config = load(bert, dropout=dropout).model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (hidden, attention)


def test_everything_is_frozen_unless_it_is_trained(bert):
    for trainable in (False, True):
        backbone = load(bert, trainable=trainable)
        weights = [*backbone.model.parameters(), *backbone.pooler.parameters()]
        assert {weight.requires_grad for weight in weights} == {trainable}


@pytest.mark.parametrize(
    ("dtype", "prompts"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")]
)
def test_prompts_are_float32_or_more(bert, dtype, prompts):
    backbone = load(bert, dtype)
    assert backbone.model.dtype == getattr(torch, dtype)
    assert backbone.prompt_dtype == getattr(torch, prompts)


def test_shape_counts_key_value_heads_and_their_own_size(tmp_path):
    shape = load(make_backbone(tmp_path, "llama")).shape
    assert (shape.num_layers, shape.key_value_heads, shape.head_size, shape.hidden_size) == (3, 2, 16, 32)


def test_the_pad_token_is_the_tokenizers_or_the_configs(bert, tmp_path):
    assert load(bert).pad_token == 0
    assert load(make_backbone(tmp_path / "roberta", "roberta")).pad_token == 1
    folder = make_backbone(tmp_path / "llama", "llama")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in values.items() if k != "pad_token"}))
    backbone = load(folder)
    assert backbone.tokenizer.pad_token_id is None
    assert backbone.pad_token == 0


def test_a_pretrained_pooler_is_used_and_is_no_part_of_the_prompt(bert, tmp_path):
    """Against transformers' own pooler output, text by text."""
    raw = run_json(bert, make_texts(tmp_path / "data"), method="head", head={"pooling": "pooler"})
    fleet = build_fleet(resolve(raw, tmp_path / "run.json"), Grid())
    member = fleet.members[0]
    assert set(member.tensors()) == {"head.weight", "head.bias"}
    assert member.prompt.head.pooler is None
    found = torch.from_numpy(split_outputs(fleet, [0], "dev")[0])
    model = AutoModel.from_pretrained(bert, dtype=torch.float64).eval()
    features = member.splits["dev"]
    for i in range(len(features)):
        ids = torch.from_numpy(features.tokens[features.offsets[i] : features.offsets[i + 1]]).long()[None]
        pooled = model(ids).pooler_output
        torch.testing.assert_close(
            found[i], (pooled @ member.prompt.head.weight.T + member.prompt.head.bias)[0], rtol=0, atol=1e-10
        )


def test_a_backbone_without_pooler_gives_every_prompt_its_own(tmp_path):
    backbone = load(make_backbone(tmp_path, "roberta", with_pooler=False))
    assert backbone.pooler is None
    assert getattr(backbone.model, "pooler", None) is None


def test_a_masked_lm_checkpoint_is_the_same_backbone(bert, tmp_path):
    """Its tensors have a prefix and company; the fingerprint and the hidden states are those of the base model."""
    base = AutoModel.from_pretrained(bert)
    whole = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **CONFIGS["bert"]))
    whole.bert.load_state_dict(base.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    one, other = load(bert), load(tmp_path)
    assert one.fingerprint == other.fingerprint
    assert one.pooler is not None and other.pooler is None
    ids = torch.tensor([[2, 5, 6, 3]])
    one.model.eval(), other.model.eval()
    assert torch.equal(one.model(ids).last_hidden_state, other.model(ids).last_hidden_state)


def test_the_fingerprint_is_of_the_weights_alone(bert, tmp_path):
    """Neither the type they are loaded in nor the number of their files matters."""
    expected = load(bert).fingerprint
    assert load(bert, "bfloat16").fingerprint == expected
    AutoModel.from_pretrained(bert).save_pretrained(tmp_path, max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load(tmp_path).fingerprint == expected


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.2.output.LayerNorm.bias"])
def test_one_changed_number_changes_the_fingerprint(bert, tmp_path, name):
    copy = shutil.copytree(bert, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[3] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).fingerprint != load(bert).fingerprint


def test_config_sizes_are_part_of_the_fingerprint(tmp_path):
    one, other = (
        load(make_backbone(tmp_path / str(heads), "bert", num_attention_heads=heads)).fingerprint for heads in (4, 8)
    )
    assert one != other


def test_the_tokenizer_is_the_backbones_own(bert):
    task = find_task({"kind": "classification"})
    features = encode(task, load(bert).tokenizer, [("here", {"text": "w1", "label": "a"})], Encoding(8), ("a", "b"))
    assert features.tokens.tolist() == make_tokenizer()("w1")["input_ids"]
