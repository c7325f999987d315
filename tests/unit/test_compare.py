"""`promptfleet compare`: the same effort for each method, a test split that selects nothing, run files that go on."""

from __future__ import annotations

import json
import shutil
import statistics
from types import SimpleNamespace

import pytest

from launcher import cli
from launcher import run as worker
from launcher.pages.compare import as_markdown, read_sides, write_page
from launcher.runs import comparison, dispatch
from launcher.runs.comparison import SPACES, as_method, chosen, cost, finals, horizon, read_plan, searches, trials
from prompt_tuning.errors import UserError
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.report.answers import read_answers
from prompt_tuning.report.bootstrap import difference
from prompt_tuning.settings.members import load_run
from tests.support.tiny import make_backbone, make_language_backbone, make_texts, run_json

pytest.importorskip("peft")
METHODS = ("deep_prompt", "lora")


def in_process(rendered, log=None):
    """Instead of a process: the worker's main function, to its end."""
    place = rendered.command.index("--config")
    code = worker.main(rendered.command[place:])
    return SimpleNamespace(poll=lambda: code)


def write(folder, value, name="tiny.json"):
    (folder / name).write_text(json.dumps(value))
    return folder / name


def plan_of(file, output, methods=METHODS, sets=(), seeds=2, trials=2, equal="epochs", spaces=None):
    return read_plan(file, list(sets), methods, seeds, trials, equal, spaces or {}, output)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run file, and the finished comparison of a deep prompt and LoRA on it."""
    folder = tmp_path_factory.mktemp("compare")
    data = make_texts(folder / "data", {"train": 30, "dev": 9, "test": 12})
    raw = run_json(make_backbone(folder / "backbone", "bert"), data, fleet={"seeds": [1, 2, 3]})
    raw |= {"data": {**raw["data"], "held_out": 0.3}, "optimizer": {"lr": 5, "head_lr": 0.01}}
    file = write(folder, raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "open_process", in_process)
        assert cli.main(arguments(file, folder / "out")) == 0
    return folder


def arguments(file, output, methods="deep_prompt,lora", *more):
    shared = ["--methods", methods, "--seeds", "2", "--trials", "2", "--output", str(output)]
    return ["compare", str(file), *shared, *more]


@pytest.fixture
def plan(folder):
    return plan_of(folder / "tiny.json", folder / "out")


def copied(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out"


def test_scores_are_those_of_new_seeds_on_the_test_split(folder, plan):
    deep, lora = read_sides(plan)
    results = json.loads((folder / "out/seeds-deep_prompt/result.json").read_text())["members"]
    assert deep.scores == {r["seed"]: r["test"]["accuracy"] for r in results} and set(deep.scores) == {12, 13}
    each = [json.loads((folder / f"out/seeds-lora-seed{seed}/result.json").read_text()) for seed in (12, 13)]
    assert lora.scores == {r["members"][0]["seed"]: r["members"][0]["test"]["accuracy"] for r in each}
    assert lora.trainable_parameters == each[0]["members"][0]["trainable_parameters"]


def test_the_difference_is_that_of_the_kept_answers(folder, plan):
    deep, lora = read_sides(plan)
    first, other = (
        [read_answers(file) for file in sorted((folder / "out").glob(f"{name}*/members/*/answers/test.jsonl"))]
        for name in ("seeds-deep_prompt", "seeds-lora-seed")
    )
    assert len(first) == len(other) == 2
    assert lora.difference == difference(accuracy, first, other) and deep.difference is None
    assert abs(lora.difference.mean - (statistics.fmean(lora.values) - statistics.fmean(deep.values))) < 1e-12


def test_each_method_tries_as_many_rates_of_two_decades(plan):
    assert all(abs(high / low - 100) < 1e-9 for low, high in SPACES.values())
    for method in METHODS:
        low, _ = SPACES[method]
        assert [trial.rate for trial in trials(plan, method)] == plan.rates(method)
        assert [rate / low for rate in plan.rates(method)] == pytest.approx([100**0.25, 100**0.75], rel=0.005)


def test_trials_and_finals_train_as_long(plan):
    for method in METHODS:
        runs = [load_run(job.file) for job in (*searches(plan, method), *finals(plan, method))]
        assert {spec.config.train.epochs for run in runs for spec in run.members} == {2}
        assert {spec.config.train.max_steps for run in runs for spec in run.members} == {None}
        assert {spec.config.optimizer.head_lr for run in runs for spec in run.members} == {0.01}


def test_the_test_split_takes_no_part_in_the_choice(folder, plan, tmp_path):
    output = copied(folder, tmp_path)
    moved = plan_of(folder / "tiny.json", output)
    for job in searches(moved, "lora"):
        result = json.loads((job.folder / "result.json").read_text())
        rate = load_run(job.file).shared.optimizer.lr
        result["members"][0] |= {"test": {"accuracy": 1 / rate}, "test/dev": {"accuracy": 1 / rate}}
        result["members"][0]["best"]["metrics"]["accuracy"] = rate
        (job.folder / "result.json").write_text(json.dumps(result))
    assert chosen(moved, "lora").rate == max(moved.rates("lora"))


def test_of_equal_scores_the_least_loss_is_chosen_and_what_diverged_is_not(folder, tmp_path):
    output = copied(folder, tmp_path)
    moved = plan_of(folder / "tiny.json", output)
    file = output / "search-deep_prompt" / "result.json"
    result = json.loads(file.read_text())
    for member, loss in zip(result["members"], (0.9, 0.4), strict=True):
        member["best"]["metrics"]["accuracy"], member["best_loss"] = 0.5, loss
    file.write_text(json.dumps(result))
    assert chosen(moved, "deep_prompt").rate == moved.rates("deep_prompt")[1]
    result["members"][1]["status"] = "diverged"
    file.write_text(json.dumps(result))
    assert chosen(moved, "deep_prompt").rate == moved.rates("deep_prompt")[0]
    result["members"][0]["best"] = None
    file.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"method deep_prompt diverged at every rate from 0.001 to 0.1; give lower"):
        chosen(moved, "deep_prompt")


def test_what_is_missing_alone_runs_again(folder, tmp_path, monkeypatch):
    output, ran = copied(folder, tmp_path), []
    shutil.rmtree(output / "seeds-lora-seed13")

    def counted(rendered, log=None):
        ran.append(rendered.command[rendered.command.index("--output") + 1].rpartition("/")[2])
        return in_process(rendered)

    monkeypatch.setattr(dispatch, "open_process", counted)
    before = json.loads((output / "compare.json").read_text())
    assert cli.main(arguments(folder / "tiny.json", output)) == 0
    assert ran == ["seeds-lora-seed13"]
    assert json.loads((output / "compare.json").read_text()) == before
    assert cli.main(arguments(folder / "tiny.json", output)) == 0 and len(ran) == 1
    assert cli.main([*arguments(folder / "tiny.json", output, "deep_prompt,head"), "--seeds", "3"]) == 0
    assert ran[1:] == ["measure-head", "search-head", "seeds-deep_prompt", "seeds-head"]
    assert len(json.loads((output / "seeds-deep_prompt/result.json").read_text())["members"]) == 3


def test_a_run_file_of_a_comparison_is_the_run_beside_it(folder):
    for name in ("measure-lora", "search-deep_prompt", "seeds-deep_prompt", "seeds-lora-seed12"):
        run = load_run(folder / "out" / f"{name}.json")
        recorded = json.loads((folder / "out" / name / "run.json").read_text())
        assert json.loads(json.dumps(run.to_json())) == recorded


@pytest.mark.parametrize(
    "change, said",
    [
        (["--trials", "3"], "holds another comparison (trials: 2 there, 3 now)"),
        (["--equal", "seconds"], "holds another comparison (equal:"),
        (["--rates", "lora=1e-5:1e-3"], "holds another comparison (rates.lora[0]:"),
        (["--set", "train.epochs=3"], "holds another comparison (base.train.epochs:"),
        (["--methods", "lora,deep_prompt"], "holds another comparison (first:"),
    ],
)
def test_a_folder_with_another_comparison_is_refused(folder, capsys, change, said):
    assert cli.main([*arguments(folder / "tiny.json", folder / "out"), *change]) == 1
    error = capsys.readouterr().err
    assert said in error and "choose another --output" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options, said",
    [
        (["--methods", "deep_prompt,adapter"], '--methods "adapter": no method; choose from deep_prompt'),
        (["--methods", "head"], "--methods head: give at least two methods, each once"),
        (["--methods", "head,head"], "--methods head,head: give at least two methods, each once"),
        (["--rates", "head=1e-3:1e-2"], "--rates \"head=1e-3:1e-2\": give METHOD=LOW:HIGH of a method compared"),
        (["--rates", "lora=1e-2:1e-3"], "give METHOD=LOW:HIGH"),
        (["--rates", "lora=0:nan"], "give METHOD=LOW:HIGH"),
        (["--backend", "slurm"], "--backend slurm: compare waits for its runs"),
        (["--set", "optimizer.lr=1"], "--set optimizer.lr: compare sets methods, rates and fleets itself"),
        (["--set", "fleet.seeds=[1]"], "--set fleet.seeds: compare sets methods"),
        (["--set", "method=head"], "--set method: compare sets methods"),
        (["--set", "parallel.tensor=2"], "tiny.json, compared by method lora: parallel: method 'lora' trains"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_a_sentence(folder, tmp_path, capsys, options, said):
    assert cli.main([*arguments(folder / "tiny.json", tmp_path / "new"), *options]) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_failing_run_is_named_with_what_it_said(folder, tmp_path, capsys, monkeypatch):
    def fails(rendered, log):
        log.write(b"12:00:00 error: data.path=x: no such folder\n")
        log.flush()
        return SimpleNamespace(poll=lambda: 1)

    monkeypatch.setattr(dispatch, "open_process", fails)
    assert cli.main(arguments(folder / "tiny.json", tmp_path / "new")) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: measure-deep_prompt has failed: data.path=x: no such folder; its log is")


def test_without_a_split_to_compare_on_nothing_is_searched(folder, tmp_path, capsys, monkeypatch):
    data = make_texts(tmp_path / "data", {"train": 12, "dev": 6})
    raw = run_json(folder / "backbone", data) | {"data": {"path": str(data), "max_length": 24, "held_out": 0.0}}
    monkeypatch.setattr(dispatch, "open_process", in_process)
    assert cli.main(arguments(write(tmp_path, raw), tmp_path / "out", "deep_prompt,head")) == 1
    assert "the task has no labelled test split, and its dev split selects" in capsys.readouterr().err
    assert not (tmp_path / "out" / "search-head").exists()


def test_a_missing_extra_is_named_before_anything_runs(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    assert cli.main(arguments(folder / "tiny.json", tmp_path / "new")) == 1
    assert "pip install 'promptfleet[lora]', or leave it out of --methods" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_training_rows_select_unless_the_file_says_otherwise(folder, tmp_path):
    raw = run_json(folder / "backbone", folder / "data")
    assert plan_of(write(tmp_path, raw), None).base["data"]["held_out"] == comparison.HELD_OUT
    assert plan_of(write(tmp_path, raw), None, sets=["data.held_out=0"]).base["data"].get("held_out", 0) == 0
    bare = {"task": "sst2", "backbone": {"path": str(folder / "backbone")}}
    assert plan_of(write(tmp_path, bare), None, sets=["data.held_out=0"]).held_out == 0
    assert str(plan_of(write(tmp_path, raw), None).output) == "runs/compare-tiny"


def test_what_only_prompts_have_is_left_out_of_other_methods(folder, tmp_path):
    raw = run_json(
        folder / "backbone", folder / "data", prompt={"length": 3, "layers": [1], "init": "zero", "dropout": 0.2},
        optimizer={"head_lr": 0.5}, train={"also": ["biases"]},
    )  # fmt: skip
    plan = plan_of(write(tmp_path, raw), None, methods=("deep_prompt", "head", "lora", "full", "shallow_prompt"))
    assert as_method(plan, "deep_prompt")["prompt"] == raw["prompt"]
    assert all(as_method(plan, method)["prompt"] == {"dropout": 0.2} for method in ("head", "lora", "full"))
    assert as_method(plan, "shallow_prompt")["prompt"] == {"length": 3, "init": "zero", "dropout": 0.2}
    rates = {method: as_method(plan, method)["optimizer"].get("head_lr") for method in plan.methods}
    assert plan.spaces == SPACES
    assert [method for method in plan.methods if "also" in as_method(plan, method)["train"]] == ["deep_prompt"]
    assert rates == {"deep_prompt": 0.5, "head": None, "lora": 0.5, "full": 0.5, "shallow_prompt": 0.5}


def test_rates_that_are_shares_are_those_of_prompts_alone(folder, tmp_path):
    raw = run_json(folder / "backbone", folder / "data", optimizer={"relative": True})
    plan = plan_of(write(tmp_path, raw), None, methods=("deep_prompt", "head", "lora", "full"))
    assert plan.spaces == {**SPACES, "deep_prompt": comparison.RELATIVE}
    relative = [as_method(plan, method)["optimizer"].get("relative") for method in plan.methods]
    assert relative == [True, None, None, None]
    given = plan_of(write(tmp_path, raw), None, spaces={"deep_prompt": (0.1, 0.2)})
    assert given.rates("deep_prompt")[0] == 0.119


def test_a_template_that_the_language_model_answers_fits_prompts_alone(tmp_path, folder):
    backbone = make_language_backbone(tmp_path / "backbone", "bert")
    raw = {"task": "boolq", "backbone": {"path": str(backbone)}, "data": {"template": "cloze"}}
    with pytest.raises(
        UserError, match=r"compared by method lora: data.template='cloze' lets the language model answer"
    ):
        plan_of(write(tmp_path, raw), None)


def measured(plan, method, step_seconds, start_seconds, examples=40):
    folder = plan.output / f"measure-{method}"
    state = folder / "checkpoints" / "step-000030" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"members": [{"data": {"splits": {"train": {"examples": examples}}}}]}))
    times = [
        (5, start_seconds + 5 * step_seconds),
        (10, 5 * step_seconds),
        (12, 2 * step_seconds),
        (17, 50.0),
        (22, 5 * step_seconds),
    ]
    lines = [json.dumps({"step": step, "seconds": seconds}) for step, seconds in times]
    (folder / "throughput.jsonl").write_text("\n".join(lines))
    (folder / "result.json").write_text(json.dumps({"peak_bytes": 7}))


@pytest.mark.parametrize(
    "train, wanted",
    [
        ({"epochs": 3}, {"deep_prompt": (15, 5), "lora": (7, 3), "head": (1500, 500)}),
        ({"max_steps": 12, "eval_steps": 6}, {"deep_prompt": (12, 6), "lora": (6, 3), "head": (1200, 600)}),
    ],
)
def test_equal_seconds_are_the_firsts_in_measured_steps(folder, tmp_path, train, wanted):
    """40 rows in batches of 8: 5 steps an epoch, at 2, 4 and 0.02 seconds a step behind a start of 1, 2 and 1 seconds."""
    raw = run_json(folder / "backbone", folder / "data")
    raw |= {"train": {"batch_size": 8, **train}}
    plan = plan_of(write(tmp_path, raw), tmp_path, methods=("deep_prompt", "lora", "head"), equal="seconds")
    for method, seconds, start in (("deep_prompt", 2.0, 1.0), ("lora", 4.0, 2.0), ("head", 0.02, 1.0)):
        measured(plan, method, seconds, start)
    assert cost(plan, "lora").step_seconds == 4 and cost(plan, "lora").peak_bytes == 7
    for method, (steps, between) in wanted.items():
        assert horizon(plan, method) == {"max_steps": steps, "eval_steps": between}
    assert as_method(plan, "head", **horizon(plan, "head"))["train"]["max_steps"] == wanted["head"][0]


def test_the_table_and_the_page_say_what_was_done(folder, plan):
    sides = read_sides(plan)
    text = as_markdown(plan, sides)
    assert (folder / "out" / "compare.md").read_text() == text
    assert text.count("\n| deep_prompt |") == 1 and "30 % of the training rows, held out" in text
    assert "accuracy on test, mean ± standard deviation over the seeds 12 to 13" in text
    page = write_page(plan, sides)
    assert page.count("<tr>") == 3 and "<svg" in page
    recorded = json.loads((folder / "out" / "compare.json").read_text())["sides"]
    assert [side["method"] for side in recorded] == list(METHODS)
    assert recorded[1]["difference"]["mean"] == sides[1].difference.mean


def test_help_teaches_what_is_compared(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    said = capsys.readouterr().out
    assert "The test split takes no part" in said and "--equal seconds" in said
