"""Prompts that go to the hub and come back, by the real huggingface_hub and a hub on this machine."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request

import pytest

from tests.support.hub import TOKEN, open_hub
from tests.support.processes import BIN, finish, free_port, python, start
from tests.support.tiny import make_backbone, make_texts, run_json, write_jsonl

pytestmark = pytest.mark.processes
FILES = {"README.md", "prompt.json", "prompt.safetensors"}
ROWS = [{"text": f"w{i} w{2 * i + 1} w{i + 7}"} for i in range(9)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A hub, and a run of two seeds on its backbone and its data, in a folder with what is nobody's business."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("owner")
    make_backbone(root / "models" / "someone" / "tiny" / "main", "bert")
    make_texts(root / "datasets" / "someone" / "texts" / "main")
    write_jsonl(home / "rows.jsonl", ROWS)
    with open_hub(root) as hub:
        raw = run_json("someone/tiny", "someone/texts", train={"max_steps": 3}, fleet={"seeds": [4, 5]})
        (home / "run.json").write_text(json.dumps(raw))
        command = python("--config", home / "run.json", "--output", home / "run")
        code, output = finish(*command, **variables(hub, home))
        assert code == 0, output
        member = next((home / "run" / "members").glob("*seed4"))
        (member / "prompt" / "notes.txt").write_text("for nobody else")
        yield hub, home, member


def variables(hub, home, token=None):
    """What a user's programs are born with: a home of their own, in which the hub's library keeps copies and the token."""
    if token is not None:
        (home / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
        (home / ".cache" / "huggingface" / "token").write_text(token)
    return {"HF_ENDPOINT": hub.address, "HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def push(place, *options, token=TOKEN):
    hub, home, member = place
    return finish(BIN / "promptfleet", "push", member, *options, **variables(hub, home, token))


def predict(place, home, prompt, **more):
    hub, owner, _ = place
    rows, output = owner / "rows.jsonl", home / "answers.jsonl"
    output.unlink(missing_ok=True)
    command = [BIN / "promptfleet", "predict", "--prompt", prompt, "--input", rows, "--output", output]
    code, said = finish(*command, **{**variables(hub, home), **more})
    return code, output.read_text() if code == 0 else said


def test_a_prompt_goes_to_the_hub_and_answers_the_same_for_others(place, tmp_path):
    hub, home, member = place
    code, output = push(place, "someone/texts-prompt", "--license", "apache-2.0")
    assert code == 0 and output.strip().splitlines()[-1].startswith(f"{hub.address}/someone/texts-prompt/commit/"), (
        output
    )
    assert TOKEN not in output
    folder = hub.root / "models" / "someone" / "texts-prompt" / "main"
    assert {file.name for file in folder.iterdir()} == FILES
    assert (folder / "prompt.safetensors").read_bytes() == (member / "prompt" / "prompt.safetensors").read_bytes()
    assert (folder / "prompt.json").read_bytes() == (member / "prompt" / "prompt.json").read_bytes()  # it holds no path
    page = (folder / "README.md").read_text()
    for line in ("license: apache-2.0", "base_model: someone/tiny", "- someone/texts", "- name: texts-prompt"):
        assert line in page
    assert "the mean is over all 2 seeds" in page and str(home) not in page
    code, own = predict(place, home, member / "prompt")
    assert code == 0, own
    hub.asked.clear()
    code, others = predict(place, tmp_path, "someone/texts-prompt")
    assert code == 0 and others == own
    assert not [path for path in hub.asked if "README" in path], "the page was fetched"
    hub.asked.clear()
    code, again = predict(place, tmp_path, "someone/texts-prompt", HF_HUB_OFFLINE="1")
    assert (code, again) == (0, own) and not hub.asked
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    code, printed = finish(BIN / "python", "-c", code, **variables(hub, tmp_path))
    assert code == 0 and re.search(r"\[\{'label': 'class\d', 'score': 0\.\d+\}\]", printed), printed


def test_a_branch_is_a_revision(place, tmp_path):
    hub, _, _ = place
    code, output = push(place, "someone/branched")
    assert code == 0, output
    for _ in range(2):  # the branch is there the second time
        code, output = push(place, "someone/branched", "--revision", "v2", "--license", "mit")
        assert code == 0, output
    pages = [(hub.root / "models/someone/branched" / name / "README.md").read_text() for name in ("main", "v2")]
    assert "license" not in pages[0] and "license: mit" in pages[1] and "attach('someone/branched@v2')" in pages[1]
    hub.asked.clear()
    code, output = predict(place, tmp_path, "someone/branched@v2")
    assert code == 0 and "GET /api/models/someone/branched/revision/v2" in hub.asked, output


def test_a_private_prompt_is_for_its_owner(place, tmp_path):
    hub, home, _ = place
    code, output = push(place, "someone/secret", "--private")
    assert code == 0 and hub.private == {"someone/secret"}, output
    assert predict(place, home, "someone/secret")[0] == 0
    code, output = predict(place, tmp_path, "someone/secret")
    assert code == 1 and "someone/secret: no such folder, and not to be had from the hub (" in output, output
    assert "log in with `hf auth login` where it is private" in output and "Traceback" not in output
    folder = hub.root / "models" / "someone" / "open" / "main"
    folder.mkdir(parents=True)
    code, output = push(place, "someone/open", "--private")
    assert code == 1 and "--private: someone/open is there and public, and nothing was sent" in output, output
    assert not list(folder.iterdir())


def test_who_may_not_write_is_told_so_and_no_token_is_shown(place, tmp_path):
    hub, _, member = place
    command = [BIN / "promptfleet", "push", member, "someone/else"]
    code, output = finish(*command, **variables(hub, tmp_path))
    assert code == 1 and "nobody is logged in to the hub here; do so with `hf auth login`" in output, output
    code, output = finish(*command, **variables(hub, tmp_path, token="hf_ofSomebodyElse"))
    assert code == 1 and "someone/else: the hub did not take the prompt (" in output, output
    assert "hf_ofSomebodyElse" not in output and "Traceback" not in output
    assert not (hub.root / "models" / "someone" / "else").exists()


LOAD = """
import sys
from prompt_tuning import load_prompt
from prompt_tuning.errors import UserError
for place in sys.argv[1:]:
    try:
        load_prompt(place)
        print(place, "is loaded")
    except UserError as error:
        print(error)
"""


def test_what_the_hub_does_not_have_is_a_sentence(place, tmp_path):
    hub, _, _ = place
    hub.gated.add("someone/gated")
    (hub.root / "models" / "someone" / "gated" / "main").mkdir(parents=True)
    asked = ["someone/absent", "someone/tiny@v9", "someone/tiny", "someone/gated"]
    code, output = finish(BIN / "python", "-c", LOAD, *asked, **variables(hub, tmp_path))
    hub.gated.clear()
    lines = [line for line in output.splitlines() if line.startswith("someone/")]
    assert code == 0 and len(lines) == 4, output
    assert all(": no such folder, and not to be had from the hub (" in lines[i] for i in (0, 1, 3)), output
    assert "Revision" in lines[1] and "estricted" in lines[3]
    assert (
        "someone/tiny: this repository of the hub holds no prompt (no prompt.json and no prompt.safetensors)"
        in lines[2]
    )
    code, output = finish(BIN / "python", "-c", LOAD, "a/b", **{**variables(hub, tmp_path), "HF_HUB_OFFLINE": "1"})
    assert code == 0 and "a/b: no such folder, and not to be had from the hub (" in output, output
    gone = {**variables(hub, tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    code, output = finish(BIN / "python", "-c", LOAD, "a/b", **gone)
    assert code == 0 and "a/b: no such folder, and not to be had from the hub (" in output, output


def test_a_served_prompt_of_the_hub_is_one_the_operator_named(place, tmp_path):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    hub, _, _ = place
    assert push(place, "someone/served")[0] == 0
    port = free_port()
    command = [BIN / "promptfleet", "serve", "someone/served", "--port", port]
    server = start(*command, **variables(hub, tmp_path))
    try:
        seen = ""
        while "serving" not in seen:
            line = server.stdout.readline()
            assert line, f"the server has ended: {seen}"
            seen += line
        hub.asked.clear()
        status, answer = send(port, "/predict", {"prompt": "served", "rows": ROWS[:2]})
        assert status == 200 and len(answer["answers"]) == 2
        for folder in ("someone/texts-prompt", "someone/texts-prompt@main"):
            status, answer = send(port, "/prompts", {"folder": folder, "name": "other"})
            assert status == 404 and "below the folders that are served" in answer["error"]
        assert not hub.asked
    finally:
        server.terminate()
        server.communicate(timeout=60)


def send(port, path, body):
    """Status and answer of a POST."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except urllib.error.URLError:
            assert time.monotonic() < deadline
