"""The shell's completion, asked of bash itself."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from launcher.cli import main

ASK = """source "$1"; cd "$2"; shift 2
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_promptfleet promptfleet "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_verbs_options_files_and_folders(tmp_path, capsys):
    pytest.importorskip("shtab", reason="the extra completion is not installed")
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert not end.value.code
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.json").touch()
    (tmp_path / "minutes").mkdir()

    def completed(*words):
        done = subprocess.run(
            ["bash", "-c", ASK, "bash", tmp_path / "script", tmp_path, "promptfleet", *words],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return set(done.stdout.split())

    assert completed("val") == {"validate"}
    assert {"--set", "--no-data"} <= completed("validate", "--")
    assert {"mine.json"} <= completed("validate", "mi")
    assert completed("status", "mi") == {"minutes"}, "a run is a folder"


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "zsh"])
    assert end.value.code == 2 and "pip install 'promptfleet[completion]'" in capsys.readouterr().err
