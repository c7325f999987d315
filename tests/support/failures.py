"""What a user is told of a mistake."""

from __future__ import annotations

import json

import pytest

from launcher import cli
from launcher import run as worker
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run


def write(tmp_path, value, name="run.json"):
    file = tmp_path / name
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def problem(tmp_path, value, *sets):
    with pytest.raises(UserError) as caught:
        load_run(write(tmp_path, value), list(sets))
    return str(caught.value)


def failure(capsys, *arguments):
    """The worker's message; fails unless it ends with an error code and without a traceback."""
    assert worker.main([str(a) for a in arguments]) != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text


def cli_failure(capsys, *arguments):
    assert cli.main([str(a) for a in arguments]) != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text
