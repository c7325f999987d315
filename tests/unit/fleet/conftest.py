"""What fleets in these tests are made of."""

from __future__ import annotations

import pytest

from tests.support.tiny import make_backbone, make_copa, make_texts


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    return {
        "backbone": make_backbone(folder / "backbone", "bert"),
        "texts": make_texts(folder / "texts"),
        "copa": make_copa(folder / "copa"),
    }
