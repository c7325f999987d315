"""Sources and wheel are whole: built from this checkout, one from the other, they work far from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.support.processes import ROOT, TIMEOUT_SECONDS

pytestmark = pytest.mark.processes
PACKAGES = ("launcher", "model_parallel", "prompt_tuning")


def call(*command, folder, **variables):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout, from which the sources are taken")
def test_a_wheel_holds_every_module_and_its_program_runs(tmp_path):
    """Without an index: by the setuptools that torch brings."""
    source = tmp_path / "source"  # setuptools writes beside what it builds
    call("git", "clone", "--quiet", "--no-hardlinks", ROOT, source, folder=tmp_path)
    sources = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", sources, tmp_path / "sources", folder=source)
    (packed,) = (tmp_path / "sources").glob("*.tar.gz")
    shutil.unpack_archive(packed, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert all((unpacked / name).is_file() for name in ("README.md", "LICENSE", "pyproject.toml"))
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir")
    call(sys.executable, *build, tmp_path, unpacked, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    for package in PACKAGES:
        modules = {path.relative_to(source) for path in (source / package).rglob("*.py")}
        held = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed" / package).rglob("*.py")}
        assert held == modules and len(held) > 2
        assert (tmp_path / "installed" / package / "py.typed").is_file()
    program = "import launcher.cli, sys; sys.exit(launcher.cli.main(['tasks']))"
    said = call(sys.executable, "-P", "-c", program, folder=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert "boolq" in said
    assert str(ROOT) not in call(
        sys.executable, "-P", "-c", "import prompt_tuning; print(prompt_tuning.__file__)",
        folder=tmp_path, PYTHONPATH=str(tmp_path / "installed"),
    )  # fmt: skip
