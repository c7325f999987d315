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
from tests.support.tiny import make_backbone


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
