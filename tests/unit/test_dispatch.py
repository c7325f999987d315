"""Placing a suite's fleets: free hosts, retries, hosts that fail, drivers that died; and what `promptfleet status` reads."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher import cli
from launcher.clusters.backends import Rendered, Submission, slurm
from launcher.clusters.hostfile import Host
from launcher.runs import dispatch
from launcher.runs import journal as starts
from launcher.runs.plan import FleetJob
from launcher.runs.state import State, owner_of, read_state, saved_step
from launcher.verbs.status import read_rows
from prompt_tuning.storage.lock import locked

queue = slurm.queue
HOSTS = (Host("a", (0, 1)), Host("b", (0,)), Host("c", (0,)))
WORKER = """
import json, pathlib, sys, time
folder, host, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
folder.mkdir(exist_ok=True)
(folder / "run.json").write_text("{}")
with (folder / "hosts").open("a") as file:
    file.write(host + "\\n")
attempt = (folder / "hosts").read_text().count("\\n")
if host in behaviour.get("broken", []) or attempt <= behaviour.get("failures", 0):
    sys.exit(1)
if attempt <= behaviour.get("failures", 0) + behaviour.get("steps", 0):
    step = folder / "checkpoints" / f"step-{attempt:06d}"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    sys.exit(75)
time.sleep(behaviour.get("seconds", 0))
(folder / "result.json").write_text(json.dumps({"status": behaviour.get("status", "finished")}))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run fleets of a given behaviour on hosts; returns the failed ones and the hosts that each has seen."""

    def go(behaviours, hosts=HOSTS, retries=1, nodes=1):
        def render(backend, submission):
            names = "+".join(host.name for host in submission.hosts or ()) or "here"
            behaviour = json.dumps(behaviours[submission.output.name])
            return Rendered([sys.executable, "-c", WORKER, str(submission.output), names, behaviour])

        monkeypatch.setattr(dispatch, "render", render)
        wanted = Submission(tmp_path, tmp_path, hosts=hosts, nodes=nodes)
        driver = dispatch.Dispatcher(wanted, "mpi", tmp_path, dispatch.divide(wanted), retries)
        failed = driver.run([FleetJob(tmp_path / f"{name}.json", tmp_path / name, [name]) for name in behaviours])
        seen = {name: (tmp_path / name / "hosts").read_text().split() for name in behaviours}
        return [fleet.file.stem for fleet in failed], seen

    return go


def test_fleets_run_on_all_hosts_at_once(run):
    failed, seen = run({f"fleet{i}": {"seconds": 0.5} for i in range(6)})
    assert not failed and all(len(hosts) == 1 for hosts in seen.values())
    assert {hosts[0] for hosts in seen.values()} == {"a", "b", "c"}


def test_a_fleet_may_take_several_hosts(run):
    failed, seen = run({"one": {}, "two": {}}, nodes=2)
    assert not failed and seen == {"one": ["a+b"], "two": ["a+b"]}


def test_failures_are_retried_a_bounded_number_of_times_and_do_not_stop_the_others(run):
    failed, seen = run({"never": {"failures": 9}, "second": {"failures": 1}, "first": {}}, retries=2)
    assert failed == ["never"]
    assert [len(seen[name]) for name in ("never", "second", "first")] == [3, 2, 1]


def test_a_start_that_took_the_run_further_is_no_failure(run, tmp_path):
    """As with a job that is asked to make room again and again."""
    failed, seen = run({"slow": {"failures": 1, "steps": 4}}, retries=1)
    assert not failed and len(seen["slow"]) == 6 and saved_step(tmp_path / "slow") == 5


def test_a_result_is_never_retried(run):
    failed, seen = run({"diverged": {"status": "diverged"}}, retries=5)
    assert failed == ["diverged"] and len(seen["diverged"]) == 1


def test_a_host_that_always_fails_is_left_out_while_there_are_others(run, capsys):
    failed, seen = run({f"fleet{i}": {"broken": ["a"], "seconds": 0.3} for i in range(8)}, retries=4)
    assert not failed and 3 <= sum(hosts.count("a") for hosts in seen.values()) <= 4
    assert "a: 3 starts in a row have failed; not used any more" in capsys.readouterr().err
    failed, seen = run({"only": {"broken": ["a"]}}, hosts=HOSTS[:1], retries=5)
    assert failed == ["only"] and len(seen["only"]) == 6, "the last host is kept"


def test_hosts_are_not_blamed_for_broken_fleets(run):
    """Ten fleets that fail wherever they are, before the first that does not."""
    broken = {f"broken{i}": {"failures": 99} for i in range(10)}
    failed, seen = run({**broken, **{f"fleet{i}": {"seconds": 0.3} for i in range(9)}}, retries=1)
    assert failed == list(broken)
    assert {host for name, hosts in seen.items() if name not in broken for host in hosts} == {"a", "b", "c"}


def test_what_a_dead_driver_left_running_is_waited_for_and_keeps_its_host(tmp_path, monkeypatch, run, capsys):
    folder = tmp_path / "begun"
    folder.mkdir()
    starts.record_starts(tmp_path, [{"fleet": "begun", "hosts": ["b"]}])
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"fleet": "half wri')
    lock = locked(folder)
    lock.__enter__()
    polls = iter(range(4))

    def sleep(seconds):
        if next(polls, None) is None:
            (folder / "hosts").write_text("b\n")
            (folder / "result.json").write_text('{"status": "finished"}')
            lock.__exit__(None, None, None)

    monkeypatch.setattr(dispatch.time, "sleep", sleep)
    failed, seen = run({"begun": {}, "one": {}, "two": {}})
    assert not failed and seen == {"begun": ["b"], "one": ["a"], "two": ["c"]}
    assert "begun runs already (process" in capsys.readouterr().out


def test_a_start_is_written_on_a_line_of_its_own(tmp_path):
    """Also after one that a killed driver has left half written."""
    starts.record_starts(tmp_path, [{"fleet": "one"}])
    starts.record_starts(tmp_path, [{"fleet": "two"}, {"fleet": "three"}])
    file = tmp_path / "starts.jsonl"
    assert file.read_text().count("\n") == 3 and [record["fleet"] for record in starts.read_starts(tmp_path)] == [
        "one",
        "two",
        "three",
    ]
    file.write_text(file.read_text()[:-4])
    starts.record_starts(tmp_path, [{"fleet": "four"}])
    assert [record["fleet"] for record in starts.read_starts(tmp_path)] == ["one", "two", "four"]


def test_hosts_that_stay_idle_are_said_and_wrong_ones_refused(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"task": "boolq", "backbone": {"path": "."}}))
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\nc slots=1\n")
    arguments = [
        "suite",
        str(tmp_path / "run.json"),
        "--hostfile",
        str(tmp_path / "hosts"),
        "--backend",
        "mpi",
        "--dry-run",
    ]
    arguments += ["--output", str(tmp_path / "suite")]
    assert cli.main([*arguments, "--nodes", "2"]) == 0
    shown = capsys.readouterr()
    assert "1 of 3 hosts stay idle" in shown.err and "mpirun -np 3 --host a:2,b:1 " in shown.out
    for more, message in (
        (["--nodes", "4"], "--nodes 4, but there are 3 hosts"),
        (["--master-addr", "a"], "--master-addr is one address"),
        (["--ranks", "3"], "--ranks 3, but the hosts have 4 slots"),
    ):
        assert cli.main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err


def test_a_second_driver_of_a_suite_is_refused(tmp_path, capsys):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"task": "boolq", "backbone": {"path": "."}}))
    (tmp_path / "suite").mkdir()
    with locked(tmp_path / "suite"):
        assert cli.main(["suite", str(config), "--output", str(tmp_path / "suite")]) == 1
    assert "is in use by process" in capsys.readouterr().err


def test_a_submission_to_a_folder_in_use_starts_nothing(tmp_path, capsys):
    """Or its Ctrl-C would stop the job that is there."""
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"task": "boolq", "backbone": {"path": "."}}))
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert cli.main(["submit", str(config), "--output", str(tmp_path / "run")]) == 1
    assert "is in use by process" in capsys.readouterr().err


def test_a_look_at_the_lock_refuses_no_job(tmp_path):
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.3, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        with locked(tmp_path):
            assert "process" in str(owner_of(tmp_path))


def test_states_are_read_from_files_alone(tmp_path):
    folder = tmp_path / "run"
    assert read_state(folder) == State("waiting")
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "log.txt").write_text("2026-11-24 10:00:00,123 INFO a: step 7 of 9\nhalf a li")
    assert read_state(folder) == State("stopped", 0, None, "a: step 7 of 9")
    for name in ("step-000004", "step-1000000", "step-odd"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "state.json").write_text("{}")
    assert read_state(folder).step == 1000000
    with locked(folder):
        state = read_state(folder)
        assert state.word == "running" and "process" in state.owner
    (folder / "members" / "a").mkdir(parents=True)
    (folder / "members" / "a" / "metrics.jsonl").write_text('{"step": 8}\n{"step": 9}\n{"ste')
    for content, word in (
        ('{"status": "finished"}', "finished"),
        ('{"status": "diverged"}', "failed"),
        ("[]", "stopped"),
    ):
        (folder / "result.json").write_text(content)
        assert read_state(folder).word == word


def test_status_shows_what_waits_runs_and_is_queued(tmp_path, monkeypatch, capsys):
    (tmp_path / "suite.json").write_text(json.dumps({"fleets": ["one", "two", "three"]}))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text("{}")
    (tmp_path / "one" / "result.json").write_text('{"status": "finished"}')
    starts.record_starts(tmp_path, [{"fleet": "one", "hosts": ["a", "b"]}, {"fleet": "two", "slurm": "7_1"}])
    monkeypatch.setattr(slurm, "queue", lambda: {"7_1": "PENDING as 9_1"})
    assert [(name, state.word, where) for name, state, where in read_rows(tmp_path)] == [
        ("one", "finished", "a, b"), ("three", "waiting", ""), ("two", "queued", "SLURM: PENDING as 9_1")]  # fmt: skip
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "3 runs: 1 finished, 1 waiting, 1 queued" in capsys.readouterr().out
    starts.record_starts(tmp_path / "one", [{"fleet": "one", "slurm": "12"}])
    printed = "one N/A 12 PENDING\na b 3 7_3 RUNNING\n"
    monkeypatch.setattr(slurm, "call", lambda command: subprocess.CompletedProcess(command, 0, printed, ""))
    monkeypatch.setattr(slurm, "queue", queue)
    assert queue() == {
        "12": "PENDING as 12",
        "one_N/A": "PENDING as 12",
        "7_3": "RUNNING as 7_3",
        "a b_3": "RUNNING as 7_3",
    }
    for name, word in (("result.json", "finished"), ("run.json", "queued"), (None, "queued")):
        (row,) = read_rows(tmp_path / "one")
        assert row[1].word == word, "a run that was submitted is one before anything of it is there"
        if name is not None:
            (tmp_path / "one" / name).unlink()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "starts.jsonl").write_bytes(b"\xff\n" + (tmp_path / "starts.jsonl").read_bytes())
    assert cli.main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "SLURM's queue is not known: squeue is not installed" in shown.err and "3 runs: " in shown.out
    assert cli.main(["status", str(tmp_path / "nowhere")]) == 1
    assert "no run there" in capsys.readouterr().err


def test_an_array_that_a_driver_could_not_write_down_any_more_is_known_by_its_name(tmp_path, monkeypatch):
    """The driver dies while sbatch answers."""

    def die(rendered):
        die.script = rendered.text
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm, "submit", die)
    with pytest.raises(KeyboardInterrupt):
        starts.submit_array([Submission(Path("/c"), tmp_path / name) for name in ("one", "two")], tmp_path, 1)
    (name,) = [line.partition("=")[2] for line in die.script.splitlines() if line.startswith("#SBATCH --job-name")]
    monkeypatch.setattr(slurm, "queue", lambda: {f"{name}_1": "RUNNING as 5_1", "another_0": "RUNNING as 4_0"})
    assert starts.queued(tmp_path) == {"two": "RUNNING as 5_1"}


def test_an_array_has_a_task_for_each_run_and_requeues_a_bounded_number_of_times(tmp_path):
    runs = [Submission(Path(f"/c {i}"), Path(f"/o/$(x){i}")) for i in range(3)]
    text = slurm.render_array(runs, tmp_path, 2, "suite-1").text
    assert (
        "#SBATCH --array=0-2" in text
        and "#SBATCH --job-name=suite-1" in text
        and f"#SBATCH --output={tmp_path}/slurm-%A_%a.txt" in text
    )
    spy = "srun() { printf '%s\\0' \"$@\"; return ${CODE}; }; scontrol() { printf '%s\\0' \"$2\"; }\n"
    for task, submission in enumerate(runs):
        for code, restarts, again in (
            (0, 0, False),
            (1, 0, True),
            (1, 1, True),
            (1, 2, False),
            (75, 9, True),
            (3, 0, False),
        ):
            environment = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "5", "SLURM_JOB_ID": "5"}
            environment |= {"SLURM_RESTART_COUNT": str(restarts), "CODE": str(code)}
            found = subprocess.run(["/bin/bash", "-c", spy + text], capture_output=True, text=True, env=environment)
            words = found.stdout.split("\0")[:-1]
            assert words == ["--kill-on-bad-exit=1", sys.executable, *submission.worker] + [f"5_{task}"] * again, (
                "not the whole array"
            )
            assert found.returncode == code
