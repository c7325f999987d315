"""A prompt of a stranger, whose checksums are right and whose content is not: refused in a sentence, before anything is made of it."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save

from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.manifest import sealed
from tests.support.served import export, export_decoder
from tests.support.tiny import make_backbone, make_tags, make_texts, run_json


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompts of several methods and kinds on an encoder."""
    folder = tmp_path_factory.mktemp("prompts")
    backbone, texts = make_backbone(folder / "backbone", "bert"), make_texts(folder / "texts")
    runs = {
        "deep": run_json(backbone, texts),
        "pooled": run_json(backbone, texts, method="head", head={"pooling": "pooler"}),
        "upper": run_json(backbone, texts, prompt={"layers": [1, 2]}),
        "shallow": run_json(backbone, texts, method="shallow_prompt"),
        "head": run_json(backbone, texts, method="head", head={"pooling": "mean"}),
        "beside": run_json(backbone, texts, train={"also": ["norms"]}),
        "tags": run_json(backbone, make_tags(folder / "tags"), task={"kind": "tagging", "name": "tags"}),
    }
    for name, raw in runs.items():
        export(folder, name, raw)
    return folder / "prompts"


def forge(source, folder, changes=None, tensors=None):
    """A copy with other keys (by dotted path; a function gets the old value) and other tensors, sealed as a run seals it."""
    copy = shutil.copytree(source, folder)
    manifest = json.loads((copy / "prompt.json").read_text())
    del manifest["sha256_of_the_rest"]
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        place = manifest
        for parent in parents:
            place = place[parent]
        place[key] = value(place[key]) if callable(value) else value
    if tensors:
        content = save({**load_file(copy / "prompt.safetensors"), **tensors})
        (copy / "prompt.safetensors").write_bytes(content)
        manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (copy / "prompt.json").write_text(json.dumps(sealed(manifest)))
    return copy


def test_a_forged_copy_without_changes_is_read(prompts, tmp_path):
    """So that what is refused below is refused for its change."""
    for name in ("deep", "pooled", "upper", "shallow", "head", "beside", "tags"):
        attach(load_prompt(forge(prompts / name, tmp_path / name)))


HUGE = 10**12
KEYS = [
    ("deep", {"method": "deeper"}, "method"),
    ("deep", {"method": "none"}, "has no prompt"),
    ("deep", {"method": "head"}, '"prefix" is'),
    ("deep", {"task": ["boolq"]}, "task"),
    ("deep", {"task": "../../boolq"}, "is unknown"),
    ("deep", {"task": {"kind": "os"}}, "task.kind"),
    ("deep", {"task": {"kind": "classification", "text": 5}}, "task.text"),
    ("deep", {"task": "copa"}, "template"),
    ("deep", {"labels": "abc"}, "labels"),
    ("deep", {"labels": lambda was: [*was, "more"]}, '"head.bias" is (3,), and should be (4,)'),
    ("deep", {"labels": lambda was: [was[0]] * 3}, "not the names of different answers"),
    ("deep", {"template": "other"}, "template"),
    ("deep", {"max_length": 0}, "max_length"),
    ("deep", {"max_length": True}, "max_length"),
    ("deep", {"max_length": float("nan")}, "max_length"),
    ("deep", {"stride": "8"}, "stride"),
    ("deep", {"length": HUGE}, '"prefix" is'),
    ("deep", {"positions": "anywhere"}, "positions"),
    ("deep", {"layers": [0, 1]}, '"prefix" is'),
    ("upper", {"layers": [2, 1]}, "layers"),
    ("upper", {"layers": [1, 1]}, "layers"),
    ("upper", {"layers": [-1, 1]}, "layers"),
    ("upper", {"layers": [1, HUGE]}, "layers"),
    ("deep", {"pooling": "everything"}, "pooling"),
    ("deep", {"pooling": "tokens"}, "pooling"),
    ("deep", {"pooling": "cloze"}, "pooling"),
    ("tags", {"pooling": "mean"}, "pooling"),
    ("deep", {"shape": [3, 4, 8]}, "shape"),
    ("deep", {"shape": lambda was: [was[0], was[1], was[2], HUGE]}, "shape"),
    ("upper", {"shape": lambda was: [HUGE, *was[1:]]}, "shape"),
    ("head", {"shape": lambda was: [*was[:3], 65536]}, '"head.weight" is'),
    ("shallow", {"length": 2}, '"inputs" is'),
    ("beside", {"also": lambda was: {name: HUGE for name in was}}, '"also.'),
    ("beside", {"also": ["a"]}, "also"),
    ("deep", {"decode": {"num_beams": 0}}, "decode.num_beams"),
    ("deep", {"backbone.dtype": "float8"}, "dtype"),
    ("deep", {"backbone.attention": "theirs"}, "attention"),
    ("deep", {"backbone.revision": 5}, "revision"),
    ("deep", {"backbone.path": 5}, "path"),
    ("deep", {"backbone": []}, "backbone"),
    ("head", {"method": "full", "backbone.path": "../../etc"}, "method 'full' has its model beside the prompt"),
    ("head", {"method": "full", "backbone.path": "/etc"}, "method 'full' has its model beside the prompt"),
    ("head", {"method": "full", "backbone.path": "../.."}, "method 'full' has its model beside the prompt"),
]


@pytest.mark.parametrize(("name", "changes", "said"), KEYS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(KEYS)])
def test_a_key_that_no_run_writes_is_refused(prompts, tmp_path, name, changes, said):
    with pytest.raises(UserError, match="no run writes such a prompt") as refusal:
        load_prompt(forge(prompts / name, tmp_path / "forged", changes))
    assert said in str(refusal.value)


TENSORS = [
    ("deep", {"head.bias": torch.zeros(4)}, '"head.bias" is (4,)'),
    ("deep", {"more": torch.zeros(4)}, '"more" is (4,), and should be not there'),
    ("deep", {"head.weight": torch.zeros(3, 16, 2)}, '"head.weight" is'),
    ("deep", {"prefix": torch.zeros(3, 2, 4, 5, 8, dtype=torch.int64)}, "which no prompt is"),
    ("deep", {"prefix": torch.zeros(())}, '"prefix" is ()'),
    ("shallow", {"inputs": torch.zeros(5)}, '"inputs" is (5,)'),
    ("head", {"head.pooler.weight": torch.zeros(1, 1)}, '"head.pooler.bias" is missing'),
]


@pytest.mark.parametrize(("name", "tensors", "said"), TENSORS, ids=[str(i) for i in range(len(TENSORS))])
def test_a_tensor_that_does_not_follow_from_the_keys_is_refused(prompts, tmp_path, name, tensors, said):
    with pytest.raises(UserError, match="no run writes such a prompt") as refusal:
        load_prompt(forge(prompts / name, tmp_path / "forged", tensors=tensors))
    assert said in str(refusal.value)


def test_what_fits_its_keys_and_not_its_backbone_is_refused(prompts, tmp_path):
    """The fingerprint is right: anybody can copy that of a model that all have."""
    wide = torch.zeros(9, 2, 4, 5, 8)
    cases = {
        "taller": ("deep", {"shape": lambda was: [9, *was[1:]]}, {"prefix": wide}, "is made for [9, 4, 8, 32]"),
        "wider": ("shallow", {}, {"inputs": torch.zeros(5, 7)}, "its vectors have 7 numbers"),
        "elsewhere": ("beside", {"also": {"no.such": 2}}, {}, 'no vector "no.such"'),
    }
    for name, (source, changes, tensors, said) in cases.items():
        folder = forge(prompts / source, tmp_path / name, changes, tensors)
        if name == "elsewhere":
            content = save({"also.no.such": torch.zeros(2), **only(folder, "head.", "prefix")})
            (folder / "prompt.safetensors").write_bytes(content)
            shutil.copytree(folder, tmp_path / "again")
            folder = forge(tmp_path / "again", tmp_path / "sealed", {"sha256": hashlib.sha256(content).hexdigest()})
        with pytest.raises(UserError, match="does not fit the backbone that it names") as refusal:
            attach(load_prompt(folder))
        assert said in str(refusal.value)


def only(folder, *starts):
    return {
        name: tensor for name, tensor in load_file(folder / "prompt.safetensors").items() if name.startswith(starts)
    }


def test_a_record_of_a_backbone_that_cannot_be_read_is_another_backbone(prompts, tmp_path):
    right = load_prompt(prompts / "deep").manifest["backbone"]["identity"]
    for number, record in enumerate(({**right, "config": 5}, {"weights": right["weights"]}, [], {"config": {}}, 7)):
        forged = load_prompt(forge(prompts / "deep", tmp_path / str(number), {"backbone.identity": record}))
        with pytest.raises(UserError, match="was trained on"):
            attach(forged)


def test_a_head_that_reads_a_pooler_needs_one(tmp_path):
    """A decoder has none, whatever the prompt says."""
    prompts = export_decoder(tmp_path)
    forged = load_prompt(forge(prompts / "classes", tmp_path / "forged", {"pooling": "pooler"}))
    with pytest.raises(UserError, match="its head reads the backbone's pooler"):
        attach(forged)


def test_differences_of_other_layers_are_refused(tmp_path):
    pytest.importorskip("peft", reason="the extra lora is not installed")
    backbone, texts = make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts")
    export(tmp_path, "lora", run_json(backbone, texts, method="lora"))
    names = list(load_file(tmp_path / "prompts" / "lora" / "prompt.safetensors"))
    first = next(name for name in names if name.endswith("/A"))
    for number, tensors in enumerate(
        ({first: torch.zeros(8)}, {first: torch.zeros(3, 3)}, {"lora.other/A": torch.zeros(8, 2)})
    ):
        forged = load_prompt(forge(tmp_path / "prompts" / "lora", tmp_path / str(number), tensors=tensors))
        with pytest.raises(UserError, match="not of this backbone's layers"):
            attach(forged)
