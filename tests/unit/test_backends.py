"""What each backend would run, word for word, and that nothing from a file or an option becomes a shell command."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import cli
from launcher.clusters.backends import Submission, backend_names, open_process, render
from launcher.clusters.hostfile import Host
from launcher.ranks.environment import ROOT
from prompt_tuning.errors import UserError

RUN = str(ROOT / "launcher" / "run.py")
HOSTS = (Host("a", (0, 1)), Host("b", (2,)))


def make(**settings):
    return Submission(Path("/c d/run.json"), Path("/out/r"), ("optimizer.lr=0.1",), **settings)


WORKER = [RUN, "--config", "/c d/run.json", "--output", "/out/r", "--set", "optimizer.lr=0.1"]


def test_every_backend_ends_in_the_same_worker():
    assert backend_names() == ["deepspeed", "local", "mpi", "slurm"]
    for name in backend_names():
        rendered = render(name, make(ranks=2, **({"hosts": HOSTS} if name == "deepspeed" else {})))
        words = rendered.command
        if rendered.text is not None:
            (line,) = [line for line in rendered.text.splitlines() if line.startswith("srun")]
            words = shlex.split(line)
        if rendered.nodes:
            words = shlex.split(words[-1])
        assert words[-len(WORKER) :] == WORKER, name


def test_local_ranks():
    assert render("local", make()).command == [sys.executable, *WORKER]
    several = render("local", make(ranks=3))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "3"]
    assert several.command == [sys.executable, *torchrun, *WORKER], "whatever this host is called"
    assert len(several.places) == 3


def test_hosts_and_their_slots():
    mpi = render("mpi", make(hosts=(HOSTS[0], Host("c", (0,))), variables={"NCCL_DEBUG": "INFO"}))
    assert mpi.command[:7] == ["mpirun", "-np", "3", "--host", "a:2,c:1", "--bind-to", "none"]
    assert mpi.command[7:9] == ["-x", "NCCL_DEBUG"] and mpi.places == ["a slot 0", "a slot 1", "c slot 0"]
    assert "cannot take 2 of b" in refusal("mpi", make(hosts=HOSTS))
    pdsh = render("deepspeed", make(hosts=HOSTS, variables={"NCCL_DEBUG": "INFO"}))
    assert pdsh.command[:9] == ["pdsh", "-R", "ssh", "-S", "-b", "-f", "1024", "-w", "a,b"] and len(pdsh.command) == 10
    words = shlex.split(pdsh.nodes["b"])
    assert words[:6] == ["cd", str(Path.cwd()), "&&", "export", "NCCL_DEBUG=INFO", "&&"]
    assert words[6:11] == ["exec", sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
    (world,) = [word.partition("=")[2] for word in words if word.startswith("--world_info")]
    assert json.loads(base64.urlsafe_b64decode(world)) == {"a": [0, 1], "b": [2]}
    assert {"--master_addr=a", "--node_rank=1"} <= set(words)


def refusal(name, submission):
    with pytest.raises(UserError) as error:
        render(name, submission)
    return str(error.value)


def test_a_slurm_script_word_for_word(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "secret")
    asked = {
        "time": "1:00:00",
        "partition": "gpu",
        "cpus-per-task": "8",
        "signal": "USR1@600",
        "exclusive": "",
        "nodelist": "n[1-2]",
    }
    rendered = render("slurm", make(ranks=8, nodes=2, scheduler=asked, gpus=True, variables={"WANTED": "a b'$(c)"}))
    assert rendered.command == ["sbatch", "--parsable"]
    lines = rendered.text.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ["nodes=2", "ntasks=8", "ntasks-per-node=4", "time=1:00:00", "partition=gpu", "gpus-per-node=4", "export=NONE",
              "signal=USR1@600", "cpus-per-task=8", "exclusive", "nodelist=n[1-2]", "job-name=r", "output=/out/r.slurm-%j.txt"]  # fmt: skip
    assert {f"#SBATCH --{line}" for line in wanted} <= set(lines) and {
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
    } <= set(lines)
    assert any(line.startswith('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"') for line in lines)
    assert "secret" not in rendered.text
    (line,) = [line for line in lines if line.startswith("export WANTED=")]
    assert shlex.split(line) == ["export", "WANTED=a b'$(c)"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("local", {"hosts": HOSTS}, "--backend local runs here; choose"),
        ("deepspeed", {}, "needs --hostfile"),
        ("slurm", {"hosts": HOSTS}, "chooses hosts itself; use --nodes"),
        ("slurm", {"ranks": 3, "nodes": 2}, "--ranks 3 cannot be divided among --nodes 2"),
        ("slurm", {"scheduler": {"partition": "a b"}}, 'partition of the job: "a b" cannot stand in a batch script'),
        ("slurm", {"scheduler": {"qos": "a;b"}}, 'qos of the job: "a;b" cannot stand in a batch script'),
        (
            "slurm",
            {"scheduler": {"export": "ALL"}},
            '--sbatch "export": not the long name of an option of sbatch, or set already',
        ),
        ("slurm", {"scheduler": {"x=1\n#SBATCH --y": "1"}}, "--sbatch .*: not the long name"),
        ("slurm", {"scheduler": {"time": "1\n#SBATCH --x"}}, "time of the job: .* cannot stand in a batch script"),
    ],
)
def test_what_does_not_fit_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        render(name, make(**settings))


NASTY = st.text(st.sampled_from("ab/ =.'\"`$();&|<>\\\n\t#%*?~!{}[]-é"), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=NASTY, item=NASTY, output=NASTY, variable=NASTY)
def test_a_batch_script_hands_every_value_on_unharmed(config, item, output, variable):
    """bash itself reads the script, with srun and scontrol replaced by functions that write down their words."""
    submission = Submission(
        Path("/") / config, Path("/out") / output, (item,), variables={"PROMPTFLEET_TEST": variable}
    )
    try:
        text = render("slurm", submission).text
    except UserError:
        return
    spy = 'srun() { printf \'%s\\0\' "$@" "$PROMPTFLEET_TEST"; }; scontrol() { :; }\n'
    found = subprocess.run(["/bin/bash", "-c", spy + text], capture_output=True, check=False, env={"PATH": "/nowhere"})
    words = found.stdout.decode().split("\0")[:-1]
    assert words == ["--kill-on-bad-exit=1", sys.executable, *submission.worker, variable]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=NASTY, item=NASTY, output=NASTY, variable=NASTY)
def test_pdsh_and_the_shell_of_a_host_hand_every_value_on_unharmed(
    monkeypatch, tmp_path, config, item, output, variable
):
    """The shell itself reads the command, after pdsh has put in its numbers; Python is a program that writes down its words."""
    spy = tmp_path / "spy $(x) %n"
    spy.write_text('#!/bin/sh\nprintf "%s\\0" "$@" "$PROMPTFLEET_TEST"\n')
    spy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(spy))
    submission = Submission(
        Path("/") / config, Path("/out") / output, (item,), HOSTS, variables={"PROMPTFLEET_TEST": variable}
    )
    rendered = render("deepspeed", submission)
    told = re.sub("%(.)", lambda found: "1" if found[1] == "n" else found[1], rendered.command[-1])
    assert told == rendered.nodes["b"], "a dry run says what the host is told"
    for shell in ("/bin/sh", "/bin/bash"):
        found = subprocess.run([shell, "-c", told], capture_output=True, check=True, env={"PATH": "/nowhere"})
        words = found.stdout.decode().split("\0")[:-1]
        assert words[-len(submission.worker) - 2 :] == ["--node_rank=1", *submission.worker, variable]


def test_a_dry_run_says_what_would_run_and_starts_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"task": "boolq", "backbone": {"path": "."}}))
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\n")
    arguments = [
        "submit",
        str(tmp_path / "run.json"),
        "--hostfile",
        str(tmp_path / "hosts"),
        "--backend",
        "mpi",
        "--dry-run",
    ]
    assert cli.main([*arguments, "--nodes", "1", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("command: mpirun -np 2 --host a:2 "), "the first of the hosts"
    assert cli.main([*arguments, "--exclude", "b", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("command: mpirun -np 2 --host a:2 ") and shown.endswith(
        "rank 0: a slot 0\nrank 1: a slot 1\n"
    )
    monkeypatch.setenv("WANTED_BY_RANKS", "a b")
    assert cli.main([*arguments[:-3], "--backend", "deepspeed", "--dry-run", "--export", "WANTED_BY_RANKS"]) == 0
    shown = capsys.readouterr().out
    assert "\non a: cd " in shown and "\non b: cd " in shown and "--node_rank=1" in shown
    assert "environment: that of each host\n  and 'WANTED_BY_RANKS=a b'\nrank 0: a slot 0\n" in shown
    assert not (tmp_path / "out").exists()
    for more, message in (
        (["--ranks", "5"], "--ranks 5, but the hosts have 3 slots"),
        (["--export", "A=1"], '--export "A=1": not the name of an environment variable'),
        (["--set", "optimizer.lr=x"], "optimizer.lr"),
        (["--time", "1:00", "--gpus"], "--time, --gpus: for SLURM alone, and --backend is mpi"),
        (["--sbatch", "qos=a"], "--sbatch: for SLURM alone"),
        (["--fresh", "--backend", "slurm"], "--fresh would start a job anew each time it is requeued"),
        (["--nodes", "3"], "--nodes 3, but there are 2 hosts"),
    ):
        assert cli.main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="mpirun is not installed here"):
        open_process(render("mpi", make(ranks=2)))
