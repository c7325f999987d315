"""Within a budget of bytes prompts come and go from the device, and answers stay those of `predict`."""

from __future__ import annotations

import asyncio
import json
import random
import shutil

import pytest

from launcher import cli
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import outline_prompt
from prompt_tuning.serve.bounds import Limits
from prompt_tuning.serve.shelf import open_prompts, tensor_bytes
from tests.support.served import ask, attach_all, served, some_row
from tests.unit.serve.test_answers import at_once, hold, predict, same
from tests.unit.serve.test_limits import sentence

ROWS = [{"text": "w1 w2"}]


def sizes(folder):
    return {path.name: tensor_bytes(outline_prompt(path)) for path in sorted(folder.iterdir())}


def bounded(folder, budget, **settings):
    """A service of a folder's prompts as the verb starts it."""
    found = {path.name: path for path in sorted(folder.iterdir())}
    model = attach(open_prompts(found, budget))
    return served(model, list(found), folder, limits=Limits(prompt_bytes=budget, **settings))


@pytest.fixture
def folder(encoder, tmp_path):
    """Prompts `a`, `b` and `c` of equal size, and what each answers to ROWS."""
    for name, source in (("a", "texts"), ("b", "texts"), ("c", "texts")):
        shutil.copytree(encoder / source, tmp_path / "prompts" / name)
    return tmp_path / "prompts"


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_answers_are_those_of_predict_whatever_comes_and_goes(request, kind):
    source = request.getfixturevalue(kind)
    model, names = attach_all(source)
    budget = max(sizes(source).values())
    chance = random.Random(8)
    asked = [(name, [some_row(name, chance)]) for name in names * 4 if name != "drawn"]
    chance.shuffle(asked)
    wanted = [model.predict(rows, names.index(name)) for name, rows in asked]
    with bounded(source, budget) as service:
        shelf, most = service.store.shelf, []
        answers = service.store.model.answers

        def watched(questions):
            most.append(held_bytes(service))
            return answers(questions)

        service.store.model.answers = watched
        held = hold(service.store.model)
        found = ask(service, lambda send: at_once(service, held, send, [predict(*own) for own in asked]))
        again = ask(service, lambda send: one_by_one(send, asked))
        lines = ask(service, lambda send: send("GET", "/metrics")).text.splitlines()
    assert len(held[1]) > len(asked) // 3, "a batch in which more is asked for than fits is split"
    for own, other, rows in zip(found, again, wanted, strict=True):
        assert own.status_code == 200, own.text
        same(own.json()["answers"], rows)
        same(other.json()["answers"], rows)
    assert max(most) <= budget and shelf.bytes == held_bytes(service)
    counts = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("promptfleet_prompt")}
    loads, evictions = counts["promptfleet_prompt_loads_total"], counts["promptfleet_prompt_evictions_total"]
    assert counts["promptfleet_prompts_held"] == loads - evictions == shelf.num_held
    assert evictions > len(names) and counts["promptfleet_prompt_bytes"] == shelf.bytes


def held_bytes(service):
    """What tensors with numbers take, counted anew."""
    return sum(tensor_bytes(own) for own in service.store.model.prompts if not own.is_outline)


async def one_by_one(send, asked):
    return [await send(*predict(*own)) for own in asked]


def test_the_one_that_was_asked_for_longest_ago_goes(folder):
    with bounded(folder, 2 * sizes(folder)["a"]) as service:
        left = []
        for name in ("a", "b", "a", "c", "a", "b"):
            assert ask(service, lambda send, name=name: send(*predict(name, ROWS))).status_code == 200
            left.append({own for own, prompt in service.store.prompts.items() if not prompt.is_outline})
    assert left == [{"a"}, {"a", "b"}, {"a", "b"}, {"a", "c"}, {"a", "c"}, {"a", "b"}]


def test_a_batch_reads_no_prompt_twice_and_begins_with_what_is_there(folder):
    with bounded(folder, 2 * sizes(folder)["a"]) as service:
        held = hold(service.store.model)
        asked = [predict(name, ROWS) for name in ("c", "a", "b", "c", "a", "b", "c")]
        for own in ask(service, lambda send: at_once(service, held, send, asked)):
            assert own.status_code == 200
        lines = ask(service, lambda send: send("GET", "/metrics")).text.splitlines()
    assert held[1] == [1, 4, 2], "c and a, and then b"
    assert "promptfleet_prompt_loads_total 3.0" in lines and "promptfleet_prompt_evictions_total 1.0" in lines


def damage(folder):
    file = folder / "prompt.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def relabel(folder):
    manifest = json.loads((folder / "prompt.json").read_text())
    manifest["labels"] = manifest["labels"][::-1]
    (folder / "prompt.json").write_text(json.dumps(manifest))


def replace(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent.parent / "other", folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "no prompt.json and no prompt.safetensors there"),
        (damage, "prompt.safetensors is damaged"),
        (relabel, "prompt.json is damaged or was edited"),
        (replace, "prompt.json is another one than the server has opened"),
    ],
)
def test_a_prompt_whose_files_changed_is_refused_by_name_and_the_others_beside_it_answered(
    folder, encoder, change, words, caplog
):
    shutil.copytree(encoder / "short", folder.parent / "other")
    wanted = attach(load_prompt(folder / "a")).predict(ROWS)
    with bounded(folder, 4 * sizes(folder)["a"]) as service:
        shutil.copytree(folder / "b", folder.parent / "kept")
        change(folder / "b")
        held = hold(service.store.model)
        asked = [predict(name, ROWS) for name in ("a", "a", "b", "c", "b")]
        found = ask(service, lambda send: at_once(service, held, send, asked))
        shutil.rmtree(folder / "b", ignore_errors=True)
        shutil.copytree(folder.parent / "kept", folder / "b")
        after = ask(service, lambda send: send(*predict("b", ROWS)))
    assert [own.status_code for own in found] == [200, 200, 503, 200, 503]
    for own in (found[2], found[4]):
        assert "prompt 'b'" in sentence(own) and words in sentence(own) and str(folder) not in own.text
    for own in (found[0], found[1], found[3], after):
        same(own.json()["answers"], wanted)
    assert held[1] == [1, 2, 1], "no answer is computed twice"
    assert str(folder / "b") in caplog.text


def test_a_folder_that_can_not_be_read_is_refused_without_the_servers_paths(folder, monkeypatch):
    def unreadable(path):
        raise UserError(
            f"{path}: damaged ([Errno 5] Input/output error: '{path}/prompt.json'); export the prompt again"
        )

    monkeypatch.setattr("prompt_tuning.serve.shelf.load_prompt", unreadable)
    with bounded(folder, sizes(folder)["a"]) as service:
        found = ask(service, lambda send: send(*predict("b", ROWS)))
    assert found.status_code == 503 and "output error: 'prompt.json')" in sentence(found)
    assert str(folder) not in found.text


def test_texts_and_streams_come_from_prompts_that_were_put_aside(decoder):
    model, names = attach_all(decoder)
    wanted = {name: model.generate(["w3 w7"], names.index(name)) for name in ("five", "two")}
    with bounded(decoder, max(sizes(decoder).values())) as service:
        for _ in range(2):
            for name, texts in wanted.items():
                body = {"prompt": name, "texts": ["w3 w7"]}
                found = ask(service, lambda send, body=body: send("POST", "/generate", body))
                assert found.json()["texts"] == texts
                stream = ask(service, lambda send, body=body: send("POST", "/generate", {**body, "stream": True}))
                assert json.loads(stream.text.split("data: ")[-1]) == {"done": True, "text": texts[0]}
        several = [{"prompt": name, "texts": ["w3 w7"] * 2} for name in ("two", "five", "two")]
        found = ask(service, lambda send: asyncio.gather(*(send("POST", "/generate", body) for body in several)))
        assert [own.json()["texts"] for own in found] == [2 * wanted[body["prompt"]] for body in several]


def test_a_stream_of_a_prompt_that_is_gone_is_refused_by_its_status(decoder, tmp_path):
    shutil.copytree(decoder / "five", tmp_path / "prompts" / "five")
    with bounded(tmp_path / "prompts", 10**9) as service:
        shutil.rmtree(tmp_path / "prompts" / "five")
        body = {"prompt": "five", "texts": ["w3"], "stream": True}
        found = ask(service, lambda send: send("POST", "/generate", body))
    assert found.status_code == 503 and "prompt 'five'" in sentence(found)


def test_prompts_that_are_added_and_removed_keep_to_the_budget(folder):
    wanted = attach(load_prompt(folder / "a")).predict(ROWS)
    shutil.move(folder / "c", folder.parent / "c")
    left = []

    async def story(send):
        await send(*predict("a", ROWS))
        added = [await send("POST", "/prompts", {"folder": "c", "name": name}) for name in ("c", "d")]
        answers = [await send(*predict(name, ROWS)) for name in ("c", "d")]
        removed = [await send("DELETE", f"/prompts/{name}") for name in ("d", "b")]
        left.append(service.store.shelf.bytes)
        added.append(await send("POST", "/prompts", {"folder": "c", "name": "d"}))
        answers += [await send(*predict(name, ROWS)) for name in ("d", "c", "a")]
        return added, removed, answers

    with bounded(folder, sizes(folder)["a"]) as service:
        shutil.move(folder.parent / "c", folder / "c")
        assert service.store.read("c").is_outline, "many that are added at once may wait"
        added, removed, answers = ask(service, story)
        assert service.store.shelf.bytes == held_bytes(service) == sizes(folder)["a"]
        assert list(service.store.places) == ["a", "c", "d"] and left == [0]
    assert [own.status_code for own in (*added, *removed)] == [201, 201, 201, 200, 200]
    for own in answers:
        same(own.json()["answers"], wanted)


def test_a_prompt_beyond_the_budget_is_refused_before_the_backbone_is_read(folder, capsys, monkeypatch):
    monkeypatch.setattr("prompt_tuning.predict.load_backbone", None)
    budget = sizes(folder)["a"] - 1
    assert cli.main(["serve", str(folder), "--port", "0", "--prompt-memory", f"{budget}B"]) == 1
    error = capsys.readouterr().err
    assert f"a: the prompt's tensors take {budget + 1} bytes, and --prompt-memory allows {budget}" in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert cli.main(["serve", str(folder), "--prompt-memory", "2GiB/s"]) == 1
    assert "--prompt-memory 2GiB/s: give a number with a unit, such as 24GiB" in capsys.readouterr().err


def test_a_prompt_beyond_the_budget_is_not_added(encoder, folder):
    size = sizes(encoder)
    assert size["short"] < size["texts"]
    shutil.copytree(encoder / "short", folder.parent / "served" / "short")
    with bounded(folder.parent / "served", size["short"]) as service:
        shutil.copytree(folder / "a", folder.parent / "served" / "a")
        found = ask(service, lambda send: send("POST", "/prompts", {"folder": "a"}))
        assert list(service.store.places) == ["short"] and len(service.store.model.prompts) == 1
    assert found.status_code == 400 and f"allows {size['short']}" in sentence(found)


def test_an_outline_has_shapes_and_types_and_no_numbers(encoder):
    for path in encoder.iterdir():
        outline, whole = outline_prompt(path), load_prompt(path)
        assert outline.is_outline and not whole.is_outline and outline.manifest == whole.manifest
        assert outline.prompt.length == whole.prompt.length and outline.prompt.text_start == whole.prompt.text_start
        for (name, own), (other, real) in zip(
            outline.prompt.named_parameters(), whole.prompt.named_parameters(), strict=True
        ):
            assert (name, own.shape, own.dtype, own.requires_grad) == (other, real.shape, real.dtype, False)
            assert own.is_meta


def test_an_outline_of_half_a_file_is_refused(folder):
    file = folder / "a" / "prompt.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"a: damaged \("):
        outline_prompt(folder / "a")
