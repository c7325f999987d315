"""Prompts on the Hugging Face hub, as ``owner/name`` or ``owner/name@revision``; huggingface_hub alone handles tokens and copies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prompt_tuning.errors import UserError, reason
from prompt_tuning.storage.atomic import expand

NAMES = ("prompt.json", "prompt.safetensors")
"""The files of a prompt."""
_PLACE = re.compile(r"([^/@]+/[^/@]+)(?:@(.+))?")
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII)


def local_copy(where: str | Path) -> Path:
    """The folder of a prompt: its own, or else the library's copy of what the hub has under this id. Raises :class:`UserError`.

    Only a text is looked for on the hub, and a local folder of that name wins; a ``Path`` is a folder, whatever it says.
    """
    found = None if isinstance(where, Path) or expand(where).exists() else _PLACE.fullmatch(where)
    if found is None or not is_repository(found[1]):
        return Path(where)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(found[1], revision=found[2], allow_patterns=[*NAMES]))
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        raise UserError(
            f"{where}: no such folder, and not to be had from the hub ({reason(error)}); check the id and the network, and log in"
            " with `hf auth login` where it is private"
        ) from None
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{where}: this repository of the hub holds no prompt (no {' and no '.join(missing)}); give one that `promptfleet push` wrote"
        )
    return folder


def repository_of(folder: Path) -> str | None:
    """The hub's repository whose copy among the library's a folder is; None: it is no such copy."""
    kind, *names = folder.parent.parent.name.split("--") if folder.parent.name == "snapshots" else ("",)
    return "/".join(names) if kind == "models" and names else None


def is_repository(name: str) -> bool:
    """Whether something on the hub may be called so."""
    return _REPOSITORY.fullmatch(name) is not None and len(name) <= 96 and not name.endswith(".git")


def base_model(path: str | None) -> str | None:
    """The hub's repository in a backbone's path, which may name a .gguf file in it; None: the path can not be a hub id."""
    if path is None:
        return None
    owner, _, file = path.rpartition("/")
    name = owner if "/" in owner and file.endswith(".gguf") else path
    return name if is_repository(name) else None


def published(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub has, and is heard, of a prompt.json: no place on one machine, be it of the backbone or of a document."""
    recorded, task = manifest["backbone"], manifest["task"]
    path = recorded["path"]
    is_anywhere = path is not None and (path.startswith("package://") or base_model(path) is not None)
    if isinstance(task, dict) and "document" in task:
        task = {**task, "document": PurePosixPath(task["document"]).name}
    return {**manifest, "backbone": {**recorded, "path": path if is_anywhere else None}, "task": task}


def is_there(repository: str) -> bool:
    """Whether the hub shows this user such a repository. Raises :class:`UserError`."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_exists(repository)
    except Exception as error:  # as above
        raise UserError(f"{repository}: the hub does not answer ({reason(error)}); check the network") from None


def upload(
    repository: str, files: Mapping[str, bytes], private: bool = False, revision: str | None = None, message: str = ""
) -> str:
    """Send files by name as one commit, to a branch where ``revision`` names one; makes what is not there. Returns its address.

    ``private``: of a repository that is made, and asked of one that is there. Raises :class:`UserError`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError(
            f"{repository}: nobody is logged in to the hub here; do so with `hf auth login`, and push again"
        )
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repository).private:
            raise UserError(
                f"--private: {repository} is there and public, and nothing was sent; make it private on the hub, or choose another name"
            )
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        parts = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repository, parts, commit_message=message, revision=revision).commit_url)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"{repository}: the hub did not take the prompt ({reason(error)}); check the id, the network, and that your token may"
            " write there (`hf auth whoami`)"
        ) from None
