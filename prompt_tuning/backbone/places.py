"""Where the files of a backbone are: in a folder, in an installed package or on the hub."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from prompt_tuning.errors import UserError, reason
from prompt_tuning.storage.atomic import expand


@dataclass(frozen=True)
class Place:
    """The files of a backbone."""

    folder: Path
    """Where its config and its tokenizer are looked for."""
    gguf: tuple[Path, ...] = ()
    """The .gguf file with its weights, or the parts of one in order; empty: the weights are in the folder."""


def locate(path: str, revision: str | None = None) -> Place:
    """Files of a backbone given as folder, .gguf file, ``package://module/path`` or hub id. Raises :class:`UserError`."""
    if path.startswith("package://"):
        return _in_package(path)
    folder = expand(path)
    if folder.is_dir():
        return _in_folder(folder, path)
    if folder.suffix == ".gguf" and folder.is_file():
        return Place(folder.parent, (_unsplit(folder, path),))
    if folder.exists():
        raise UserError(f"backbone.path={path}: a file; give the folder that holds config.json and model.safetensors")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1 + path.endswith(".gguf"):
        raise UserError(f"backbone.path={path}: no such folder; give a folder, a hub id or package://module/path")
    return _on_hub(path, revision)


def _on_hub(path: str, revision: str | None) -> Place:
    """A model on the hub: its weights in safetensors, else its pickle, or the .gguf file that stands behind its id."""
    from huggingface_hub import snapshot_download

    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    wanted = [file] if file else ["*.safetensors"]

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(f"{owner}/{name}" if name else owner, revision=revision, allow_patterns=[*patterns])
        )

    try:
        folder = fetch("*.json", "*.txt", "*.model", *wanted)
        if not file and not any(folder.glob("*.safetensors")):
            # Tensors alone are taken out of it.
            folder = fetch("*.json", "*.txt", "*.model", "pytorch_model*.bin")
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        raise UserError(
            f"backbone.path={path}: no such folder, and not to be had from the hub ({reason(error)});"
            " check the id and the network"
        ) from None
    if file and not (folder / file).is_file():
        raise UserError(f"backbone.path={path}: {owner}/{name} holds no {file}; look at its files on the hub")
    return Place(folder, (_unsplit(folder / file, path),)) if file else _in_folder(folder, path)


def _in_folder(folder: Path, path: str, elsewhere: Sequence[Path] = ()) -> Place:
    """A model in a folder; ``elsewhere``: files of other packages among which parts of a .gguf may be."""
    has_config = (folder / "config.json").is_file()
    if has_config and any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        return Place(folder)
    # A file mmproj* is the eye of a model that also sees.
    files = [file for file in sorted(folder.glob("*.gguf")) if not file.name.startswith("mmproj")]
    if len(files) > 1 and _split_of(files[0]) is None:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"backbone.path={path}: holds {len(files)} .gguf files ({names}); name one, as {path}/{files[0].name}"
        )
    if files:
        return Place(folder, (_unsplit(files[0], path),))
    parts = sorted([*folder.glob("*.gguf.part*"), *elsewhere], key=lambda part: part.name)
    whole = sorted({part.name.rpartition(".part")[0] for part in parts})
    if len(whole) == 1:
        return Place(folder, tuple(parts))
    if not has_config:
        more = f" and parts of {len(whole)} .gguf files" if whole else ""
        raise UserError(
            f"backbone.path={path}: the folder holds no config.json{more}; give a transformers model folder"
        )
    return Place(folder)


def _split_of(file: Path) -> str | None:
    """Name of the model where a .gguf file is one of several that llama.cpp split it into."""
    found = re.fullmatch(r"(.+)-\d{5}-of-(?!00001)\d{5}\.gguf", file.name)
    return found and found[1]


def _unsplit(file: Path, path: str) -> Path:
    model = _split_of(file)
    if model is not None:
        raise UserError(
            f"backbone.path={path}: {file.name} is one of several files; join them with"
            f" `llama-gguf-split --merge {file.name} {model}.gguf` and give that file"
        )
    return file


def _in_package(path: str) -> Place:
    """A folder or .gguf file in an installed package, from the metadata of what is installed: nothing is imported or run."""
    module, _, inner = path.removeprefix("package://").partition("/")
    top, *rest = module.split(".")
    owners = sorted(set(importlib.metadata.packages_distributions().get(top, [])))
    places = []
    for name in owners:
        distribution = importlib.metadata.distribution(name)
        places.append(Path(str(distribution.locate_file(top))))
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        if direct.get("dir_info", {}).get("editable"):
            root = Path(unquote(urlparse(direct["url"]).path))
            places += [root / top, root / "src" / top]
    folder = next((place.joinpath(*rest) for place in places if place.joinpath(*rest).is_dir()), None)
    if folder is None:
        raise UserError(f"backbone.path={path}: no package {module!r} is installed; install it with pip")
    found = folder / inner
    if not found.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"backbone.path={path}: leads out of the package; give a folder inside it")
    if found.suffix == ".gguf" and found.is_file():
        return Place(found.parent, (_unsplit(found, path),))
    if not found.is_dir():
        raise UserError(f"backbone.path={path}: {found} is no folder; give one inside the package")
    return _in_folder(found, path, [part for name in owners for part in _parts_elsewhere(name)])


def _parts_elsewhere(name: str) -> list[Path]:
    """Parts of .gguf files in the packages that an installed one requires, as files too large for one package are split."""
    parts: list[Path] = []
    for wanted in importlib.metadata.distribution(name).requires or []:
        found = re.match(r"[\w.-]+", wanted)
        try:
            required = importlib.metadata.distribution(found[0] if found else wanted)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed; a part that lacks shows in the checksum
        parts += [
            Path(str(file.locate())) for file in required.files or [] if re.search(r"\.gguf\.part\d+$", file.name)
        ]
    return parts
