"""The shape of the repository: layers, names, packages, and what must not be in the product."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("model_parallel", "prompt_tuning", "launcher")
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))
IDS = [str(file.relative_to(ROOT)) for file in FILES]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_imports_go_one_way(file):
    layer = LAYERS.index(file.relative_to(ROOT).parts[0])
    assert not imported(file) & set(LAYERS[layer + 1 :])


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_file_is_short_and_safe(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 350
    assert not imported(file) & {"pickle", "dill", "shelve", "marshal"}
    for forbidden in ("torch.load(", "shell=True", " eval(", " exec(", "os.system"):
        assert forbidden not in text, forbidden
    if file.name != "environment.py":
        assert "os.environ" not in text


def test_no_file_in_launcher_hides_another_module():
    """`deepspeed launcher/run.py` puts launcher/ first on the path."""
    others = set(sys.stdlib_module_names) | set(packages_distributions())
    names = {file.stem for file in (ROOT / "launcher").glob("*.py")} - {"__init__"}
    assert not names & others


def test_packages_on_disk_are_those_that_are_installed():
    found = {str(file.parent.relative_to(ROOT)).replace("/", ".") for file in FILES}
    listed = (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0]
    assert found == {name.strip().strip('"') for name in listed.split(",") if name.strip()}


@pytest.mark.parametrize(
    "code", ["import prompt_tuning.runfile, prompt_tuning.tasks.copa", "import launcher.cli, launcher.run"]
)
def test_checking_a_run_file_does_not_import_torch(code):
    check = f"import sys; {code}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
