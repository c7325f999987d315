"""Where a backbone is, and what can be said of it before its weights are read: config, family and tokenizer."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from prompt_tuning.backbone.families import Family, find_family
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import expand

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Description:
    """A backbone before its weights are read."""

    path: str
    """As the run file names it."""
    folder: Path
    config: Any
    family: Family
    tokenizer: PreTrainedTokenizerBase

    def check_length(self, prompt_length: int, max_length: int, positions: str) -> None:
        """Raise :class:`UserError` where prompt and text together outgrow the position table."""
        limit = self.family.max_positions(self.config)
        used = max_length + (prompt_length if positions == "after_prefix" else 0)
        if used > limit:
            room = limit - used + max_length
            text = f"set data.max_length to {room} or less" if room > 2 else "leave room for the text"
            prompt = (
                ", shorten the prompt, or (deep prompts) choose prompt.positions 'from_zero'"
                if used > max_length
                else ""
            )
            raise UserError(
                f"prompt.length={prompt_length} and data.max_length={max_length} need {used} positions, but"
                f" {self.path} has {limit}; {text}{prompt}"
            )

    def check_tokens(self, largest: int) -> None:
        """Raise :class:`UserError` where a text has a token for which the model has no row."""
        if largest >= self.config.vocab_size:
            name = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"backbone.path={self.path}: a text holds {name!r}, token {largest}, but the word embedding has"
                f" {self.config.vocab_size} rows; remove it from the texts, or add rows with resize_token_embeddings"
            )

    @property
    def pad_token(self) -> int:
        """Token id that fills rows; masked out, so any id of the vocabulary serves where the tokenizer's own is none."""
        wanted = (self.tokenizer.pad_token_id, self.config.pad_token_id)
        return next((i for i in wanted if isinstance(i, int) and 0 <= i < self.config.vocab_size), 0)


def describe_backbone(section: BackboneSection) -> Description:
    """Find a backbone and read all but its weights. Raises :class:`UserError`."""
    folder = find_folder(section.path, section.revision)
    config = _read_config(folder, section)
    family = find_family(config.model_type)
    _check_config(config, family, section.path)
    return Description(section.path, folder, config, family, _read_tokenizer(folder, config, section))


def find_folder(path: str, revision: str | None = None) -> Path:
    """Folder of a backbone given as folder, ``package://module/path`` or hub id. Raises :class:`UserError`."""
    if path.startswith("package://"):
        return _package_folder(path)
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


def _package_folder(path: str) -> Path:
    """A folder inside an installed package, from the metadata of what is installed: nothing is imported or run."""
    module, _, inner = path.removeprefix("package://").partition("/")
    top, *rest = module.split(".")
    places = []
    for name in sorted(set(importlib.metadata.packages_distributions().get(top, []))):
        distribution = importlib.metadata.distribution(name)
        places.append(Path(str(distribution.locate_file(top))))
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        if direct.get("dir_info", {}).get("editable"):
            root = Path(unquote(urlparse(direct["url"]).path))
            places += [root / top, root / "src" / top]
    folder = next((place.joinpath(*rest) for place in places if place.joinpath(*rest).is_dir()), None)
    if folder is None:
        raise UserError(f"backbone.path={path}: no package {module!r} is installed; install it with pip")
    if not (folder / inner).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"backbone.path={path}: leads out of the package; give a folder inside it")
    if not (folder / inner / "config.json").is_file():
        raise UserError(f"backbone.path={path}: {folder / inner} holds no config.json")
    return folder / inner


def pickle_hint(folder: Path) -> str:
    """What to say where weights are missing, with the name of a pickle that lies there instead."""
    if any(folder.glob("*.safetensors")):
        return ""
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    hint = f" ({pickles[0]} is a pickle, which can run any code and is never read)" if pickles else ""
    return f"{hint}; save the model with save_pretrained"


def _read_config(folder: Path, section: BackboneSection) -> Any:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            _check_quantisation(raw)
            if isinstance(raw.get("model_type"), str):
                find_family(raw["model_type"])
        return AutoConfig.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    except UserError as error:
        raise UserError(f"backbone.path={section.path}: {error}") from None
    except Exception as error:  # the config classes raise kinds of their own
        raise UserError(f"backbone.path={section.path}: its config.json cannot be used: {reason(error)}") from None


def _check_quantisation(raw: dict[str, Any]) -> None:
    for key in ("quantization_config", "compression_config"):
        if raw.get(key):
            method = raw[key].get("quant_method", raw[key].get("format")) if isinstance(raw[key], dict) else None
            raise UserError(
                f"quantised weights ({method or key}) cannot be trained on; give the unquantised model they were made from"
            )


def _check_config(config: Any, family: Family, path: str) -> None:
    """Raise :class:`UserError` for a config that asks for what the family's attention does not do here."""
    if family.pooling != "last" and (
        getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False)
    ):
        raise UserError(
            f"backbone.path={path}: its config.json makes a decoder of this encoder (is_decoder or add_cross_attention);"
            " set both to false if it was trained as an encoder, or choose another backbone"
        )
    why = family.refuses(config)
    if why:
        raise UserError(f"backbone.path={path}: {why}")
    kind = getattr(config, "position_embedding_type", None)
    if kind not in (None, "absolute"):
        raise UserError(
            f"backbone.path={path}: position_embedding_type {kind!r} is not supported; choose a backbone with absolute positions"
        )


def _read_tokenizer(folder: Path, config: Any, section: BackboneSection) -> PreTrainedTokenizerBase:
    path = f"backbone.path={section.path}"
    # Without files, transformers makes a tokenizer that knows five tokens.
    if not any((folder / name).is_file() for name in _VOCABULARIES) and not any(folder.glob("*.model")):
        raise UserError(f"{path}: no tokenizer there ({', '.join(_VOCABULARIES)} or *.model); save it beside the model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path}: its tokenizer cannot be loaded: {reason(error)}") from None
    rows = config.vocab_size
    # A padding token that was added has no row and needs none: padding is masked out.
    beyond = [i for i in range(rows, min(len(tokenizer), rows + 100)) if i != tokenizer.pad_token_id]
    if beyond:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(beyond[:3]))) + (", ..." if len(beyond) > 3 else "")
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the word embedding {rows} rows; none for {names}; call"
            " model.resize_token_embeddings(len(tokenizer)) and save the model again, or take the tokenizer that belongs to it"
        )
    return tokenizer


def set_dropout(config: Any, family: Family, dropout: bool | float, path: str) -> None:
    """Set a config's dropout rates: True keeps its own, False sets all to 0, a number sets the hidden ones.

    Raises :class:`UserError` for a rate where the family has no hidden dropout.
    """
    if dropout is True:
        return
    if dropout is not False and dropout > 0 and not family.hidden_dropout:
        raise UserError(
            f"train.backbone_dropout={dropout}: {path} ({config.model_type}) has no hidden dropout to set; use true or false"
        )
    for name in family.hidden_dropout:
        setattr(config, name, float(dropout))
    if dropout is False:
        for name in family.attention_dropout:
            setattr(config, name, 0.0)
