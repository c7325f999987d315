"""A tiny backbone and a run file that is right, for tests of what is wrong."""

from __future__ import annotations

import pytest

from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture
def raw(backbone, tmp_path):
    return run_json(backbone, make_texts(tmp_path / "data"), train={"max_steps": 2})
