"""The oldest versions that pyproject.toml allows: what it says of them is what is tested, and tests pass with them.

torch is the one that is installed: its oldest has no CPU build in every index, and weighs gigabytes.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.processes import ROOT, TIMEOUT_SECONDS

OLDEST = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
APART = {"dev", "docs", "bench", "language-model"}
"""Extras of those who work on the project, and what is downloaded for its size alone."""
TESTS = [
    "tests/unit/test_kinds.py",
    "tests/unit/test_data.py",
    "tests/unit/test_metrics.py",
    "tests/unit/test_config.py",
    "tests/unit/test_gguf.py",
    "tests/unit/test_boards.py::test_a_board_gets_every_number_of_the_lines_once",
    "tests/unit/test_onnx_kinds.py::test_choices_are_rows_of_which_the_largest_wins",
    "tests/unit/serve/test_limits.py",
]


def named(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_oldest_versions_are_those_that_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra not in APART]
    for line in (line for lines in (project["dependencies"], *extras) for line in lines):
        wanted = Requirement(line)
        (least,) = [own.version for own in wanted.specifier if own.operator in (">=", "==")]
        if wanted.name != "torch":
            assert Version(OLDEST[named(wanted.name)]) == Version(least), f"{line}; constraints-oldest.txt has another"


@pytest.mark.processes
def test_the_oldest_versions_serve(tmp_path):
    """Only those that are not installed anyway, in front of the others."""
    installed = {named(own.name): own.version for own in importlib.metadata.distributions()}
    others = [f"{name}=={version}" for name, version in OLDEST.items() if installed.get(name) != version]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--target", tmp_path / "oldest", *others], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    if done.returncode != 0:
        pytest.skip(f"the oldest versions cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path / 'oldest'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
