"""A comparison as real processes: killed and told to stop, it goes on and ends in the same numbers."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.processes import BIN, TIMEOUT_SECONDS, finish, member_files, start, wait_for, write_run
from tests.support.tiny import make_backbone, make_texts, run_json

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run file, and its comparison without a stop."""
    folder = tmp_path_factory.mktemp("compare")
    data = make_texts(folder / "texts", {"train": 30, "dev": 8, "test": 9})
    train = {"max_steps": 60, "log_steps": 2, "eval_steps": 20, "checkpoint_steps": 10}
    write_run(folder / "own.json", run_json(make_backbone(folder / "backbone", "bert"), data, train=train))
    code, text = finish(*command(folder, folder / "whole"))
    assert code == 0, text
    return folder


def command(files, output):
    options = ["--methods", "deep_prompt,head", "--trials", "2", "--seeds", "2", "--output", str(output)]
    return [BIN / "promptfleet", "compare", str(files / "own.json"), *options]


def found(output):
    names = ("search-deep_prompt", "search-head", "seeds-deep_prompt", "seeds-head")
    sides = json.loads((output / "compare.json").read_text())["sides"]
    return [member_files(output / name) for name in names], [(side["scores"], side["difference"]) for side in sides]


def test_a_killed_comparison_goes_on_to_the_same_numbers(files, tmp_path):
    """First its driver is killed, whose run goes on and is waited for; then it is asked to stop."""
    output = tmp_path / "parts"
    driver = start(*command(files, output))
    assert wait_for(driver, lambda: any(output.glob("search-deep_prompt/members/*/metrics.jsonl")))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver = start(*command(files, output))
    assert wait_for(driver, lambda: any(output.glob("seeds-deep_prompt/members/*/metrics.jsonl")))
    driver.send_signal(signal.SIGTERM)
    text, _ = driver.communicate(timeout=TIMEOUT_SECONDS)
    assert driver.returncode == 75 and "asked to stop; the same command continues" in text, text
    code, text = finish(*command(files, output))
    assert code == 0 and "measuring steps: done already" in text, text
    assert found(output) == found(files / "whole")
    assert sum(len(member) for member in found(output)[0]) == 4 * 2 * 3
