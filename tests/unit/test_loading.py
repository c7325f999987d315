"""Weights from one file or several, by the names that files really have; what is wrong with them is one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_parallel.grid import Grid
from model_parallel.loading import stored_tensors
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.tiny import make_backbone, make_language_backbone


def load(folder):
    return load_backbone(BackboneSection(path=str(folder)), Grid())


@pytest.fixture
def folder(tmp_path):
    return make_backbone(tmp_path / "model", "bert")


def in_shards(folder, count=3):
    """Cut a model's file into several with an index."""
    tensors = load_file(folder / "model.safetensors")
    where = {}
    for shard in range(count):
        names = sorted(tensors)[shard::count]
        save_file({name: tensors[name] for name in names}, folder / f"model-{shard}.safetensors")
        where.update(dict.fromkeys(names, f"model-{shard}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "model.safetensors").unlink()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_an_index_of_several_files_is_the_same_model(folder):
    single = load(folder)
    in_shards(folder)
    several = load(folder)
    assert same(single, several)
    assert single.fingerprint == several.fingerprint
    assert single.bytes_read == several.bytes_read > 0


def test_other_safetensors_beside_the_model_are_left_alone(folder):
    before = load(folder)
    save_file({"embeddings.word_embeddings.weight": torch.zeros(2, 2)}, folder / "adapter.safetensors")
    assert same(before, load(folder))
    assert load(folder).fingerprint == before.fingerprint


def test_prefixed_and_old_names_are_understood(folder):
    before = load(folder)
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"bert.{name}"] = tensor
    renamed["cls.predictions.bias"] = torch.zeros(3)
    save_file(renamed, folder / "model.safetensors")
    after = load(folder)
    assert same(before, after)
    assert after.pooler is not None
    assert before.bytes_read == after.bytes_read, "a head that is not used was read"


@pytest.mark.parametrize("names", ["gone.safetensors", "../model.safetensors", 7])
def test_an_index_that_names_what_is_not_there_is_one_sentence(folder, names):
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names}}))
    with pytest.raises(UserError, match=r"which is not there; copy the whole model"):
        load(folder)


def test_a_damaged_index_is_one_sentence(folder):
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text("{]")
    with pytest.raises(UserError, match=r"index.json is damaged"):
        load(folder)


def test_a_missing_shard_is_one_sentence(folder):
    in_shards(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 'model-1.safetensors', which is not there"):
        load(folder)


def test_a_cut_off_file_is_one_sentence(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"the weights cannot be loaded: model.safetensors: "):
        load(folder)


def test_only_headers_are_read_to_find_tensors(folder):
    found = stored_tensors(folder, {"embeddings.word_embeddings.weight"}, "bert")
    assert found["embeddings.word_embeddings.weight"].shape == (80, 32)


def renamed(folder, prefix, keep=lambda name: True, more=None):
    """Give all tensors of a folder a prefix and add others."""
    tensors = load_file(folder / "model.safetensors")
    names = {f"{prefix}{name}": tensor for name, tensor in tensors.items() if keep(name)}
    save_file({**names, **(more or {})}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.bert.", "_orig_mod.", "base_model.model.bert.", "a.b.c.d."]
)
def test_whatever_a_model_was_wrapped_in_is_seen_through(folder, prefix):
    before = load(folder)
    renamed(folder, prefix, more={"classifier.weight": torch.ones(2, 32), "criterion.weight": torch.ones(3)})
    after = load(folder)
    assert same(before, after) and after.pooler is not None
    assert after.fingerprint == before.fingerprint


def test_a_wrapped_model_is_taken_whole_too(folder):
    renamed(folder, "module.bert.", more={"module.bert.encoder.layer.0.adapter.weight": torch.ones(2)})
    with pytest.raises(
        UserError, match=r"1 tensors that the model .* does not have \(module.bert.encoder.layer.0.adapter"
    ):
        load(folder)


def test_two_models_in_one_file_are_not_guessed_between(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {f"{tower}.{n}": t.clone() for n, t in tensors.items() for tower in ("question", "passage")},
        folder / "model.safetensors",
    )
    with pytest.raises(UserError, match=r"the weights hold 2 such models \(passage\., question\.\)"):
        load(folder)


def test_the_models_own_prefix_goes_first_among_equals(folder):
    before = load(folder)
    tensors = load_file(folder / "model.safetensors")
    zeros = {f"teacher.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()} | zeros, folder / "model.safetensors")
    assert same(before, load(folder))


def test_files_without_an_index_are_whole_by_their_names(folder):
    before = load(folder)
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()
    for i in range(3):
        (folder / f"model-{i}.safetensors").rename(folder / f"model-{i + 1:05}-of-00003.safetensors")
    assert same(before, load(folder))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors there"):
        load(folder)


def test_numbers_of_several_types_are_read(folder):
    tensors = load_file(folder / "model.safetensors")
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    mixed = {name: tensor.to(kinds[i % 4]) for i, (name, tensor) in enumerate(sorted(tensors.items()))}
    save_file(mixed, folder / "model.safetensors")
    for name, parameter in load(folder).model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, mixed[name].float())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_may_stand_under_its_heads_name(tmp_path, tied):
    """safetensors keeps one name of tensors that share memory, and not always the base model's."""
    folder = make_language_backbone(tmp_path / "tied", "llama", tie_word_embeddings=True)
    before = load(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors")
    if tied:
        assert same(before, load(folder))
        return
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lack 1 of the model's tensors \(embed_tokens.weight\)"):
        load(folder)


@pytest.mark.parametrize("last", ["qweight", "SCB", "weight.absmax", "weight_scale", "W_q"])
def test_marks_of_quantised_weights_are_recognised(folder, last):
    renamed(folder, "", more={f"encoder.layer.0.output.dense.{last}": torch.ones(3)})
    with pytest.raises(UserError, match=rf"quantised weights \(.*{last} is stored\) cannot be trained on"):
        load(folder)


def test_a_pointer_of_git_lfs_is_told_from_a_file(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n" * 9)
    with pytest.raises(UserError, match=r"model.safetensors is a pointer of Git LFS and not the file itself"):
        load(folder)
