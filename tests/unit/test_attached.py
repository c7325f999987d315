"""Exported prompts at work and on disk: mixed batches of all kinds, predictions, and files that are whole or refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.prompt import export
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_texts, run_json

KINDS = {
    "long": {"prompt": {"length": 7}},
    "short": {"prompt": {"length": 2, "positions": "from_zero"}, "train": {"seed": 2}},
    "layers": {"prompt": {"length": 3, "layers": [1]}, "head": {"pooling": "mean"}},
    "shallow": {"method": "shallow_prompt", "prompt": {"length": 4}},
    "head": {"method": "head", "head": {"pooling": "first"}},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Prompts of five kinds for one task and one backbone, large enough to matter."""
    folder = tmp_path_factory.mktemp("kinds")
    backbone, data = make_backbone(folder / "backbone", "bert"), make_texts(folder / "data")
    for name, sections in KINDS.items():
        member = build_fleet(resolve(run_json(backbone, data, **sections), folder / "run.json"), Grid()).members[0]
        with torch.no_grad():
            for _, parameter in member.parameters:
                parameter.mul_(25)
        export_member(folder / name, member)
    return folder


TEXTS = [{"text": " ".join(f"w{(7 * i + j) % 60}" for j in range(1 + 3 * i % 11))} for i in range(15)]


def test_every_row_of_a_mixed_batch_is_under_its_own_prompt(kinds):
    """Five kinds of prompt in one batch, each row against its prompt alone; swapping two prompts is noticed."""
    prompts = [load_prompt(kinds / name) for name in KINDS]
    choice = [i % 5 for i in range(15)]
    mixed = attach(prompts).predict(TEXTS, prompts=choice)
    few = attach(prompts).predict(TEXTS, prompts=[(1, 4)[i % 2] for i in range(15)])
    for i, row in enumerate(TEXTS):
        (expected,) = attach(prompts[(1, 4)[i % 2]]).predict([row])
        assert few[i]["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-10)
        (alone,) = attach(prompts[choice[i]]).predict([row])
        assert mixed[i]["label"] == alone["label"]
        assert mixed[i]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-10)
        (other,) = attach(prompts[(choice[i] + 1) % 5]).predict([row])
        assert other["probabilities"] != pytest.approx(alone["probabilities"], abs=1e-4)


def test_small_batches_give_the_same_predictions(kinds):
    prompts = [load_prompt(kinds / name) for name in KINDS]
    whole = attach(prompts)
    parts = AttachedPrompts(whole.backbone, prompts, tokens_per_batch=40)
    choice = [(1, 4)[i % 2] for i in range(15)]  # not all that are attached
    for a, b in zip(whole.predict(TEXTS, choice), parts.predict(TEXTS, choice), strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-10)


def test_predictions_do_not_look_at_labels(kinds):
    model = attach(load_prompt(kinds / "long"))
    plain = model.predict(TEXTS[:3])
    for label in ("class0", "no such class", None, 17, ["odd"]):
        assert model.predict([{**row, "label": label} for row in TEXTS[:3]]) == plain


def test_a_row_without_the_column_is_named_by_its_number(kinds):
    model = attach([load_prompt(kinds / "long"), load_prompt(kinds / "head")])
    with pytest.raises(UserError, match="row 3: no column `text`"):
        model.predict([TEXTS[0], TEXTS[1], {"txt": "w1"}], prompts=[0, 0, 1])


def test_prompt_numbers_are_checked(kinds):
    model = attach([load_prompt(kinds / "long"), load_prompt(kinds / "head")])
    for wrong in (2, -1, np.int64(5), [0, 7, 1]):
        with pytest.raises(UserError, match="2 attached, counted from 0"):
            model.predict(TEXTS[:3], prompts=wrong)
    with pytest.raises(UserError, match="3 rows, but prompts for 2"):
        model.predict(TEXTS[:3], prompts=[0, 1])
    assert model.predict([], prompts=[]) == model.predict([]) == []
    assert model.predict(TEXTS[:2], prompts=np.int64(1)) == model.predict(TEXTS[:2], prompts=[1, 1])
    with pytest.raises(UserError, match="at least one"):
        attach([])


def test_an_export_is_two_files_of_json_and_safetensors(kinds):
    for name in KINDS:
        assert {file.name for file in (kinds / name).iterdir()} == {"prompt.json", "prompt.safetensors"}
        manifest = json.loads((kinds / name / "prompt.json").read_text())
        tensors = load_file(kinds / name / "prompt.safetensors")
        assert {key: list(tensor.shape) for key, tensor in tensors.items()} == manifest["tensors"]
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_prefix_is_stored_layer_by_layer(kinds):
    """[layers, key/value, heads, tokens, head size], as the manifest says."""
    assert load_file(kinds / "long" / "prompt.safetensors")["prefix"].shape == (3, 2, 4, 7, 8)
    assert load_file(kinds / "layers" / "prompt.safetensors")["prefix"].shape == (1, 2, 4, 3, 8)


@pytest.mark.parametrize("name", ["prompt.json", "prompt.safetensors"])
def test_a_flipped_byte_anywhere_is_noticed(kinds, tmp_path, name):
    """Spaces between the entries of prompt.json are no content."""
    content = (kinds / "long" / name).read_bytes()
    manifest = load_prompt(kinds / "long").manifest
    copy = shutil.copytree(kinds / "long", tmp_path / "copy")
    for at in range(0, len(content), max(1, len(content) // 60)):
        changed = bytearray(content)
        changed[at] ^= 0x04
        (copy / name).write_bytes(changed)
        try:
            assert load_prompt(copy).manifest == manifest and content[at] in b" \n"
        except UserError as error:
            assert "damaged" in str(error) or "prompt format" in str(error)


@pytest.mark.parametrize("name", ["prompt.json", "prompt.safetensors"])
def test_a_truncated_or_missing_file_is_noticed(kinds, tmp_path, name):
    content = (kinds / "long" / name).read_bytes()
    copy = shutil.copytree(kinds / "long", tmp_path / "copy")
    for length in (0, 1, 7, len(content) // 2, len(content) - 2):
        (copy / name).write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            load_prompt(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"no {name} there; give a prompt folder"):
        load_prompt(copy)


def test_files_of_two_prompts_do_not_go_together(kinds, tmp_path):
    """Not even two of the same shapes."""
    for other in ("short", "head"):
        copy = shutil.copytree(kinds / "long", tmp_path / other)
        shutil.copy(kinds / other / "prompt.safetensors", copy)
        with pytest.raises(UserError, match=r"damaged or not that of prompt\.json"):
            load_prompt(copy)


def test_another_format_is_named(kinds, tmp_path):
    copy = shutil.copytree(kinds / "long", tmp_path / "copy")
    (copy / "prompt.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="prompt format 99; this version reads 2"):
        load_prompt(copy)


def test_a_prompt_moves_with_its_backbone_to_another_place(kinds, tmp_path):
    """The path may change; the weights may not."""
    moved = shutil.copytree(kinds / "backbone", tmp_path / "moved")
    prompt = load_prompt(kinds / "long")
    here, there = attach(prompt).predict(TEXTS), attach(prompt, str(moved)).predict(TEXTS)
    assert here == there
    with pytest.raises(UserError, match=r"was trained on .* other weights; give its own \(--backbone\)"):
        attach(prompt, str(make_backbone(tmp_path / "other", "bert", seed=9)))


def test_a_task_that_now_makes_other_texts_is_said(kinds, monkeypatch, caplog):
    exported = load_prompt(kinds / "long")
    with caplog.at_level(logging.WARNING):
        attach(exported)
        assert "version" not in caplog.text
        newer = dataclasses.replace(exported.task, version=2)
        monkeypatch.setattr(export, "find_task", lambda name: newer)
        attach(exported)
    assert "was trained on version 1 of the texts of task 'texts', and this program makes version 2" in caplog.text
