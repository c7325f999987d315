"""The verb ``push``: a prompt to the Hugging Face hub, with a page that says what it is."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.prompt.export import ExportedPrompt


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "push",
        help="publish a prompt on the Hugging Face hub, with a model card",
        description="Upload prompt.json, prompt.safetensors and a generated README.md, and nothing else of the folder. Folders of this"
        " machine (of the backbone, of a document) are not published. Log in with `hf auth login`: its token is used, by huggingface_hub"
        " alone. A README.md that is there is replaced; the hub keeps the older one in its history.",
    )
    verb.add_argument(
        "folder",
        metavar="DIR",
        help="a prompt's folder, or that of the member or of the run with one member that it is in",
    )
    verb.add_argument("repository", metavar="OWNER/NAME", help="where on the hub; made if it is not there")
    verb.add_argument("--private", action="store_true", help="others do not see it")
    verb.add_argument(
        "--revision", metavar="BRANCH", help="branch to upload to (default: main); made if it is not there"
    )
    verb.add_argument(
        "--license", metavar="ID", help="the hub's name of a licence, such as apache-2.0 (default: none is named)"
    )
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="write the README.md to standard output and ask no hub; say what would be uploaded",
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Upload a prompt, or say what would be."""
    from launcher.pages.card import card, find_origin
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.prompt.hub import is_repository, upload

    repository, revision = options.repository, options.revision
    if repository.count("/") != 1 or not is_repository(repository):
        raise UserError(f"{repository}: not a name on the hub; give owner/name, of letters, digits, `-`, `_` and `.`")
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise UserError(f"--license {options.license}: give the hub's name of a licence, such as apache-2.0")
    if revision is not None and not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII):
        raise UserError(f"--revision {revision}: no name of a branch; use letters, digits, `-`, `_`, `.` and `/`")
    folder = find_prompt(Path(options.folder))
    quiet_libraries()
    exported = public(load_prompt(folder), asks_hub=not options.dry_run)
    where = repository if revision is None else f"{repository}@{revision}"
    files = {
        "README.md": card(exported, where, find_origin(folder), options.license).encode(),
        **prompt_files(folder, exported),
    }
    if options.dry_run:
        print(files["README.md"].decode(), end="")
        print(f"would be uploaded to {where}, {'private' if options.private else 'for all to see'}:", file=sys.stderr)
        for name, content in files.items():
            print(f"  {name} ({len(content):,} bytes)", file=sys.stderr)
        return 0
    print(upload(repository, files, options.private, revision, f"{exported.task.name}: prompt of PromptFleet"))
    return 0


def find_prompt(folder: Path) -> Path:
    """The prompt of a folder, or of the member or the run with one member whose folder it is. Raises :class:`UserError`."""
    for place in (folder, folder / "prompt"):
        if (place / "prompt.json").is_file():
            return place
    several = sorted(file.parent for file in folder.glob("members/*/prompt/prompt.json"))
    if len(several) == 1:
        return several[0]
    if several:
        raise UserError(f"{folder} has {len(several)} prompts, and a repository holds one; give it, as {several[0]}")
    raise UserError(f"{folder}: no prompt.json there; give a prompt's folder, such as runs/NAME/members/M/prompt")


def public(exported: ExportedPrompt, asks_hub: bool) -> ExportedPrompt:
    """A prompt as it is published, and why a backbone's path is not. Raises :class:`UserError` for one that is not to be."""
    from prompt_tuning.prompt.hub import base_model, is_there, published
    from prompt_tuning.storage.atomic import expand

    if exported.manifest["method"] == "full":
        raise UserError(
            f"{exported.folder}: method 'full' trained a whole model, in the folder model beside the prompt; upload that with `hf upload`"
        )
    path = exported.manifest["backbone"]["path"]
    manifest = published(exported.manifest)
    base = base_model(manifest["backbone"]["path"])
    if path is not None and base is not None and (expand(path).exists() or (asks_hub and not is_there(base))):
        manifest["backbone"]["path"] = None
    if manifest["backbone"]["path"] != path:
        print(
            f"the backbone's path {path} is not published, as it is none on the hub; who uses the prompt gives its own (--backbone)",
            file=sys.stderr,
        )
    return replace(exported, manifest=manifest)


def prompt_files(folder: Path, exported: ExportedPrompt) -> dict[str, bytes]:
    """The two files of a prompt, with what is published of prompt.json. Raises :class:`UserError`."""
    import hashlib

    from prompt_tuning.prompt.manifest import sealed

    tensors = (folder / "prompt.safetensors").read_bytes()
    if hashlib.sha256(tensors).hexdigest() != exported.manifest["sha256"]:
        raise UserError(f"{folder}: prompt.safetensors was written anew meanwhile; push again")
    manifest = json.dumps(sealed(exported.manifest), indent=2, sort_keys=True, allow_nan=False) + "\n"
    return {"prompt.json": manifest.encode(), "prompt.safetensors": tensors}
