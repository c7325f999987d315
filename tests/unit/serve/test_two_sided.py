"""Prompts of encoder-decoders are served as those of decoders are."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.served import ask, attach_all, export, served


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_texts_and_streams_are_those_of_the_model_alone(tmp_path, model_type):
    backbone, passages = make_writer(tmp_path / "backbone", model_type), make_passages(tmp_path / "passages")
    export(tmp_path, "all", writing_run(backbone, passages))
    export(tmp_path, "one", writing_run(backbone, passages, prompt={"length": 2, "sites": ["cross"]}))
    model, names = attach_all(tmp_path / "prompts")
    asked = [(name, f"w{count} w7 w{2 * count}", beams) for name in names for count in (3, 9) for beams in (1, 3)]
    wanted = [model.generate([text], names.index(name), num_beams=beams) for name, text, beams in asked]
    with served(model, names, tmp_path / "prompts") as service:
        bodies = [{"prompt": name, "texts": [text], "settings": {"num_beams": beams}} for name, text, beams in asked]
        found = ask(service, lambda send: asyncio.gather(*(send("POST", "/generate", body) for body in bodies)))
        assert [own.json().get("texts", own.text) for own in found] == wanted
        body = {"prompt": "one", "texts": ["w3 w7 w6"], "stream": True}
        stream = ask(service, lambda send: send("POST", "/generate", body)).text
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n\n") if line]
    assert last["text"] == "".join(piece["text"] for piece in pieces) == wanted[names.index("one") * 4][0]
