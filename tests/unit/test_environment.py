"""What a process learns from the variables that launchers set."""

from __future__ import annotations

import json

import pytest

from launcher.ranks.environment import Process, find_process, threads
from launcher.ranks.rendezvous import meet, rendezvous
from model_parallel.cores import usable_cores
from prompt_tuning.errors import UserError
from prompt_tuning.report.provenance import record

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_process_alone():
    assert find_process(environment={}) == Process(rank=0, local_rank=0, world_size=1, local_world_size=1)


def test_torchrun_sets_four_variables():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **MASTER}
    assert find_process(environment=environment) == Process(5, 1, 8, 4)


def test_deepspeed_names_the_local_size_otherwise():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", **MASTER}
    assert find_process(environment=environment) == Process(5, 1, 8, 4)
    assert find_process(environment={"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MASTER}).local_world_size == 2


def test_the_local_rank_comes_from_the_environment_before_the_command_line():
    assert find_process(3, {}).local_rank == 3
    assert find_process(3, {"LOCAL_RANK": "1"}).local_rank == 1


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
@pytest.mark.parametrize("value", ["", "two", "-1", "1.0"])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(UserError, match=f"{name}={value!r} is not a number"):
        find_process(environment={name: value})


def test_a_rank_beyond_the_world_is_named():
    with pytest.raises(UserError, match="RANK=2 and WORLD_SIZE=2 contradict each other"):
        find_process(environment={"RANK": "2", "WORLD_SIZE": "2"})


def test_ranks_that_cannot_find_each_other_are_named():
    with pytest.raises(UserError, match="WORLD_SIZE=2, but no MASTER_ADDR; start with torchrun or deepspeed"):
        find_process(environment={"RANK": "0", "WORLD_SIZE": "2"})


def test_threads_share_the_cores_among_local_ranks():
    cores = usable_cores()
    assert threads(Process(), {}) == cores
    assert threads(Process(world_size=8, local_world_size=2), {}) == max(1, cores // 2)
    assert threads(Process(world_size=999, local_world_size=999), {}) == 1


def test_cores_that_slurm_sets_aside_are_not_divided_again():
    """A task is bound to its own, so the others of its node are not among those that it sees."""
    cores = usable_cores()
    place = find_process(environment={**SLURM, "SLURM_CPUS_PER_TASK": str(cores)})
    assert place == Process(5, 1, 7, 2, cores) and threads(place, {}) == cores
    assert threads(Process(0, 0, 2, 2, 10**6), {}) == cores
    inside = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", **MASTER}
    assert find_process(environment={**SLURM, "SLURM_CPUS_PER_TASK": "8", **inside}).cores is None


def test_omp_num_threads_counts_for_one_process():
    """torchrun sets it to 1 for every rank, which would waste cores."""
    assert threads(Process(), {"OMP_NUM_THREADS": "3"}) == 3
    assert threads(Process(), {"OMP_NUM_THREADS": "many"}) == usable_cores()
    ranks = Process(world_size=2, local_world_size=2)
    assert threads(ranks, {"OMP_NUM_THREADS": "1"}) == threads(ranks, {})


def test_the_record_names_versions_and_ranks():
    found = record(5, ["a", "a", "b"])
    assert found["versions"]["torch"] and found["versions"]["transformers"] and found["versions"]["python"]
    assert (found["world_size"], found["threads"]) == (3, 5)
    assert found["hosts"] == ["a", "a", "b"] and found["processor"]
    json.dumps(found)


SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_JOB_ID": "40",
         "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NODELIST": "gpu[07-09],login"}  # fmt: skip
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip
PMI = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, Process(5, 1, 7, 2)),
        ({**SLURM, "SLURM_PROCID": "6", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}, Process(6, 0, 7, 1)),
        (OPEN_MPI, Process(3, 1, 4, 2)),
        (PMI, Process(1, 1, 4, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, Process(1, 0, 4, 4)),
    ],
)
def test_every_launcher_is_understood(environment, expected):
    assert find_process(environment=environment) == expected


def test_a_batch_script_is_one_process_whatever_its_job_has():
    """sbatch tells the script of its allocation; only a step of srun has tasks."""
    assert find_process(environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}) == Process()


def test_the_innermost_launcher_counts():
    inside = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", **MASTER}
    assert find_process(environment={**SLURM, **inside}) == Process(9, 1, 16, 8)
    two_nodes = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert find_process(environment={**two_nodes, **OPEN_MPI}) == Process(3, 1, 4, 2), (
        "mpirun's daemons are tasks of SLURM"
    )


def test_launchers_that_contradict_each_other_are_refused_with_both_values():
    alone = {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
    with pytest.raises(UserError) as error:
        find_process(environment={**SLURM, "SLURM_STEP_NUM_TASKS": "16", **alone})
    assert "SLURM says that the job has 16 ranks (SLURM_STEP_NUM_TASKS), Open MPI says 1 (OMPI_COMM_WORLD_SIZE)" in str(
        error.value
    )


def test_the_ranks_of_slurm_meet_on_the_first_host():
    place = rendezvous(find_process(environment=SLURM), SLURM)
    assert (place["RANK"], place["WORLD_SIZE"], place["LOCAL_RANK"], place["MASTER_ADDR"]) == ("5", "7", "1", "gpu07")
    assert 20_000 <= int(place["MASTER_PORT"]) < 30_000
    assert rendezvous(Process(), SLURM) == {} and rendezvous(Process(1, 1, 2, 2), {"WORLD_SIZE": "2", **MASTER}) == {}
    other = {**SLURM, "SLURM_STEP_ID": "1"}
    assert rendezvous(find_process(environment=other), other)["MASTER_PORT"] != place["MASTER_PORT"]


def test_the_ranks_of_one_host_meet_without_its_name():
    """Which need not resolve, as in a container."""
    alone = {**SLURM, "SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_NODEID": "0"}
    assert rendezvous(find_process(environment=alone), alone)["MASTER_ADDR"] == "127.0.0.1"


def test_a_meeting_place_that_was_set_is_kept():
    own = rendezvous(find_process(environment={**SLURM, **MASTER}), {**SLURM, **MASTER})
    assert own == {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", **MASTER}
    host = {**SLURM, "MASTER_ADDR": "10.0.0.1"}
    found = rendezvous(find_process(environment=host), host)
    assert found["MASTER_ADDR"] == "10.0.0.1" and int(found["MASTER_PORT"]) >= 20_000


def test_a_meeting_place_without_address_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(UserError, match=r"cannot meet on 'no-such-host\.invalid' \(MASTER_ADDR\)"):
        meet(Process(0, 0, 2, 2))


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/job/step\n", {"job/cpu.max": "max 100000\n"}, 4),
        ("0::/job/step\n", {"job/step/cpu.max": "150000 100000\n"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "100000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/job\n1:name=x:/\n",
            {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("4:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 4),
        ("0::/job\n", {"job/cpu.max": "nonsense"}, 4),
        (None, {}, 4),
    ],
)
def test_cores_are_those_that_control_groups_leave(tmp_path, monkeypatch, own, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert usable_cores(tmp_path, tmp_path / "own") == cores
