"""A backbone that is missing, damaged or does not fit ends in one clear message and no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support.failures import failure, write
from tests.support.tiny import make_backbone

BACKBONES = [
    ("/nowhere/at/all", "no such folder"),
    ("package://no_such_package/model", "no package 'no_such_package'"),
    ("package://json/model", "no package 'json' is installed"),
    ("package://", "no package ''"),
    ("~no_such_user/model", "no such folder"),
    (__file__, "a file; give the folder"),
    (str(Path(__file__).parent), "holds no config.json"),
]


@pytest.mark.parametrize(("path", "expected"), BACKBONES)
def test_missing_backbones(raw, tmp_path, capsys, path, expected):
    raw["backbone"]["path"] = path
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pytorch_model.bin", "pytorch_model.bin cannot be read; copy it anew, or get the weights as safetensors"),
        ("weights.pt", "no model.safetensors there (weights.pt is not read; of pickles only pytorch_model.bin is)"),
        ("tf_model.h5", "no model.safetensors there (tf_model.h5 is not read; of pickles"),
    ],
)
def test_weights_of_other_kinds_are_named(raw, tmp_path, capsys, monkeypatch, backbone, name, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = shutil.copytree(backbone, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(b"\x80\x04.")
    raw["backbone"]["path"] = str(copy)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


def _edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _remove_tokenizer(folder):
    for file in folder.glob("token*"):
        file.unlink()


DAMAGES = [
    ("config is no JSON", lambda f: (f / "config.json").write_text("{"), "its config.json cannot be used"),
    ("config without type", lambda f: (f / "config.json").write_text("{}"), "its config.json cannot be used"),
    ("config of bad type", lambda f: _edit_config(f, hidden_size="x"), "expected int, got str"),
    ("config of another size", lambda f: _edit_config(f, hidden_size=16), "the weights do not fit config.json"),
    ("config of odd heads", lambda f: _edit_config(f, num_attention_heads=5), "not a multiple of the number"),
    ("truncated weights", lambda f: _halve(f / "model.safetensors"), "the weights cannot be loaded"),
    ("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "the weights cannot be loaded"),
    ("garbled weights", lambda f: (f / "model.safetensors").write_bytes(b"?" * 99), "the weights cannot be loaded"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "no model.safetensors there; save the model"),
    ("lacking a tensor", _drop_tensor, "lack 1 of the model's tensors (encoder.layer.1.output.dense.weight)"),
    ("no tokenizer", _remove_tokenizer, "no tokenizer there (tokenizer.json"),
    ("empty tokenizer", lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
    (
        "smaller model",
        lambda f: make_backbone(f, "bert", vocab_size=40),
        "the tokenizer has 68 tokens, the word embedding 40 rows",
    ),
]


@pytest.mark.parametrize(("name", "damage", "expected"), DAMAGES, ids=[name for name, _, _ in DAMAGES])
def test_a_damaged_backbone_is_named(raw, tmp_path, capsys, backbone, name, damage, expected):
    copy = shutil.copytree(backbone, tmp_path / "copy")
    damage(copy)
    raw["backbone"]["path"] = str(copy)
    message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out", "--dry-run")
    assert f"backbone.path={copy}" in message
    assert expected in message


def test_hub_ids_without_a_network(raw, tmp_path, capsys, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    good = raw["backbone"]["path"]
    raw["backbone"]["path"] = "no-such-org/no-such-model"
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "no such folder, and not to be had from the hub" in message
    assert "check the id and the network" in message
    raw["backbone"]["path"] = good
    for data, expected in (("no-such-org/no-such-data", "data.path=no-such-org"), (None, "data set 'aps/super_glue'")):
        raw["data"]["path"] = data
        raw["task"] = "boolq"
        assert expected in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    raw["task"] = {"kind": "classification"}
    assert "has no data set of its own" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_unknown_family(raw, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "berta"}))
    raw["backbone"]["path"] = str(other)
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "other: backbone of model_type 'berta' is not supported (the nearest that is: '" in message


def test_prompt_and_text_beyond_the_position_table(raw, tmp_path, capsys):
    raw["data"]["max_length"] = 60
    assert "set data.max_length to 59 or less" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    raw["prompt"]["length"] = 70
    assert "leave room for the text, shorten the prompt" in failure(
        capsys, "--config", write(tmp_path, raw), "--dry-run"
    )


def test_no_room_for_text(raw, tmp_path, capsys):
    raw["data"]["max_length"] = 2
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "data.max_length=2 leaves no room for text beside 2 special tokens; give 3 or more" in message


def test_a_pooler_that_the_family_lacks(raw, tmp_path, capsys):
    raw["backbone"]["path"] = str(make_backbone(tmp_path / "llama", "llama"))
    raw["head"] = {"pooling": "pooler"}
    message = failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
    assert "(llama) has no pooler; choose 'last', 'mean' or 'first'" in message


def test_layers_out_of_range(raw, tmp_path, capsys):
    raw["prompt"]["layers"] = [1, 7]
    assert "prompt.layers=[1, 7]" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")


def test_a_model_that_sees_images_names_the_one_that_reads_text(raw, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    raw["backbone"]["path"] = str(other)
    assert "whose model_type is 'gemma3_text'" in failure(capsys, "--config", write(tmp_path, raw), "--dry-run")
