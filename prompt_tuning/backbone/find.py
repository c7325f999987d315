"""Where a backbone is, and what can be said of it before its weights are read: config, family and tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from prompt_tuning.backbone.families import Family, find_family
from prompt_tuning.backbone.places import Place, locate
from prompt_tuning.backbone.stored.gguf import dequantised
from prompt_tuning.backbone.stored.pickles import converted, is_pickled
from prompt_tuning.backbone.tokenizer import read_tokenizer
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.sections import BackboneSection


@dataclass(frozen=True)
class Description:
    """A backbone before its weights are read."""

    path: str
    """As the run file names it."""
    folder: Path
    config: Any
    family: Family
    tokenizer: PreTrainedTokenizerBase

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads sources, and a decoder targets, each with positions of its own."""
        return bool(self.family.sites)

    def check_length(self, prompt_length: int, max_length: int, positions: str, target: int = 0) -> None:
        """Raise :class:`UserError` where prompt, text and ``target`` tokens behind it together outgrow the position table."""
        limit = self.family.max_positions(self.config)
        takes_some = positions == "after_prefix" and self.family.has_positions(self.config)
        if self.has_encoder:
            self._check_both(max_length, target)
            return
        used = max_length + target + (prompt_length if takes_some else 0)
        if used > limit:
            room = limit - used + max_length
            more = f" and {target} tokens behind a source" if target else ""
            text = f"set data.max_length to {room} or less" if room > 2 else "leave room for the text"
            prompt = (
                ", shorten the prompt, or (deep prompts) choose prompt.positions 'from_zero'"
                if used > max_length + target
                else ""
            )
            raise UserError(
                f"prompt.length={prompt_length} and data.max_length={max_length}{more} need {used} positions, but"
                f" {self.path} has {limit}; {text}{prompt}"
            )

    def _check_both(self, source: int, target: int) -> None:
        limit = self.family.max_positions(self.config)
        if max(source, target) > limit:
            raise UserError(
                f"data.max_length={source} and a target of {target} tokens: {self.path} has {limit} positions for each of them;"
                " lower the larger"
            )

    def check_writes(self, length: int) -> None:
        """Raise :class:`UserError` unless the backbone writes texts behind a prompt, ``length`` tokens in all, as it is trained."""
        if self.family.pooling != "last":
            raise UserError(
                f"backbone.path={self.path}: {self.config.model_type} is an encoder, which writes no texts; choose a decoder such as"
                " 'llama' for a generation task"
            )
        # Trained, every token sees the whole prompt; written, local layers see it as text, which they lose sight of.
        window = smallest_window(self.config)
        if window is not None and length > window:
            raise UserError(
                f"{self.path} has layers that see {window} tokens, fewer than the {length} of prompt, source and target; lower"
                " prompt.length, data.max_length or data.max_target_length"
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


def smallest_window(config: Any) -> int | None:
    """Tokens that a local layer sees; None: there is no such layer."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return int(window) if kinds is None or any("sliding" in kind for kind in kinds) else None


def describe_backbone(section: BackboneSection, writes: bool = False) -> Description:
    """Find a backbone and read all but its weights; ``writes``: of what writes texts. Raises :class:`UserError`."""
    place = locate(section.path, section.revision)
    if not place.gguf:  # a .gguf file has its config in itself
        checked_config(place.folder, section, writes)
    folder = _with_safetensors(place, section.path)
    config, family = checked_config(folder, section, writes)
    return Description(
        section.path,
        folder,
        config,
        family,
        read_tokenizer(folder, config, section, family.pooling == "last" and not family.sites),
    )


def find_folder(path: str, revision: str | None = None) -> Path:
    """Folder of a backbone given as folder, .gguf file, ``package://module/path`` or hub id, with its weights in safetensors.

    Where they are in another form, it is one in the user's cache. Raises :class:`UserError`.
    """
    return _with_safetensors(locate(path, revision), path)


def _with_safetensors(place: Place, path: str) -> Path:
    if place.gguf:
        return dequantised(place, path)
    return converted(place.folder, path) if is_pickled(place.folder) else place.folder


def other_weights_hint(folder: Path) -> str:
    """What to say where weights are missing, with the name of a file of another kind that lies there instead."""
    if any(folder.glob("*.safetensors")):
        return ""
    kinds = ("*.pt", "*.pth", "*.ckpt", "*.bin", "*.h5", "*.msgpack", "*.onnx")
    others = sorted(file.name for kind in kinds for file in folder.glob(kind))
    hint = f" ({others[0]} is not read; of pickles only pytorch_model.bin is)" if others else ""
    return f"{hint}; save the model with save_pretrained"


def checked_config(folder: Path, section: BackboneSection, writes: bool = False) -> tuple[Any, Family]:
    """The config in a folder and its family, both fit for prompts; ``writes`` as above. Raises :class:`UserError`."""
    config = _read_config(folder, section)
    family = find_family(config.model_type)
    if writes and family.writing is not None:
        family = family.writing
    _check_config(config, family, section.path)
    return config, family


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
    unfit = family.refuse(config)
    if unfit is not None:
        raise UserError(f"backbone.path={path}: {unfit}")
    kind = getattr(config, "position_embedding_type", None)
    if kind not in (None, "absolute"):
        raise UserError(
            f"backbone.path={path}: position_embedding_type {kind!r} is not supported; choose a backbone with absolute positions"
        )


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
