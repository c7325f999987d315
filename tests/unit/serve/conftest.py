from __future__ import annotations

import pytest

from tests.support.served import attach_all, export_decoder, export_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Folder of prompts on an encoder."""
    return export_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """Folder of prompts on a decoder."""
    return export_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def attached(encoder):
    """Those of the encoder on their backbone, and their names."""
    return attach_all(encoder)


@pytest.fixture
def writers(decoder):
    """Those of the decoder."""
    return attach_all(decoder)
