"""Inputs that people have met, one folder each with the commands to run; ``PROMPTFLEET_CASES`` names where they are."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

CASES = Path(os.environ.get("PROMPTFLEET_CASES", ROOT.parent / "shared" / "cases"))

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"no folder {CASES}; set PROMPTFLEET_CASES"),
]

# What has to be said, in this order, anything between.
SAID = {
    "choices_in_a_list": ["== list", "Results and", "== letter", "Results and", "== one", "Results and"],
    "fingerprint_without_tokenizer": [
        '"label": "',
        "another tokenizer",
        "error: .* is not that backbone: the same weights, but another tokenizer",
        "error: .* is not that backbone: the same weights, but another config.json .rms_norm_eps: 1e-06 there, 0.5 here",
    ],
    "json_lines_called_json": ["== mixed", *["Results and prompts"] * 4],
    "labels_that_differ_in_space_or_case": [
        'dev accuracy',
        '"Good",\n *"bad",\n *"good"\n',
    ],
    "labels_written_as_floats": ["dev accuracy 1.0000", '"1",\n *"2",\n *"3"\n'],
    "moved_inputs": ["exit code 75", "Results and prompts", "e2/case", "no such folder; .* say so by --backbone"],
    "pad_token_minus_one": ["Results and prompts"],
    "predict_messages": [
        "error: rows.jsonl:5: no column `text`, .* did you mean `txt`",
        "error: --output .*/none/here.jsonl: there is no folder .*/none; create it",
        "error: --output .*/is_a_folder: a folder; give a file in it",
        "\nis_a_folder\n$",
    ],
    "predict_overwrites_gold": ['"label": "billing", "probabilities": "by hand", "predicted_label": '],
    "predict_same_file_as_training": [
        '"words": .*"predicted_tags": ',
        '"id": "0", .*"answers": .*"answer": ',
    ],
    "quantised_backbone": [
        f"== {name}\n.*error: backbone.path=.*: quantised weights .{kind}. cannot be trained on; give the unquantised"
        for name, kind in {"fp8": "fp8", "int8": "bitsandbytes", "nf4": "bitsandbytes", "gptq": "gptq"}.items()
    ],
    "resume_relabelled": [
        "exit code 75",
        "== before.*\n.*\"label\": \"good\"",
        "== export.*\n.*\"label\": \"good\"",
        "error: b/.* was trained on the labels bad, good; the data now have a good one, bad; undo .* or use --fresh",
        "error: c/.* was trained on the labels bad, good; the data now have a good one, bad, zzz",
    ],
    "slow_tokenizer": [
        f"== {name}\n.*error: .*BertJapaneseTokenizer. tells no character offsets, which {kind} tasks need"
        for name, kind in {"tag": "tagging", "span": "span"}.items()
    ],
    "span_unanswerable_without_has_null": [r"error: data/train.json: data\[0\].* a question without a"],
    "tags_without_prefix": ["== pos\n.*accuracy", "Results and", "== types", "Results and", "== lower", "Results and"],
    "validate_reads_no_data": [
        "error: bad_line.json: data/train.jsonl:1: not JSON",
        "error: nowhere.json: 2 problems\n.*backbone.path=/nowhere/model: no such.*\n.*data.path=/nowhere/data: no such",
        "exit code 1",
        "error: data/train.jsonl:1: not JSON",
    ],
    "wrong_remedies": [
        "error: tab/train.tsv:3: .* quotes mean nothing there",
        "Results and prompts",
        "hosts.user:1: .*Host NAME with HostName 192.168.7.10, User kim",
        "hosts.port:1: .*Host NAME with HostName worker-1, Port 2222",
        "hosts.v6:1: .*Host NAME with HostName fe80::1ff:fe23:4567:890a",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like a checkout in which the quickstart was run, with a copy of the cases in it."""
    folder = tmp_path_factory.mktemp("cases")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "launcher").symlink_to(ROOT / "launcher")
    shutil.copytree(CASES, folder / "cases")
    for copy in (folder / "cases").rglob("*"):  # where the originals are read-only and nobody is root
        copy.chmod(copy.stat().st_mode | stat.S_IWUSR)
    output = folder / "runs" / "quickstart"
    command = [sys.executable, "launcher/run.py", "--config", "configs/quickstart.json", "--output", str(output)]
    subprocess.run([*command, "--set", "train.epochs=1"], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", SAID)
def test_case(name, checkout):
    script = checkout / "cases" / name / "run.sh"
    done = subprocess.run(
        ["bash", str(script)],
        env={**os.environ, "PF": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # some cut their lines by bytes
        timeout=300,
    )
    assert "Traceback" not in done.stdout, done.stdout
    rest = done.stdout
    for said in SAID[name]:
        found = re.search(said, rest)
        assert found is not None, f"{said!r} is not in {rest!r}"
        rest = rest[found.end() :]


def test_every_case_is_here():
    assert {folder.name for folder in CASES.iterdir() if (folder / "run.sh").exists()} == set(SAID)
