"""What each backend would run, word for word, and that nothing from a file or an option becomes a shell command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import cli
from launcher.backends import Submission, backend_names, render, start
from launcher.environment import ROOT
from launcher.hostfile import Host
from prompt_tuning.errors import UserError

RUN = str(ROOT / "launcher" / "run.py")
HOSTS = (Host("a", (0, 1)), Host("b", (2,)))
HERE = Path("/x")


def make(**settings):
    return Submission(Path("/c d/run.json"), Path("/out/r"), ("optimizer.lr=0.1",), **settings)


WORKER = [RUN, "--config", "/c d/run.json", "--output", "/out/r", "--set", "optimizer.lr=0.1"]


def test_every_backend_ends_in_the_same_worker():
    assert backend_names() == ["local", "mpi", "pdsh", "slurm"]
    for name in backend_names():
        hosts = {"hosts": HOSTS, "hostfile": HERE} if name == "pdsh" else {}
        rendered = render(name, make(ranks=2, **hosts))
        words = rendered.command
        if rendered.text is not None:
            (line,) = [line for line in rendered.text.splitlines() if line.startswith("srun")]
            words = shlex.split(line)
        assert words[-len(WORKER) :] == WORKER, name


def test_local_ranks():
    assert render("local", make()).command == [sys.executable, *WORKER]
    several = render("local", make(ranks=3))
    assert several.command[:6] == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    assert len(several.places) == 3


def test_hosts_and_their_slots():
    mpi = render("mpi", make(hosts=HOSTS, variables={"NCCL_DEBUG": "INFO"}))
    assert mpi.command[:7] == ["mpirun", "-np", "3", "--host", "a:2,b:1", "--bind-to", "none"]
    assert mpi.command[7:9] == ["-x", "NCCL_DEBUG"] and mpi.places == ["a", "a", "b"]
    pdsh = render("pdsh", make(hosts=HOSTS, hostfile=HERE)).command
    assert pdsh[1:5] == ["--hostfile", "/x", "--include", "a:0,1@b:2"] and pdsh[pdsh.index("--master_addr") + 1] == "a"


def test_a_slurm_script_word_for_word(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "secret")
    rendered = render("slurm", make(ranks=8, nodes=2, time="1:00:00", partition="gpu", gpus=True, variables={"WANTED": "a b'$(c)"}))
    assert rendered.command == ["sbatch", "--parsable"]
    lines = rendered.text.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ["nodes=2", "ntasks=8", "ntasks-per-node=4", "time=1:00:00", "partition=gpu", "gpus-per-node=4", "export=NONE",
              "signal=USR1@120", "job-name=r", "output=/out/r.slurm-%j.txt"]  # fmt: skip
    assert {f"#SBATCH --{line}" for line in wanted} <= set(lines) and "#SBATCH --requeue" in lines
    assert "secret" not in rendered.text
    (line,) = [line for line in lines if line.startswith("export WANTED=")]
    assert shlex.split(line) == ["export", "WANTED=a b'$(c)"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("local", {"hosts": HOSTS}, "--backend local runs here; choose"),
        ("pdsh", {}, "needs --hostfile"),
        ("slurm", {"hosts": HOSTS}, "chooses hosts itself; use --nodes"),
        ("slurm", {"ranks": 3, "nodes": 2}, "--ranks 3 cannot be divided among --nodes 2"),
        ("slurm", {"partition": "a b"}, '--partition: "a b" cannot stand in a batch script'),
        ("slurm", {"time": "1\n#SBATCH --x"}, "--time: .* cannot stand in a batch script"),
    ],
)
def test_what_does_not_fit_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        render(name, make(**settings))


@pytest.mark.parametrize("value", ["a=it's", "a=x\ny", "-x=$(reboot)", "a=\0"])
def test_what_pdsh_could_not_quote_is_refused(value):
    with pytest.raises(UserError, match="cannot be handed to deepspeed"):
        render("pdsh", Submission(Path("/c"), Path("/o"), (value,), HOSTS, HERE))


NASTY = st.text(st.sampled_from("ab/ =.'\"`$();&|<>\\\n\t#%*?~!{}[]-é"), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=NASTY, item=NASTY, output=NASTY, variable=NASTY)
def test_a_batch_script_hands_every_value_on_unharmed(config, item, output, variable):
    """bash itself reads the script, with srun and scontrol replaced by functions that write down their words."""
    submission = Submission(Path("/") / config, Path("/out") / output, (item,), variables={"PROMPTFLEET_TEST": variable})
    try:
        text = render("slurm", submission).text
    except UserError:
        return
    spy = "srun() { printf '%s\\0' \"$@\" \"$PROMPTFLEET_TEST\"; }; scontrol() { :; }\n"
    found = subprocess.run(["/bin/bash", "-c", spy + text], capture_output=True, check=False, env={"PATH": "/nowhere"})
    words = found.stdout.decode().split("\0")[:-1]
    assert words == ["--kill-on-bad-exit=1", sys.executable, *submission.worker, variable]


def test_a_dry_run_says_what_would_run_and_starts_nothing(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"task": "boolq", "backbone": {"path": "."}}))
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\n")
    arguments = ["submit", str(tmp_path / "run.json"), "--hostfile", str(tmp_path / "hosts"), "--backend", "mpi", "--dry-run"]
    assert cli.main([*arguments, "--exclude", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("command: mpirun -np 2 --host a:2 ") and shown.endswith("rank 0: a\nrank 1: a\n")
    assert not (tmp_path / "out").exists()
    for more, message in (
        (["--ranks", "5"], "--ranks 5, but the hosts have 3 slots"),
        (["--export", "A=1"], '--export "A=1": not the name of an environment variable'),
        (["--set", "optimizer.lr=x"], "optimizer.lr"),
    ):
        assert cli.main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="mpirun is not installed here"):
        start(render("mpi", make(ranks=2)))
