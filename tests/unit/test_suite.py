"""Suites: what becomes a job, which jobs share a fleet, what is done already; and reports of what they leave."""

from __future__ import annotations

import csv
import json
import re
import statistics

import pytest

from launcher import cli
from launcher.pages.scores import as_csv, as_markdown, cells, read_groups, rows
from launcher.runs.plan import find_jobs, plan
from prompt_tuning.errors import UserError
from tests.support.tiny import make_backbone, make_copa, make_tags, make_texts, run_json


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three run files over one backbone: texts with a published number, COPA, tags."""
    folder = tmp_path_factory.mktemp("suite")
    backbone = make_backbone(folder / "backbone", "bert")
    published = [{"metric": "accuracy", "split": split, "value": 61.5, "by": by, "source": "x"}
                 for split, by in (("dev", "paper"), ("test", "rerun"))]  # fmt: skip
    train = {"max_steps": 3, "backbone_dropout": False}
    raws = {
        "texts": run_json(backbone, make_texts(folder / "texts"), train=train, published=published),
        "copa": {**run_json(backbone, make_copa(folder / "copa"), train=train), "task": "copa"},
        "tags": {
            **run_json(backbone, make_tags(folder / "tags"), train=train),
            "task": {"kind": "tagging", "name": "tags"},
        },
    }
    for name, raw in raws.items():
        (folder / f"{name}.json").write_text(json.dumps(raw))
    return folder


def paths(files, *names):
    return [str(files / f"{name}.json") for name in names]


def names(jobs):
    return [job.name for job in jobs]


def test_jobs_are_members_times_seeds_with_a_head_for_each_task(files):
    jobs = find_jobs(paths(files, "texts", "copa"), [], 2, baselines=True)
    assert names(jobs) == ["texts-seed11", "texts-seed12", "copa-seed11", "copa-seed12",
                           "texts-head-seed11", "texts-head-seed12", "copa-head-seed11", "copa-head-seed12"]  # fmt: skip
    assert [job.config["method"] for job in jobs[-4:]] == ["head"] * 4
    assert {job.config["train"]["seed"] for job in jobs} == {11, 12}
    assert names(find_jobs(paths(files, "texts"), [], None, baselines=False)) == ["texts-seed11"]


def test_a_head_that_is_there_is_not_added_again(files, tmp_path):
    fleet = {**json.loads((files / "texts.json").read_text()), "fleet": {"members": [{}, {"method": "head"}]}}
    (tmp_path / "both.json").write_text(json.dumps(fleet))
    assert names(find_jobs([str(tmp_path / "both.json")], [], None, baselines=True)) == [
        "both-seed11",
        "both-head-seed11",
    ]


def test_methods_have_names_of_their_own(files):
    full = find_jobs(paths(files, "texts"), ["method=full"], None, baselines=False)
    assert names(full) == ["texts-full-seed11"]


def test_equal_jobs_run_once_and_equal_names_are_refused(files, tmp_path):
    twice = paths(files, "texts", "texts")
    assert len(find_jobs(twice, [], None, baselines=False)) == 1
    other = json.loads((files / "texts.json").read_text()) | {"prompt": {"length": 2}}
    (tmp_path / "texts.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match='name "texts-seed11"; give one of the files another `name`'):
        find_jobs([*paths(files, "texts"), str(tmp_path / "texts.json")], [], None, baselines=False)


def test_fleets_share_a_backbone_and_are_no_larger_than_asked(files, tmp_path):
    jobs = find_jobs(paths(files, "texts", "copa", "tags"), [], 2, baselines=False)
    fleets, done = plan(jobs, tmp_path, 4)
    assert [len(fleet.members) for fleet in fleets] == [4, 2] and not done
    apart = [*jobs[:2], *find_jobs(paths(files, "copa"), ["train.backbone_dropout=true"], None, baselines=False)]
    assert [fleet.members for fleet in plan(apart, tmp_path, 8)[0]] == [
        ["texts-seed11", "texts-seed12"],
        ["copa-seed11"],
    ]
    full = find_jobs(paths(files, "texts", "copa"), ["method=full"], None, baselines=False)
    assert [len(fleet.members) for fleet in plan(full, tmp_path, 8)[0]] == [1, 1], "fine-tuning is a fleet of one"
    assert plan(jobs, tmp_path, 4)[0] == fleets, "the same jobs are the same fleets"


@pytest.fixture(scope="module")
def suite(files, tmp_path_factory):
    """A suite that has run: three tasks, two seeds, heads."""
    output = tmp_path_factory.mktemp("runs") / "suite"
    assert cli.main(["suite", *paths(files, "texts", "copa", "tags"), "--seeds", "2", "--output", str(output)]) == 0
    return output


def record_of(suite, member):
    """The run.json of the fleet that trained a member."""
    return next(suite.glob(f"*/members/{member}")).parents[1] / "run.json"


def test_a_suite_does_what_is_missing_and_nothing_twice(files, suite, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in suite.rglob("*") if path.is_file() and path.name != ".lock"}

    before = times()
    arguments = [*paths(files, "texts", "copa", "tags"), "--seeds", "2", "--output", str(suite)]
    assert cli.main(["suite", *arguments]) == 0
    assert "12 of 12 members are done already" in capsys.readouterr().out
    assert times() == before
    jobs = find_jobs(paths(files, "texts"), [], 3, baselines=True)
    fleets, done = plan(jobs, suite, 8)
    assert [fleet.members for fleet in fleets] == [["texts-seed13", "texts-head-seed13"]] and len(done) == 4
    fleets[0].file.unlink()


def test_an_unfinished_fleet_is_continued_first(files, suite, tmp_path):
    jobs = find_jobs(paths(files, "texts", "copa", "tags"), [], 2, baselines=True)
    record = record_of(suite, "texts-seed11")
    for path in (record.parent.with_suffix(".json"), record):
        (tmp_path / path.relative_to(suite)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(suite)).write_bytes(path.read_bytes())
    more = find_jobs(paths(files, "texts"), [], 5, baselines=False)
    fleets, done = plan(jobs + more[2:], tmp_path, 8)
    assert not done and fleets[0].folder == tmp_path / record.parent.name
    assert fleets[0].members == [member["name"] for member in json.loads(record.read_text())["members"]]
    assert sorted(name for fleet in fleets for name in fleet.members) == sorted(names(jobs) + names(more[2:]))


def test_a_failed_fleet_does_not_stop_the_others(files, tmp_path, capfd):
    broken = json.loads((files / "copa.json").read_text()) | {"data": {"path": str(tmp_path / "nowhere")}}
    broken["train"] = {**broken["train"], "log_steps": 3}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    output = tmp_path / "out"
    assert (
        cli.main(
            ["suite", str(tmp_path / "broken.json"), *paths(files, "texts"), "--no-baselines", "--output", str(output)]
        )
        == 1
    )
    text = capfd.readouterr()
    assert "no such folder" in text.err and "failed: backbone-1-" in text.err
    assert len(list(output.glob("*/members/texts-seed11/result.json"))) == 1


def results(suite):
    return [json.loads(path.read_text()) for path in sorted(suite.glob("*/members/*/result.json"))]


def test_a_report_has_one_row_for_each_recipe_split_and_metric(suite):
    groups = read_groups([suite])
    assert [(group.task, group.label, len(group.results)) for group in groups] == [
        ("copa", "deep_prompt", 2), ("copa", "head", 2),
        ("tags", "deep_prompt", 2), ("tags", "head", 2),
        ("texts", "deep_prompt", 2), ("texts", "head", 2),
    ]  # fmt: skip
    found = {(row.group.task, row.group.label, row.split, row.metric): row for row in rows(groups)}
    row = found["texts", "deep_prompt", "test", "accuracy"]
    own = [r["test"]["accuracy"] for r in results(suite) if r["task"] == "texts" and r["method"] == "deep_prompt"]
    heads = [r["test"]["accuracy"] for r in results(suite) if r["task"] == "texts" and r["method"] == "head"]
    assert sorted(row.values) == sorted(own) and row.head == pytest.approx(statistics.fmean(heads))
    assert (row.paper, row.rerun) == (None, 61.5) and found["texts", "deep_prompt", "dev", "accuracy"].paper == 61.5
    assert found["texts", "head", "dev", "accuracy"].paper is None, "a head is not what was published"
    assert cells(row)[4] == f"{statistics.fmean(own):.4f} ± {statistics.stdev(own):.4f}"
    assert ("tags", "head", "dev", "f1_strict") in found


def test_report_files_say_the_same(suite, capsys):
    assert cli.main(["report", str(suite)]) == 0
    shown = capsys.readouterr().out
    groups = read_groups([suite])
    count = len(list(rows(groups)))
    text = (suite / "report.md").read_text()
    assert text == as_markdown(groups) and len(text.splitlines()) == count + 2
    table = list(csv.DictReader((suite / "report.csv").read_text().splitlines()))
    assert len(table) == count and (suite / "report.csv").read_text() == as_csv(groups)
    for line, row in zip(table, rows(groups), strict=True):
        assert float(line["mean"]) == pytest.approx(statistics.fmean(row.values)) and line["metric"] == row.metric
        assert f"{statistics.fmean(row.values):.4f}" in shown


def test_the_page_needs_nothing_beside_itself(suite):
    cli.main(["report", str(suite)])
    page = (suite / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == page.count("</svg>") == 5
    linked = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("#") for link in linked), "drawings refer to their own parts only"
    assert "<script" not in page and "url(http" not in page
    for row in rows(read_groups([suite])):
        assert cells(row)[4] in page
    cli.main(["report", str(suite)])
    assert (suite / "report.html").read_text() == page, "the same results give the same page"


def test_names_are_text_in_the_page(suite, tmp_path):
    copy = tmp_path / "x"
    record = json.loads(record_of(suite, "texts-seed11").read_text())
    member = next(m for m in record["members"] if m["name"] == "texts-seed11")
    member["name"] = "<b>&x"
    (copy / "members" / "<b>&x").mkdir(parents=True)
    (copy / "run.json").write_text(json.dumps({"members": [member]}))
    result = next(r for r in results(suite) if r["member"] == "texts-seed11")
    (copy / "members" / "<b>&x" / "result.json").write_text(json.dumps(result))
    from launcher.pages.html import write_page

    page = write_page(read_groups([copy]), "a <title>")
    assert "<b>" not in page and "&lt;b&gt;&amp;x" in page and "a &lt;title&gt;" in page


def test_half_written_and_missing_results_are_passed_over(suite, tmp_path):
    with pytest.raises(UserError, match="no finished member there; give run folders"):
        read_groups([tmp_path])
    folder = tmp_path / "run"
    (folder / "members" / "texts-seed11").mkdir(parents=True)
    (folder / "run.json").write_text(record_of(suite, "texts-seed11").read_text())
    (folder / "members" / "texts-seed11" / "result.json").write_text('{"task": "te')
    with pytest.raises(UserError, match="no finished member"):
        read_groups([folder])
