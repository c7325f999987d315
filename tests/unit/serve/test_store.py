"""Prompts that come and go while others are answered, and never out of another folder."""

from __future__ import annotations

import asyncio
import shutil
import socket

import huggingface_hub
import pytest

from launcher import cli
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.serve.store import find_prompts
from tests.support.served import ask, served
from tests.unit.serve.test_answers import at_once, hold, predict, same
from tests.unit.serve.test_limits import sentence

ROWS = [{"text": "w1 w2"}]


@pytest.fixture
def folder(encoder, tmp_path):
    """A copy of some prompts, in which tests may change things."""
    for name in ("texts", "short", "tags"):
        shutil.copytree(encoder / name, tmp_path / "allowed" / name)
    return tmp_path / "allowed"


def test_a_prompt_is_added_answers_and_is_removed(folder):
    every = attach([load_prompt(folder / name) for name in ("texts", "short", "tags")])
    wanted = {name: every.predict(ROWS, place) for place, name in enumerate(("texts", "short"))}

    async def story(send):
        assert (await send(*predict("short", ROWS))).status_code == 404
        added = await send("POST", "/prompts", {"folder": "short"})
        again = await send("POST", "/prompts", {"folder": "short"})
        other = await send("POST", "/prompts", {"folder": "short", "name": "other"})
        names = [own["name"] for own in (await send("GET", "/prompts")).json()["prompts"]]
        first = await send(*predict("other", ROWS))
        removed = await send("DELETE", "/prompts/texts")
        behind = [await send(*predict(name, ROWS)) for name in ("short", "other", "texts")]
        return added, again, other, names, first, removed, behind

    model = attach([load_prompt(folder / "texts")])
    with served(model, ["texts"], folder) as service:
        added, again, other, names, first, removed, behind = ask(service, story)
    assert added.status_code == 201 and added.json()["columns"] == ["text"] and added.json()["kind"] == "classification"
    assert again.status_code == 409 and "remove it first" in sentence(again)
    assert other.status_code == 201 and names == ["texts", "short", "other"]
    assert removed.json() == {"removed": "texts"} and behind[2].status_code == 404
    for own in (first, *behind[:2]):
        same(own.json()["answers"], wanted["short"])


def test_what_waits_for_a_prompt_is_answered_before_it_goes(folder):
    names = ["texts", "short", "tags"]
    model = attach([load_prompt(folder / name) for name in names])
    wanted = {name: model.predict(ROWS, names.index(name)) for name in ("texts", "short")}
    held = hold(model)
    asked = [predict("short", ROWS), predict("texts", ROWS), ("DELETE", "/prompts/texts"), predict("short", ROWS)]
    with served(model, names, folder) as service:
        _, before, removed, behind = ask(service, lambda send: at_once(service, held, send, asked))
    assert held[1] == [1, 1, 1] and removed.status_code == 200
    same(before.json()["answers"], wanted["texts"])
    same(behind.json()["answers"], wanted["short"])


@pytest.mark.parametrize(
    "path",
    ["..", "../outside", "/etc", "short/../../outside", "link", "half", "loop", "none", "", "\0", "x" * 5000, "\ud83d"],
)
def test_no_path_leads_outside(folder, path):
    outside = shutil.copytree(folder / "short", folder.parent / "outside")
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "half").mkdir()
    shutil.copy(folder / "short" / "prompt.json", folder / "half")
    (folder / "half" / "prompt.safetensors").symlink_to(outside / "prompt.safetensors")
    model = attach([load_prompt(folder / "texts")])
    with served(model, ["texts"], folder) as service:
        bodies = [{"folder": path, "name": "new"}, {"folder": path}]
        for found in ask(service, lambda send: asyncio.gather(*(send("POST", "/prompts", body) for body in bodies))):
            assert found.status_code in (400, 404) and "outside/" not in sentence(found)
        assert list(service.store.places) == ["texts"] and len(model.prompts) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a" * 201, "ä", "a\n", "a b"])
def test_names_are_checked(folder, name):
    with served(attach([load_prompt(folder / "texts")]), ["texts"], folder) as service:
        found = ask(service, lambda send: send("POST", "/prompts", {"folder": "short", "name": name}))
    assert found.status_code == 400 and "is no name" in sentence(found)


def test_a_damaged_or_foreign_prompt_is_refused_without_the_servers_paths(folder, decoder):
    shutil.copytree(decoder / "classes", folder / "foreign")
    damaged = folder / "short" / "prompt.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-2])

    async def story(send):
        return [await send("POST", "/prompts", {"folder": name}) for name in ("short", "foreign")]

    with served(attach([load_prompt(folder / "texts")]), ["texts"], folder) as service:
        found = ask(service, story)
        assert list(service.store.places) == ["texts"] and len(service.store.model.prompts) == 1
    for own, words in zip(found, ["short: prompt.safetensors is damaged", "not that backbone"], strict=True):
        assert own.status_code == 400 and words in sentence(own) and str(folder) not in own.text


def test_prompts_are_found_below_folders_by_name(folder, tmp_path):
    run = tmp_path / "run" / "members" / "texts-lr=1e+05-seed1"
    run.mkdir(parents=True)
    shutil.copytree(folder / "texts", run / "prompt")
    found = find_prompts([folder, tmp_path / "run", folder / "tags"])
    assert (
        list(found) == ["short", "tags", "texts", "texts-lr=1e+05-seed1"]
        and found["texts-lr=1e+05-seed1"] == run / "prompt"
    )
    shutil.copytree(folder / "texts", tmp_path / "other" / "texts")
    with pytest.raises(UserError, match=r"are both called 'texts'"):
        find_prompts([folder, tmp_path / "other"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no prompt\.json in it or below"):
        find_prompts([tmp_path / "empty"])
    with pytest.raises(UserError, match="no such folder"):
        find_prompts([tmp_path / "none"])
    shutil.copytree(folder / "texts", tmp_path / "odd" / "a b")
    with pytest.raises(UserError, match="is no name to serve a prompt by"):
        find_prompts([tmp_path / "odd"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["none"], "none: no such folder"),
        (["{folder}", "--api-keys", "/dev/null"], "no key in it"),
        (["{folder}", "--port", "{taken}"], "choose another"),
        (["{folder}", "--port", "0", "--backbone", "none"], "none"),
    ],
)
def test_a_wrong_start_ends_in_a_sentence(folder, capsys, options, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [own.format(folder=folder, taken=taken.getsockname()[1]) for own in options]
        assert cli.main(["serve", *filled]) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_no_client_names_a_prompt_of_the_hub(folder, monkeypatch):
    """That would let it choose what the server fetches."""
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *names, **_: asked.append(names) or str(folder))
    model = attach([load_prompt(folder / "texts")])
    with served(model, ["texts"], folder) as service:

        async def story(send):
            return [await send("POST", "/prompts", {"folder": name, "name": "new"}) for name in ("a/b", "a/b@v1")]

        assert [found.status_code for found in ask(service, story)] == [404, 404]
    assert not asked
