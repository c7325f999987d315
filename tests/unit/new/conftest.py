"""Backbones without biases or with, and the verb called on a folder."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from launcher import cli
from tests.support.generation import make_writer
from tests.support.tiny import WORDS, make_backbone

TEXTS = [f"{WORDS[i % 7]} {WORDS[i]} {WORDS[i * 3 % 11]}" for i in range(40)]
CONLL = "".join(f"w{i}\tB-X\nw{i + 1}\tO\n\n" for i in range(12))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("encoder"), "bert")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    folder = make_writer(tmp_path_factory.mktemp("decoder"), "llama", attention_bias=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def new(tmp_path, encoder, capsys):
    """Calls the verb on a folder; the run file (None: none was written), and what was said."""

    def call(data=tmp_path / "data", *options, backbone=encoder):
        output = tmp_path / "mine.json"
        code = cli.main(
            ["new", "mine", "--data", str(data), "--backbone", str(backbone), "--output", str(output), *options]
        )
        said = capsys.readouterr()
        assert (code == 0) == output.exists()
        text = " ".join((said.err if code else said.out).replace("│", " ").split())
        return (json.loads(output.read_text()) if code == 0 else None), text

    return call


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def csv(folder, names, *columns, name="train.csv"):
    lines = [names] if names else []
    (folder / name).write_text("\n".join([*lines, *(",".join(map(str, row)) for row in zip(*columns, strict=False))]))
