"""Where a backbone is, and its config and tokenizer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.backbone.families import Family, find_family
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.schema import BackboneSection
from prompt_tuning.storage.atomic import expand

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


def find_folder(path: str, revision: str | None = None) -> Path:
    """Folder of a backbone given as folder, ``package://module/path`` or hub id. Raises :class:`UserError`."""
    if path.startswith("package://"):
        module, _, inner = path.removeprefix("package://").partition("/")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"backbone.path={path}: no package {module!r} is installed; install it with pip")
        folder = Path(spec.submodule_search_locations[0]) / inner
        if not (folder / "config.json").is_file():
            raise UserError(f"backbone.path={path}: {folder} holds no config.json")
        return folder
    folder = expand(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"backbone.path={path}: the folder holds no config.json; give a transformers model folder")
        return folder
    if folder.exists():
        raise UserError(f"backbone.path={path}: a file; give the folder that holds config.json and model.safetensors")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise UserError(f"backbone.path={path}: no such folder; give a folder, a hub id or package://module/path")
    from huggingface_hub import snapshot_download

    try:
        # Never pickles: only weights in safetensors, configs and tokenizer files.
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        raise UserError(
            f"backbone.path={path}: no such folder, and not to be had from the hub ({reason(error)});"
            " check the id and the network"
        ) from None


def pickle_hint(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return ""
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    hint = f" ({pickles[0]} is a pickle, which can run any code and is never read)" if pickles else ""
    return f"{hint}; save the model with save_pretrained"


def read_config(folder: Path, section: BackboneSection) -> Any:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("model_type"), str):
            find_family(raw["model_type"])
        return AutoConfig.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    except UserError as error:
        raise UserError(f"backbone.path={section.path}: {error}") from None
    except Exception as error:  # the config classes raise kinds of their own
        raise UserError(f"backbone.path={section.path}: its config.json cannot be used: {reason(error)}") from None


def read_tokenizer(folder: Path, model: PreTrainedModel, section: BackboneSection) -> PreTrainedTokenizerBase:
    path = f"backbone.path={section.path}"
    # Without files, transformers makes a tokenizer that knows five tokens.
    if not any((folder / name).is_file() for name in _VOCABULARIES) and not any(folder.glob("*.model")):
        raise UserError(f"{path}: no tokenizer there ({', '.join(_VOCABULARIES)} or *.model); save it beside the model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path}: its tokenizer cannot be loaded: {reason(error)}") from None
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; get the two from one place"
        )
    return tokenizer


def set_dropout(config: Any, family: Family, dropout: bool | float) -> None:
    if dropout is True:
        return
    for name in family.hidden_dropout:
        setattr(config, name, float(dropout))
    if dropout is False:
        for name in family.attention_dropout:
            setattr(config, name, 0.0)
