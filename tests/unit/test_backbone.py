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
from prompt_tuning.backbone.rows import Group, PackedRows
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from prompt_tuning.trainer import build_fleet
from tests.support.rows import encode
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
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    record = tmp_path / "some_backbone-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-backbone\nVersion: 1.0\n")
    (record / "top_level.txt").write_text("some_backbone\n")
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
    assert load(bert).description.pad_token == 0
    assert load(make_backbone(tmp_path / "roberta", "roberta")).description.pad_token == 1
    folder = make_backbone(tmp_path / "llama", "llama")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in values.items() if k != "pad_token"}))
    backbone = load(folder)
    assert backbone.tokenizer.pad_token_id is None
    assert backbone.description.pad_token == 0


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
    ids, rows = torch.tensor([[2, 5, 6, 3]]), PackedRows(Group.neighbours([(0, 4)]))
    one.model.eval(), other.model.eval()
    assert torch.equal(one.model(ids, rows=rows).last_hidden_state, other.model(ids, rows=rows).last_hidden_state)


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


def edited(folder, target, **config):
    """A copy of a backbone with other values in its config.json."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


def test_every_number_of_the_weights_is_part_of_the_identity(tmp_path):
    """Also those that a sample of the first bytes does not see."""
    folder = make_backbone(tmp_path / "one", "bert", vocab_size=3000)
    copy = shutil.copytree(folder, tmp_path / "two")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][-1, -1] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    here, there = load(folder).identity, load(copy).identity
    assert here.sampled == there.sampled
    assert here.difference(there.to_json()) == "other weights"
    assert here.difference(here.to_json()) is None and here.difference(here.sampled) is None


def test_another_config_value_or_tokenizer_is_another_backbone(tmp_path):
    folder = make_backbone(tmp_path / "one", "llama")
    own = load(folder).identity
    other = load(edited(folder, tmp_path / "eps", rms_norm_eps=0.5)).identity
    assert "rms_norm_eps: " in own.difference(other.to_json())
    copy = shutil.copytree(folder, tmp_path / "case")
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "Lowercase"}}))
    assert own.difference(load(copy).identity.to_json()) == "the same weights, but another tokenizer"


def test_what_changes_no_number_is_no_part_of_the_identity(tmp_path):
    folder = make_backbone(tmp_path / "one", "bert")
    other = edited(folder, tmp_path / "two", transformers_version="0", hidden_dropout_prob=0.3, id2label={"0": "x"})
    assert load(folder).identity.difference(load(other).identity.to_json()) is None


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_quantised_weights_are_refused(bert, tmp_path, method):
    with pytest.raises(UserError, match=rf"quantised weights \({method}\).*give the unquantised model"):
        load(edited(bert, tmp_path / "q", quantization_config={"quant_method": method}))


def test_weights_stored_as_codes_are_refused(bert, tmp_path):
    copy = shutil.copytree(bert, tmp_path / "q")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"quantised weights .* is stored as I8"):
        load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bert, tmp_path, value):
    copy = shutil.copytree(bert, tmp_path / "nan")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name][0, 0] = value
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"query.weight in model.safetensors holds NaN or infinity"):
        load(copy)


def test_tensors_that_the_model_does_not_take_are_refused_by_name(bert, tmp_path):
    copy = shutil.copytree(bert, tmp_path / "more")
    tensors = load_file(copy / "model.safetensors")
    extra = "encoder.layer.0.attention.self.distance_embedding.weight"
    heads = {"cls.predictions.bias": torch.zeros(3), "embeddings.position_ids": torch.zeros(1, 3)}
    save_file({**tensors, **heads}, copy / "model.safetensors", {"format": "pt"})
    load(copy)
    save_file({**tensors, extra: torch.zeros(3)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"1 tensors that the model .* does not have \({extra}\)"):
        load(copy)


def test_an_encoder_made_a_decoder_is_refused(bert, tmp_path):
    with pytest.raises(UserError, match="makes a decoder of this encoder"):
        load(edited(bert, tmp_path / "decoder", is_decoder=True))


def test_relative_positions_are_refused(bert, tmp_path):
    with pytest.raises(UserError, match="position_embedding_type 'relative_key' is not supported"):
        load(edited(bert, tmp_path / "relative", position_embedding_type="relative_key"))


def test_a_pad_token_out_of_the_vocabulary_is_replaced(tmp_path):
    folder = make_backbone(tmp_path / "one", "llama")
    copy = edited(folder, tmp_path / "two", pad_token_id=-1)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert 0 <= load(copy).description.pad_token < 80


def test_nothing_of_a_named_package_is_imported(tmp_path, monkeypatch):
    """A prompt from a stranger may name any path; a folder of that name may lie where it is used."""
    package = tmp_path / "planted"
    (package / "inner" / "model").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (package / "inner" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("package://planted.inner/model", "package://planted/inner/model"):
        with pytest.raises(UserError, match=r"no package 'planted(.inner)?' is installed"):
            find_folder(path)
    assert not (tmp_path / "ran").exists()
