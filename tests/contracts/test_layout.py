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


STOREYS = (
    "serve", "python", "run_folder", "trainer", "placement",
    "report", "documents", "onnx", "predict", "fleet", "forward", "prompt", "backbone", "data", "kinds",
    "tokens",
    "settings", "tasks", "metrics", "formats", "storage", "section", "bars", "messages", "errors",
)  # fmt: skip
"""Files and folders of prompt_tuning, the highest first: each may import those below it."""


def storeys_imported(file: Path) -> set[str]:
    """What a file takes from prompt_tuning, by the first name below it; also inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prompt_tuning":
            inner = (node.module or "").split(".")[1:]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("prompt_tuning.")}
    return found


@pytest.mark.parametrize("file", [file for file in FILES if "prompt_tuning" in file.parts], ids=lambda file: file.stem)
def test_imports_inside_prompt_tuning_go_downwards(file):
    here = file.relative_to(ROOT / "prompt_tuning").with_suffix("").parts[0]
    if here != "__init__":
        above = STOREYS[: STOREYS.index(here)]
        assert not storeys_imported(file) & set(above)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_file_is_short(file):
    assert len(file.read_text().splitlines()) <= 300


def dangers(tree: ast.AST) -> list[str]:
    """Calls that run code out of data or a shell."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "compile", "os.system") or name.endswith(("torch.load", "_pickle")):
            is_tensors = "weights_only=True" in map(ast.unparse, node.keywords)
            found += [] if name == "torch.load" and is_tensors else [name]
        found += [f"{k.arg}=..." for k in node.keywords if k.arg in ("shell", "allow_pickle")]
    return found


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_file_runs_no_code_out_of_data(file):
    assert not dangers(ast.parse(file.read_text()))
    assert not imported(file) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "torch.load(f)",
        "torch.load(f, weights_only=x)",
        "run(c, shell=True)",
        "os.system(c)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_dangers_are_seen(code):
    assert dangers(ast.parse(code))


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_file_reads_no_environment_and_no_foreign_folder(file):
    text = file.read_text()
    if file != ROOT / "launcher" / "ranks" / "environment.py":
        assert not [
            name for name in ("environ", "getenv", "putenv") if f"os.{name}" in text or f"import {name}" in text
        ]
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert not [s for s in strings if isinstance(s, str) and ("shared/" in s or "/work" in s or "/home/" in s)]


def test_no_file_in_launcher_hides_another_module():
    """`deepspeed launcher/run.py` puts launcher/ first on the path."""
    others = set(sys.stdlib_module_names) | set(packages_distributions())
    names = {file.stem for file in (ROOT / "launcher").glob("*.py")} - {"__init__"}
    assert not names & others


def test_every_folder_of_code_is_a_package_with_a_word_on_itself():
    for folder in {file.parent for file in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


QUICK = [
    "import prompt_tuning.settings.identity, prompt_tuning.messages",
    "from launcher.pages.tasks import tasks_page; tasks_page()",
    "import launcher.cli, launcher.run; launcher.run.main(['--config', 'configs/quickstart.json', '--print-config'])",
    "from launcher import cli; cli.main(['validate', '--no-data', 'configs/quickstart.json', 'configs/boolq.json'])",
    "from launcher import run; run.main(['--config', 'configs/quickstart.json', '--set', 'optimizer.lrr=1'])",
]


@pytest.mark.parametrize("code", QUICK)
def test_checking_a_run_file_does_not_import_torch(code):
    check = f"import sys; {code}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "program",
    [[str(ROOT / "launcher" / "run.py")], ["-m", "launcher.cli"], ["-m", "launcher.cli", "new"]],
    ids=["worker", "driver", "new"],
)
def test_help_does_not_import_torch(program, tmp_path):
    """The worker as a file from anywhere, as launchers start it; Python itself lists what is imported."""
    command = [sys.executable, "-X", "importtime", *program, "--help"]
    folder = ROOT if program[0] == "-m" else tmp_path
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in names
    assert not names & {"torch", "transformers", "deepspeed", "datasets", "numpy"}
