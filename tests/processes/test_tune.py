"""`promptfleet tune` as users start it: stopped in a round, continued by the same command, ended by its budget."""

from __future__ import annotations

import json
import signal

import pytest

from launcher.ranks.exit_codes import STOPPED
from launcher.runs.state import owner_of
from prompt_tuning.settings.members import load_run
from tests.support.processes import BIN, finish, start, wait_for, write_run
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes


def test_a_search_that_is_stopped_continues_and_ends_within_its_time(tmp_path):
    places = make_backbone(tmp_path / "backbone", "bert"), make_texts(tmp_path / "texts", {"train": 160, "dev": 12})
    raw = run_json(*places, train={"epochs": 2, "batch_size": 4, "log_steps": 1, "checkpoint_steps": 5})
    raw["fleet"] = {"random": {"samples": 1, "distributions": {"optimizer.lr": {"log_uniform": [0.001, 0.1]}}}}
    output = tmp_path / "tuned"
    config = write_run(tmp_path / "run.json", raw)
    command = [BIN / "promptfleet", "tune", config, "--budget", "10m", "--seeds", "1", "--output", output]
    process = start(*command)
    assert wait_for(process, lambda: bool(list(output.glob("search/checkpoints/step-*/state.json"))))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == STOPPED, said
    assert "asked to stop; the same command continues" in said and owner_of(output / "search") is None
    assert not (output / "tune.json").exists()
    # A smaller budget is refused, and after the round that was begun no time is left for another.
    code, said = finish(*command[:4], "1s", *command[5:])
    assert code == 1 and "--budget 1 s: at" in said
    (output / "tune.json").write_text(json.dumps({"rounds": 0, "seconds": 590}))
    code, said = finish(*command)
    assert code == 0, said
    assert f"continuing from {output / 'search'}" in (output / "search.txt").read_text()
    assert json.loads((output / "tune.json").read_text())["rounds"] == 1
    assert load_run(output / "winner.json").shared.data.held_out == 0
