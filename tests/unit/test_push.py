"""What is published of a prompt: its two files without any place of its owner's machine, and a page that is true and whose code runs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from launcher import cli
from launcher import run as worker
from launcher.pages.card import PIPELINES, PLACE, call_of
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.kinds import find_kind
from prompt_tuning.prompt.export import name_of
from prompt_tuning.prompt.hub import base_model, local_copy, published, repository_of
from prompt_tuning.tasks.find import find_task, own_kinds, task_names
from prompt_tuning.tokens.recipe import Encoding
from tests.support.rows import ROWS, encode
from tests.support.served import export, export_decoder, export_encoder
from tests.support.tiny import make_backbone, make_texts, make_tokenizer, run_json
from tests.unit.test_forged_prompts import forge

SEEDS = (4, 5, 6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of three seeds on a folder's data and backbone."""
    folder = tmp_path_factory.mktemp("trained")
    raw = run_json(
        make_backbone(folder / "backbone", "bert"),
        make_texts(folder / "data"),
        train={"max_steps": 3},
        fleet={"seeds": list(SEEDS)},
    )
    (folder / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", str(folder / "run.json"), "--output", str(folder / "out")]) == 0
    return folder


def member(trained, seed=SEEDS[0]):
    return next((trained / "out" / "members").glob(f"*seed{seed}"))


def pushed(capsys, folder, *options):
    """The page of a dry run, and what it says beside it."""
    capsys.readouterr()
    assert cli.main(["push", str(folder), "me/mine", "--dry-run", *map(str, options)]) == 0
    return capsys.readouterr()


def refused(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["push", *map(str, arguments)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_the_page_has_this_prompts_scores_and_the_spread_over_seeds(trained, capsys):
    out, said = pushed(capsys, member(trained), "--license", "apache-2.0")
    card = ModelCard(out)
    results = [json.loads((member(trained, seed) / "result.json").read_text()) for seed in SEEDS]
    found = {(own.dataset_split, own.metric_type): own.metric_value for own in card.data.eval_results}
    expected = {("dev", name): value for name, value in results[0]["best"]["metrics"].items()}
    expected |= {("test", name): value for name, value in results[0]["test"].items()}
    assert found == expected
    values = [result["test"]["accuracy"] for result in results]
    spread = f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
    majority = results[0]["majority"]["test"]["accuracy"]
    assert f"| test | accuracy | {values[0]:.4f} | {majority:.4f} | {spread} | 3 |" in out
    assert "that of seed 4; the mean is over all 3 seeds of the same settings. dev selected it, by accuracy." in out
    assert f"trainable parameters: {results[0]['trainable_parameters']:,}, " in out
    assert (card.data.library_name, card.data.license, card.data.base_model) == ("promptfleet", "apache-2.0", None)
    assert card.data.language is None and card.data.datasets is None and card.data.pipeline_tag == "text-classification"
    assert re.findall(r"^  (\S+) \(", said, re.MULTILINE) == ["README.md", "prompt.json", "prompt.safetensors"]


def test_no_place_of_the_owners_machine_is_published(trained, capsys, monkeypatch):
    sent = {}
    monkeypatch.setattr("prompt_tuning.prompt.hub.upload", lambda where, files, *_: sent.update(files) or "there")
    (member(trained) / "prompt" / "key.pem").write_text("secret")
    assert cli.main(["push", str(member(trained)), "me/mine"]) == 0
    assert set(sent) == {"README.md", "prompt.json", "prompt.safetensors"}
    assert str(trained) not in str(sent) and not re.search(rb'"path": "', sent["prompt.json"])
    said = capsys.readouterr().err
    assert f"the backbone's path {trained / 'backbone'} is not published" in said
    monkeypatch.undo()
    # As the hub's library keeps copies.
    copy = trained / "models--me--mine" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    for name, content in sent.items():
        (copy / name).write_bytes(content)
    mine, rows = load_prompt(member(trained) / "prompt"), [{"text": "w1 w2"}]
    theirs = load_prompt(copy)
    with pytest.raises(
        UserError, match=r"does not say where its backbone is \(bert, fingerprint [0-9a-f]{64}\); give it by --backbone"
    ):
        attach(theirs)
    assert attach(theirs, str(trained / "backbone")).predict(rows) == attach(mine).predict(rows)


def test_a_hub_id_is_published_and_a_folder_of_that_name_is_not(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = forge(
        member(trained) / "prompt", tmp_path / "here", {"backbone.path": "someone/tiny", "backbone.revision": "v2"}
    )
    out, said = pushed(capsys, prompt)
    assert ModelCard(out).data.base_model == "someone/tiny" and "not published" not in said
    assert "[someone/tiny](https://huggingface.co/someone/tiny), revision `v2`" in out and "attach('me/mine')" in out
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    out, said = pushed(capsys, prompt)
    assert ModelCard(out).data.base_model is None and "path someone/tiny is not published" in said
    assert f"attach('me/mine', '{PLACE}')" in out
    shutil.rmtree(tmp_path / "someone")
    monkeypatch.setattr("prompt_tuning.prompt.hub.is_there", lambda name: False)  # nor what the hub does not know
    monkeypatch.setattr(
        "prompt_tuning.prompt.hub.upload", lambda where, files, *_: json.loads(files["prompt.json"])["backbone"]["path"]
    )
    assert cli.main(["push", str(prompt), "me/mine"]) == 0
    assert capsys.readouterr().out == "None\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("roberta-large", "roberta-large"),
        ("owner/name", "owner/name"),
        ("owner/name/model-q4.gguf", "owner/name"),
        ("/data/roberta", None),
        ("~/roberta", None),
        ("./roberta", None),
        ("../roberta", None),
        ("models/bert/base", None),
        ("owner/model.gguf/", None),
        ("package://module/path", None),
        ("a--b", None),
        (None, None),
    ],
)
def test_what_may_be_a_hub_id(path, expected):
    assert base_model(path) == expected


def test_the_documents_folder_stays_at_home():
    manifest = {
        "backbone": {"path": "package://a/b"},
        "task": {"kind": "document", "document": "/home/me/secret/manual.txt"},
    }
    assert published(manifest) == {
        "backbone": {"path": "package://a/b"},
        "task": {"kind": "document", "document": "manual.txt"},
    }


BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_code_of_a_page_runs(tmp_path, capsys):
    """For every kind that a page has code for; its answers are those of `predict`."""
    kinds = set()
    for export_all in (export_encoder, export_decoder):
        folder = tmp_path / export_all.__name__
        for prompt in sorted(export_all(folder).iterdir()):
            out, _ = pushed(capsys, prompt)
            code = BLOCK.search(out)
            if code is None:
                assert prompt.name == "copa"
                continue
            exec(code[1].replace("me/mine", str(prompt)).replace(PLACE, str(folder / "backbone")), {})
            assert capsys.readouterr().out.startswith("[")
            kinds.add(load_prompt(prompt).task.kind)
    assert kinds == {"classification", "tagging", "regression", "span", "generation"}


def test_every_kind_of_task_has_a_name_on_the_hub():
    assert (
        set(PIPELINES)
        == {*own_kinds()}
        == {"choice", *{find_task(name).kind for name in task_names()}, "document", "regression"}
    )


@pytest.mark.parametrize("name", task_names())
def test_a_row_that_is_made_up_fits_its_task(name):
    task = find_task(name)
    call = call_of(task, None)
    if call is None or not call.startswith("model.predict("):
        return
    rows = [(f"row {i}", row) for i, row in enumerate(ROWS[name])]
    labels = task.labels or find_kind(task.kind).collect_labels(task, rows)
    (row,) = eval(call.removeprefix("model.predict(").removesuffix(")"))
    own = [(where, each) for where, raw in [("row", row)] for each in task.expand(raw)]
    assert len(encode(task, make_tokenizer(), own, Encoding(40, stride=4), labels)) == 1


def test_what_can_not_be_pushed_is_a_sentence(trained, tmp_path, capsys):
    one = member(trained)
    assert "has 3 prompts, and a repository holds one; give it, as " in refused(
        capsys, trained / "out", "me/mine", "--dry-run"
    )
    assert "no prompt.json there" in refused(capsys, tmp_path, "me/mine", "--dry-run")
    for name in ("mine", "me/mine/more", "me/../mine", "me/mine@v2", ".me/mine"):
        assert "not a name on the hub" in refused(capsys, one, name, "--dry-run")
    assert "give the hub's name of a licence" in refused(capsys, one, "me/mine", "--dry-run", "--license", "Apache 2")
    assert "no name of a branch" in refused(capsys, one, "me/mine", "--dry-run", "--revision", "v2; x")
    export(tmp_path, "full", run_json(trained / "backbone", trained / "data", method="full"))
    said = refused(capsys, tmp_path / "prompts" / "full", "me/mine", "--dry-run")
    assert "method 'full' trained a whole model" in said
    copy = shutil.copytree(tmp_path / "prompts" / "full", tmp_path / "models--me--full" / "snapshots" / "abc")
    with pytest.raises(UserError, match="which is not taken from the hub"):
        load_prompt(copy)


def test_a_run_of_one_member_is_its_prompt(trained, tmp_path, capsys):
    shutil.copytree(member(trained), tmp_path / "members" / "one")
    assert "| dev | accuracy |" in pushed(capsys, tmp_path).out  # by its own record, as the run's is not there


def test_a_damaged_record_of_the_run_leaves_the_prompts_own(trained, tmp_path, capsys):
    copy = shutil.copytree(trained / "out", tmp_path / "out")
    (copy / "run.json").write_text("{")
    out = pushed(capsys, copy / "members" / member(trained).name).out
    best = json.loads((member(trained) / "result.json").read_text())["best"]["metrics"]["accuracy"]
    assert f"| dev | accuracy | {best:.4f} |" in out and "| test |" not in out


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was looked for on the hub, which has everything in an empty folder."""
    found = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: found.append((name, how)) or tmp_path / "empty"
    )
    return found


def test_only_a_text_is_looked_for_on_the_hub_and_a_local_folder_wins(asked, tmp_path):
    (tmp_path / "me" / "mine").mkdir(parents=True)
    for where in ("me/mine", Path("a/b"), "/a/b", "./a", "../a/b", "a", "a/b/c", "a--b/c", "a/b.git", "~nobody/a", ""):
        assert local_copy(where) == Path(where)
    assert asked == []
    for where, revision in (("a/b", None), ("a/b@v1", "v1"), ("a/b@refs/pr/3", "refs/pr/3")):
        with pytest.raises(UserError, match=f"^{where}: this repository of the hub holds no prompt"):
            local_copy(where)
        patterns = ["prompt.json", "prompt.safetensors"]
        assert asked.pop() == ("a/b", {"revision": revision, "allow_patterns": patterns})


def test_a_copy_of_the_hub_is_called_like_its_repository():
    copy = Path("/home/me/.cache/huggingface/hub/models--someone--texts/snapshots/0a1b")
    assert repository_of(copy) == "someone/texts" and name_of(copy) == "texts"
    for other in (
        copy.parent,
        copy / "prompt",
        Path("x"),
        Path("datasets--a--b/snapshots/1"),
        Path("models/snapshots/1"),
    ):
        assert repository_of(other) is None


def test_a_strangers_prompt_names_no_local_place(trained, tmp_path):
    for number, path in enumerate(("/etc/model", "~/model", "../model", "./model")):
        copy = tmp_path / f"models--me--{number}" / "snapshots" / "abc"
        copy.parent.mkdir(parents=True)
        forge(member(trained) / "prompt", copy, {"backbone.path": path})
        with pytest.raises(UserError, match="does not say where its backbone is"):
            attach(load_prompt(copy))


def test_a_model_answers_like_a_pipeline_of_transformers(trained, tmp_path):
    model = attach(str(member(trained) / "prompt"))
    texts = ["w1 w2", "w3"]
    expected = [
        {"label": own["label"], "score": own["probabilities"][own["label"]]}
        for own in model.predict([{"text": text} for text in texts])
    ]
    assert model(texts) == expected and model(texts[0]) == attach_one(model, texts[0]) and model([]) == []
    tags = export_encoder(tmp_path) / "tags"
    with pytest.raises(
        UserError, match="prompt 0 answers 'tags', of kind tagging, and no text with a class; use predict, with words"
    ):
        attach(load_prompt(tags))("w1 w2")


def attach_one(model, text):
    (own,) = model.predict([{"text": text}])
    return [{"label": own["label"], "score": own["probabilities"][own["label"]]}]


def test_numbers_of_a_prompt_without_a_run_are_counted(tmp_path, capsys):
    export(tmp_path, "head", run_json(make_backbone(tmp_path / "b", "bert"), make_texts(tmp_path / "t"), method="head"))
    out = pushed(capsys, tmp_path / "prompts" / "head").out
    count = sum(tensor.numel() for tensor in load_prompt(tmp_path / "prompts" / "head").prompt.parameters())
    assert f"- numbers in its file: {count:,}" in out and "A head alone for" in out and "## Metrics" not in out


def test_every_verb_that_takes_a_folder_takes_a_hub_id(trained, tmp_path, capsys, monkeypatch):
    """The copy's own backbone is found by its hub id, of which a local folder comes first here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "backbone", tmp_path / "someone" / "tiny")
    copy = tmp_path / "models--me--mine" / "snapshots" / "abc"
    copy.parent.mkdir(parents=True)
    forge(member(trained) / "prompt", copy, {"backbone.path": "someone/tiny"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(copy))
    data = trained / "data"
    for verb in (
        ["predict", "--prompt", "me/mine", "--input", data / "test.jsonl", "--output", tmp_path / "answers.jsonl"],
        ["evaluate", "--prompt", "me/mine@v1", "--data", data, "--split", "test"],
        ["export", "me/mine", "--format", "peft", "--output", tmp_path / "peft"],
    ):
        assert cli.main([str(word) for word in verb]) == 0, capsys.readouterr().err
    result = json.loads((member(trained) / "result.json").read_text())
    assert f'"accuracy": {result["test"]["accuracy"]}' in capsys.readouterr().out
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    raw = run_json("someone/tiny", data, prompt={"init_from": "me/mine"}, train={"max_steps": 1})
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", "run.json", "--output", "out"]) == 0
