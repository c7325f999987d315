"""Backbones and data sets by their hub ids, from a hub on this machine: revisions, closed doors, no network."""

from __future__ import annotations

import json
import shutil

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from tests.support.hub import open_hub
from tests.support.processes import BIN, finish, member_files, python
from tests.support.tiny import make_backbone, make_tags, make_texts, run_json

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    make_backbone(root / "models" / "someone" / "tiny" / "main", "bert")
    make_backbone(root / "models" / "someone" / "tiny" / "v2", "bert", seed=5)
    (root / "models" / "someone" / "tiny" / "main" / "pytorch_model.bin").write_bytes(b"a pickle")
    make_texts(root / "datasets" / "someone" / "texts" / "main")
    make_tags(root / "datasets" / "someone" / "tags" / "main")
    for split in ("train", "validation", "test"):
        folder = root / "datasets" / "aps" / "super_glue" / "refs" / "convert" / "parquet" / "boolq" / split
        folder.mkdir(parents=True)
        label = [-1] * 8 if split == "test" else [i % 2 for i in range(8)]
        columns = {
            "question": [f"w{i}" for i in range(8)],
            "passage": ["w3"] * 8,
            "idx": list(range(8)),
            "label": label,
        }
        parquet.write_table(pyarrow.table(columns), folder / "0000.parquet")
    with open_hub(root) as opened:
        yield opened


@pytest.fixture
def on_hub(hub, tmp_path):
    """Run the worker or a verb on a run file of some sections, with a home of its own: (exit code, output)."""

    def run(*verb, offline=False, **sections):
        raw = run_json("someone/tiny", "someone/texts", **sections)
        (tmp_path / "run.json").write_text(json.dumps(raw))
        command = [BIN / "promptfleet", *verb, tmp_path / "run.json"]
        if not verb:
            command = python("--config", tmp_path / "run.json", "--output", tmp_path / "run", "--fresh")
        variables = {"HF_ENDPOINT": hub.address, "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": str(int(offline))}
        return finish(*command, **variables)

    hub.asked.clear()
    return run


def test_a_run_of_hub_ids_trains_and_again_without_the_hub(on_hub, hub, tmp_path):
    code, output = on_hub()
    assert code == 0 and "Traceback" not in output and "examples [" not in output, output
    assert not [path for path in hub.asked if ".bin" in path], "a pickle was fetched"
    first = member_files(tmp_path / "run")
    hub.asked.clear()
    code, output = on_hub(offline=True)
    assert code == 0, output
    assert not hub.asked and first == member_files(tmp_path / "run")


def test_a_pickle_is_fetched_where_there_is_nothing_else(on_hub, hub, tmp_path):
    folder = hub.root / "models" / "someone" / "old" / "main"
    make_backbone(folder, "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, output = on_hub(backbone={"path": "someone/old"})
    assert code == 0 and "pytorch_model.bin is turned into safetensors once, into " in output, output


def test_a_revision_is_another_backbone(on_hub, tmp_path):
    marks = []
    for revision in (None, "v2"):
        code, output = on_hub(backbone={"path": "someone/tiny", "revision": revision})
        assert code == 0, output
        prompt = json.loads(next((tmp_path / "run").rglob("prompt.json")).read_text())
        marks.append((prompt["backbone"]["revision"], prompt["backbone"]["fingerprint"]))
        shutil.rmtree(tmp_path / "run")
    assert [revision for revision, _ in marks] == [None, "v2"] and marks[0][1] != marks[1][1]


def test_a_published_task_comes_from_its_own_data_set(on_hub):
    code, output = on_hub("validate", task="boolq", data={"path": None})
    assert code == 0 and "boolq: train 8 rows, dev 8 rows; labels False, True" in output, output


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"backbone": {"path": "someone/absent"}}, "backbone.path=someone/absent: no such folder, and not to be had"),
        (
            {"backbone": {"path": "someone/tiny", "revision": "v9"}},
            "backbone.path=someone/tiny: no such folder, and not",
        ),
        (
            {"data": {"path": "someone/absent"}},
            "data.path=someone/absent: no such folder, and not to be had from the hub",
        ),
        ({"task": "boolq", "data": {"path": "someone/texts"}}, "no column `question`"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(on_hub, sections, said):
    code, output = on_hub("validate", **sections)
    assert code == 1 and said in output and "Traceback" not in output, output


@pytest.mark.parametrize("what", ["someone/tiny", "someone/texts"])
def test_a_closed_door_is_a_sentence(on_hub, hub, what):
    hub.gated.add(what)
    try:
        code, output = on_hub("validate")
    finally:
        hub.gated.clear()
    assert code == 1 and f"path={what}: no such folder, and" in output and "Traceback" not in output, output
    assert "estricted" in output or "gated" in output.lower(), output


def test_without_the_hub_and_without_a_copy_it_is_a_sentence(on_hub):
    code, output = on_hub("validate", offline=True)
    assert code == 1 and "backbone.path=someone/tiny: no such folder, and not to be had from the hub" in output, output
    assert "Traceback" not in output
