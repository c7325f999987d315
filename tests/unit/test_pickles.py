"""Weights in pickles: tensors alone are taken out of them, once; nothing in them runs."""

from __future__ import annotations

import json
import logging
import pathlib

import pytest
import torch
from safetensors.torch import load_file

from model_parallel.grid import Grid
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.tiny import make_backbone

INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    return make_backbone(tmp_path / "model", "bert")


def load(folder):
    return load_backbone(BackboneSection(path=str(folder)), Grid())


def pickled(folder, content=None, **options):
    """Put pytorch_model.bin in the place of model.safetensors; ``content`` makes it of the tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(content(tensors) if content else tensors, folder / "pytorch_model.bin", **options)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "content", [None, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {f"bert.{n}": x for n, x in t.items()}]
)
def test_it_is_the_same_backbone_as_in_safetensors(folder, caplog, new, content):
    caplog.set_level(logging.INFO)
    before = load(folder)
    pickled(folder, content, _use_new_zipfile_serialization=new)
    after = load(folder)
    assert after.fingerprint == before.fingerprint and after.pooler is not None
    assert all(torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))
    said = f"backbone.path={folder}: pytorch_model.bin is turned into safetensors once, into {after.description.folder}"
    assert [record.getMessage() for record in caplog.records].count(said) == 1
    load(folder)
    assert [record.getMessage() for record in caplog.records].count(said) == 1


def test_tensors_that_share_memory_and_half_numbers_are_kept(folder):
    def content(tensors):
        halves = {f"bert.{name}": tensor.half() for name, tensor in tensors.items()}
        return {**halves, "cls.predictions.decoder.weight": halves["bert.embeddings.word_embeddings.weight"]}

    pickled(folder, content)
    found = load_file(find_folder(str(folder)) / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert torch.equal(found["cls.predictions.decoder.weight"], found["bert.embeddings.word_embeddings.weight"])
    load(folder)


def test_several_files_with_an_index_are_one_model(folder):
    before = load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"pytorch_model-{i % 2 + 1:05}-of-00002.bin" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        torch.save({name: tensor for name, tensor in tensors.items() if where[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    after = load(folder)
    assert after.fingerprint == before.fingerprint
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=rf"{INDEX} names 'pytorch_model-00002-of-00002.bin', which is not there"):
        load(folder)


def test_safetensors_beside_it_go_first(folder):
    (folder / "pytorch_model.bin").write_bytes(b"no matter")
    assert find_folder(str(folder)) == folder


class Writes:
    """Unpickled by a careless reader, it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_would_run_something_is_refused(folder, tmp_path, new):
    target = tmp_path / "ran"
    pickled(folder, lambda tensors: {**tensors, "x": Writes(target)}, _use_new_zipfile_serialization=new)
    with pytest.raises(
        UserError, match=r"pytorch_model.bin holds more than tensors \(\S+\), which could run code"
    ) as error:
        load(folder)
    assert "weights_only" not in str(error.value)
    assert not target.exists()


def test_a_pickled_model_is_refused(folder):
    pickled(folder, lambda tensors: torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"holds more than tensors \(torch.nn.modules.linear.Linear\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b"", "pytorch_model.bin is empty; copy it anew"),
        (lambda b: b[: len(b) // 2], "pytorch_model.bin cannot be read; copy it anew"),
        (lambda b: b"?" * 300, "pytorch_model.bin cannot be read; copy it anew"),
        (lambda b: b"version https://git-lfs.github.com/spec/v1\n" * 9, "pytorch_model.bin is a pointer of Git LFS"),
    ],
)
def test_a_damaged_pickle_is_one_sentence(folder, change, says):
    pickled(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=rf"^backbone.path={folder}: {says}") as error:
        load(folder)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [lambda t: [1, 2], lambda t: {"epoch": 3}])
def test_a_pickle_of_no_tensors_is_one_sentence(folder, content):
    pickled(folder, content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds no tensors by name"):
        load(folder)


def test_a_model_that_is_not_supported_is_refused_before_its_weights_are_read(folder):
    pickled(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match="'mamba' is not supported"):
        load(folder)
