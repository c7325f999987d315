"""Prompts that Adapters itself made answer here as they do there. PROMPTFLEET_ADAPTERS_PYTHON names a Python that has it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_tuning.prompt.formats import import_prompt
from prompt_tuning.settings.members import resolve
from prompt_tuning.tokens.features import Features
from tests.support import make_adapters
from tests.support.foreign import our_logits, padded
from tests.support.tiny import make_backbone

PYTHON = os.environ.get("PROMPTFLEET_ADAPTERS_PYTHON")
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(PYTHON is None, reason="PROMPTFLEET_ADAPTERS_PYTHON names no Python with Adapters"),
]
LENGTHS = (5, 3, 7)


def some_rows():
    tokens = np.random.default_rng(0).integers(5, 60, sum(LENGTHS)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Features(tokens, None, offsets, 1, np.zeros(3, np.int64), tags=np.zeros(sum(LENGTHS), np.int32))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for family in ("bert", "roberta"):
        make_backbone(root / family, family)
    rows = {name: tensor.tolist() for name, tensor in padded(some_rows(), 1).items()}
    (root / "rows.json").write_text(json.dumps(rows))
    done = subprocess.run([str(PYTHON), make_adapters.__file__, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("name", make_adapters.CASES)
def test_logits_are_those_of_adapters(made, tmp_path, family, name):
    is_tagging = "tags" in name
    task = {"kind": "classification", "name": "texts", "labels": ["a", "b", "c"]}
    if is_tagging:
        task = {"kind": "tagging", "name": "tags", "labels": ["O", "B-a", "I-a"]}
    raw = {"task": task, "backbone": {"path": str(made / family)}, "data": {"max_length": 24}}
    import_prompt(made / f"{family}-{name}", resolve(raw, Path("import")).shared, None, tmp_path / "ours")
    expected = torch.tensor(json.loads((made / f"{family}-{name}.json").read_text()))
    if is_tagging:
        expected = expected[padded(some_rows(), 1)["attention_mask"].bool()]
    elif not name.startswith("class"):
        expected = expected[:, [2, 0, 1]]  # the head's own names say this order
    assert expected.std() > 0.5
    assert (our_logits(tmp_path / "ours", some_rows()) - expected).abs().max() < 1e-5
