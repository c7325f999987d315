"""The recipes of images: what they copy is there and let through, versions are the tested ones, and nobody is root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "launcher", "model_parallel", "prompt_tuning"}
"""By the package and its installation; beside them go what the quick start reads."""


def instructions():
    """Of the Dockerfile: name and the rest, a line each."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]


def sections():
    """Of the Apptainer recipe: lines by section."""
    parts = re.split(r"^%(\w+)\n", (ROOT / "promptfleet.def").read_text(), flags=re.MULTILINE)
    return {
        name: [line.strip() for line in text.strip().splitlines()]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def copied():
    """Names that each recipe copies, in its order."""
    docker = [name for verb, rest in instructions() if verb == "COPY" for name in rest.split()[:-1]]
    return docker, [line.split()[0] for line in sections()["files"]]


def test_what_is_copied_is_there_and_let_through_and_nothing_else_is():
    docker, apptainer = copied()
    assert docker == apptainer and set(docker) == {*NEEDED, "configs", "examples"}
    assert all((ROOT / name).exists() for name in docker)
    lines = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert lines[0] == "*" and [line[1:] for line in lines if line.startswith("!")] == docker
    targets = [rest.split()[-1] for verb, rest in instructions() if verb == "COPY"]
    assert all(target in ("./", f"./{name}") for target, name in zip(targets[1:], docker[4:], strict=True))


def test_both_install_the_tested_versions_by_the_same_commands():
    constraints = (ROOT / "constraints.txt").read_text()
    arguments = dict(rest.split("=", 1) for verb, rest in instructions() if verb == "ARG")
    assert arguments == dict(line.split("=", 1) for line in sections()["arguments"])
    assert f"torch=={arguments['TORCH']}\n" in constraints and "/cpu" in arguments["TORCH_INDEX"]
    extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(arguments["EXTRAS"].split(",")) <= set(extras)
    (run,) = [rest for verb, rest in instructions() if verb == "RUN" and "pip" in rest]
    ours = [re.sub(r"\$(\w+)", r"{{ \1 }}", " ".join(command.split())) for command in run.split("&&")]
    assert ours == [line for line in sections()["post"] if line.startswith("pip")]
    assert "--constraint constraints.txt" in ours[1]


def test_nobody_is_root_and_nothing_secret_is_asked_for():
    verbs = [verb for verb, _ in instructions()]
    assert verbs[0] == "FROM" and set(verbs) <= {
        "FROM",
        "ARG",
        "ENV",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENTRYPOINT",
        "CMD",
    }
    (user,) = [rest for verb, rest in instructions() if verb == "USER"]
    assert user not in ("root", "0") and not {"RUN", "COPY"} & set(verbs[verbs.index("USER") :])
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "promptfleet.def").read_text()
    assert not re.search(r"token|password|secret|api_?key", text, re.IGNORECASE)


@pytest.mark.parametrize("name", ["Dockerfile", "promptfleet.def"])
def test_both_begin_with_the_same_image_of_a_named_version(name):
    found = re.search(r"^From:? (\S+)$", (ROOT / name).read_text(), re.MULTILINE | re.IGNORECASE)
    assert found[1] == "python:3.11-slim-bookworm"
