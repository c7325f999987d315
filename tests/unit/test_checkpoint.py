"""Checkpoints: the same bits back, damage found, a crash at any moment survived, and nothing foreign accepted."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_tuning.errors import UserError
from prompt_tuning.fleet import checkpoint
from prompt_tuning.fleet.evaluate import evaluate
from prompt_tuning.fleet.member import Best
from prompt_tuning.settings import identity
from tests.support.fleets import follow, make_run, open_fleet
from tests.support.tiny import make_backbone, make_texts, run_json


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three members; RoBERTa without a pooler, so that each brings a frozen one, which must travel too."""
    folder = tmp_path_factory.mktemp("checkpoint")
    members = [
        {"name": "deep", "prompt": {"length": 3, "dropout": 0.2}, "optimizer": {"relative": True}},
        {
            "name": "mlp",
            "prompt": {"length": 2, "reparameterisation": "mlp", "projection_width": 4},
            "train": {"seed": 12},
        },
        {"name": "head", "method": "head", "train": {"seed": 13}},
    ]
    backbone = make_backbone(folder / "backbone", "roberta", with_pooler=False)
    return run_json(backbone, make_texts(folder / "texts"), fleet={"members": members})


@pytest.fixture(scope="module")
def trained(raw):
    """A fleet after four steps, with a best evaluation two steps ago and a stopped member."""
    fleet = open_fleet(raw)
    follow(fleet, 2)
    for index, (metrics, loss) in evaluate(fleet, [0, 1], "dev").items():
        member = fleet.members[index]
        member.best = Best(member.step, metrics, loss, member.tensors())
    follow(fleet, 2)
    fleet.members[0].stale, fleet.members[0].seconds, fleet.members[0].examples = 3, 1.5, 32
    fleet.members[2].status = "stopped"
    return fleet


@pytest.fixture
def saved(raw, trained, tmp_path):
    """A folder with checkpoints of steps 3 and 4, between which every member has changed."""
    save_changed(raw, trained, tmp_path)
    return tmp_path


def save_changed(raw, fleet, folder):
    for step in (3, 4):
        for member in fleet.members:
            member.seconds += 1
        checkpoint.save(folder, fleet, step, experiment(raw), keep=2)


def file_of(path, name):
    """The file of a member in a checkpoint."""
    return next(path / saved["file"] for saved in checkpoint.read_state(path)["members"] if saved["name"] == name)


def experiment(raw):
    return identity.experiment(make_run(raw))


def state_of(fleet):
    """Everything that training changes, as plain values and tensors."""
    plain, tensors = [], []
    for member in fleet.members:
        best = member.best
        numbers = None if best is None else (best.step, best.metrics, best.loss)
        plain.append((member.status, member.step, member.stale, member.seconds, member.examples, numbers))
        found = {
            **dict(member.prompt.named_parameters()),
            **({} if best is None else {f"best.{n}": t for n, t in best.tensors.items()}),
        }
        for name, parameter in member.parameters:
            found.update({f"{key}.{name}": value for key, value in member.optimizer.state[parameter].items()})
        tensors.append(found)
    return plain, tensors


def test_a_fleet_comes_back_bit_by_bit(raw, trained, saved):
    fleet = open_fleet(raw)
    for member in fleet.members:
        with torch.no_grad():
            for parameter in member.prompt.parameters():
                parameter.fill_(7)
    assert checkpoint.load(checkpoint.newest(saved), fleet, experiment(raw)) == 4
    (plain, tensors), (expected_plain, expected_tensors) = state_of(fleet), state_of(trained)
    assert plain == expected_plain
    for found, expected in zip(tensors, expected_tensors, strict=True):
        assert set(found) == set(expected)
        assert any(name.startswith("exp_avg_sq") for name in found)
        assert "head.pooler.weight" in found
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == tensor.dtype, name


def test_training_continues_to_the_same_bits(raw, tmp_path):
    whole = open_fleet(raw)
    follow(whole, 3)
    checkpoint.save(tmp_path, whole, 3, experiment(raw), keep=1)
    expected = follow(whole, 4)
    again = open_fleet(raw)
    checkpoint.load(checkpoint.newest(tmp_path), again, experiment(raw))
    found = follow(again, 4)
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    for name, tensors in expected.end.items():
        assert all(torch.equal(found.end[name][key], tensor) for key, tensor in tensors.items())


def test_equal_states_give_equal_bytes(raw, trained, saved, tmp_path):
    checkpoint.save(tmp_path / "again", trained, 4, experiment(raw), keep=1)
    for file in (saved / "step-000004").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / "step-000004" / file.name).read_bytes(), file.name


def test_nothing_is_pickled(saved):
    files = list(saved.rglob("*.*"))
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        # JSON is text; a safetensors file is a length and then a JSON header.
        data = file.read_bytes()
        json.loads(data if file.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")])


# ---- Damage


def test_damaged_checkpoints_never_push_out_new_ones(raw, trained, saved, tmp_path):
    """A run that starts again below them keeps what it saves, and may be asked to stop as often as it likes."""
    folder, source = tmp_path / "others", checkpoint.newest(saved)
    for step in (100, 1000000):
        shutil.copytree(source, folder / f"step-{step:06d}")
        file_of(folder / f"step-{step:06d}", "deep").write_bytes(b"damaged")
    assert checkpoint.newest(folder) is None
    checkpoint.set_aside(folder, None)
    checkpoint.save(folder, trained, 10, {}, keep=1)
    assert checkpoint.newest(folder) == folder / "step-000010"
    assert (folder / "damaged-step-000100").is_dir() and (folder / "damaged-step-1000000").is_dir()
    checkpoint.set_aside(folder, folder / "step-000010")
    assert checkpoint.newest(folder) == folder / "step-000010"


def test_one_changed_byte_anywhere_is_found_and_the_previous_checkpoint_used(saved, caplog):
    """200 bytes over all files; a change among JSON's white spaces leaves the same state and may pass."""
    generator = np.random.default_rng(0)
    files = sorted((saved / "step-000004").iterdir())
    assert len(files) == 4
    found = 0
    for file in files:
        whole = file.read_bytes()
        for place, change in zip(generator.integers(0, len(whole), 50), generator.integers(1, 256, 50), strict=True):
            damaged = bytearray(whole)
            damaged[place] ^= change
            file.write_bytes(damaged)
            if file.suffix == ".json" and _reads_the_same(whole, bytes(damaged)):
                continue
            caplog.clear()
            with _warnings_of(caplog):
                assert checkpoint.newest(saved) == saved / "step-000003", (
                    f"{file.name}, byte {place} changed by {change}"
                )
            assert "step-000004 is damaged" in caplog.text
            found += 1
        file.write_bytes(whole)
    assert checkpoint.newest(saved) == saved / "step-000004"
    assert found > 150


def _reads_the_same(whole, damaged):
    try:
        return json.loads(whole) == json.loads(damaged)
    except ValueError:
        return False


class _warnings_of:
    """Let caplog see the module's records even where a test before has set up the command line's own logging."""

    def __init__(self, caplog):
        self.caplog = caplog

    def __enter__(self):
        checkpoint.logger.addHandler(self.caplog.handler)

    def __exit__(self, *_):
        checkpoint.logger.removeHandler(self.caplog.handler)


@pytest.mark.parametrize("file", ["tensors", "state.json"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_file_is_damage(saved, file, size):
    path = saved / "step-000004"
    os.truncate(file_of(path, "mlp") if file == "tensors" else path / file, size)
    assert checkpoint.newest(saved) == saved / "step-000003"


@pytest.mark.parametrize("file", ["tensors", "state.json"])
def test_a_missing_file_is_damage(saved, file):
    path = saved / "step-000004"
    (file_of(path, "mlp") if file == "tensors" else path / file).unlink()
    assert checkpoint.newest(saved) == saved / "step-000003"


def test_where_all_are_damaged_there_is_none(saved):
    for step in (3, 4):
        os.truncate(file_of(saved / f"step-{step:06d}", "deep"), 10)
    assert checkpoint.newest(saved) is None


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_a_half_written_folder_is_not_a_checkpoint(saved):
    shutil.copytree(saved / "step-000004", saved / ".step-000005.tmp")
    assert checkpoint.newest(saved) == saved / "step-000004"


CALLS = [
    (os, "fsync"),
    (os, "open"),
    (os, "link"),
    (Path, "rename"),
    (Path, "replace"),
    (shutil, "rmtree"),
    (Path, "mkdir"),
]


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step saved before"])
def test_a_crash_at_any_moment_of_a_save_leaves_a_sound_checkpoint(raw, trained, saved, monkeypatch, again):
    """The job dies at the first, second, ... file operation of a save; what is left is always a whole checkpoint."""
    step = 4 if again else 5
    survived = set()
    for deadline in range(1, 200):
        shutil.rmtree(saved, ignore_errors=True)
        save_changed(raw, trained, saved)
        trained.members[0].seconds += 1  # the others' files are linked
        with monkeypatch.context() as patch:
            if not _dies(patch, deadline, lambda: checkpoint.save(saved, trained, step, experiment(raw), keep=2)):
                break
        path = checkpoint.newest(saved)
        assert path is not None, f"operation {deadline} left nothing"
        survived.add(path.name)
        # The next run saves over whatever the dead one has left.
        checkpoint.save(saved, trained, step, experiment(raw), keep=2)
        assert checkpoint.newest(saved) == saved / f"step-{step:06d}"
    assert deadline > 10, "the save has more operations than that"
    assert survived == ({"step-000003", "step-000004"} if again else {"step-000004", "step-000005"})


def _dies(patch, deadline, save):
    """Run ``save`` and raise in its ``deadline``-th file operation; False where it has fewer."""
    count = 0

    class Killed(BaseException):
        pass

    def mortal(operation):
        def wrapped(*args, **options):
            nonlocal count
            count += 1
            if count == deadline:
                raise Killed
            return operation(*args, **options)

        return wrapped

    for owner, name in CALLS:
        patch.setattr(owner, name, mortal(getattr(owner, name)))
    try:
        save()
    except Killed:
        return True
    return False


# ---- Which are kept, and whose they are


def test_the_newest_are_kept(raw, trained, tmp_path):
    for step in (1, 2, 10, 3, 999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, trained, step, experiment(raw), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-1000001", "step-999999"]
    assert checkpoint.newest(tmp_path).name == "step-1000001"


def test_a_half_deleted_checkpoint_is_cleared_away(raw, trained, saved):
    (saved / "step-000003" / "state.json").unlink()
    checkpoint.save(saved, trained, 5, experiment(raw), keep=2)
    assert sorted(path.name for path in saved.iterdir()) == ["step-000004", "step-000005"]


def changed(raw, **sections):
    result = copy.deepcopy(raw)
    for section, values in sections.items():
        result[section] = {**result.get(section, {}), **values}
    return result


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optimizer": {"lr": 0.01}}, r"members\[0\]\.config\.optimizer\.lr: 0\.02 there, 0\.01 now"),
        ({"train": {"batch_size": 4}}, "batch_size: 8 there, 4 now"),
        ({"backbone": {"dtype": "float32"}}, 'dtype: "float64" there, "float32" now'),
    ],
)
def test_other_settings_are_refused_by_name(raw, saved, sections, named):
    other = changed(raw, **sections)
    with pytest.raises(UserError, match=f"other settings.*{named}.*--fresh"):
        checkpoint.load(checkpoint.newest(saved), open_fleet(other), experiment(other))


def test_settings_that_change_no_number_are_not_asked_for(raw, saved):
    other = changed(raw, train={"log_steps": 1, "checkpoint_steps": 1, "keep_checkpoints": 9}, parallel={"tensor": 1})
    assert checkpoint.load(checkpoint.newest(saved), open_fleet(other), experiment(other)) == 4


def test_another_backbone_is_refused(raw, saved, tmp_path):
    """Same folder name, same settings, other weights."""
    folder = Path(raw["backbone"]["path"])
    moved = tmp_path / "aside"
    folder.rename(moved)
    try:
        make_backbone(folder, "roberta", seed=1, with_pooler=False)
        with pytest.raises(UserError, match="another backbone"):
            checkpoint.load(checkpoint.newest(saved), open_fleet(raw), experiment(raw))
    finally:
        shutil.rmtree(folder)
        moved.rename(folder)
