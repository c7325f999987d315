"""A backbone's own tokenizer, whatever files it is kept in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from model_parallel.loading import why_unreadable
from prompt_tuning.errors import UserError, reason
from prompt_tuning.settings.sections import BackboneSection

logger = logging.getLogger(__name__)

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


def read_tokenizer(folder: Path, config: Any, section: BackboneSection, is_causal: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises :class:`UserError` where there is none, or one that does not fit the vocabulary."""
    path = f"backbone.path={section.path}"
    # Without files, transformers makes a tokenizer that knows five tokens.
    files = [folder / name for name in _VOCABULARIES if (folder / name).is_file()] + sorted(folder.glob("*.model"))
    if not files:
        raise UserError(f"{path}: no tokenizer there ({', '.join(_VOCABULARIES)} or *.model); save it beside the model")
    for file in files:
        why = why_unreadable(file)
        if why != "cannot be read":
            raise UserError(f"{path}: its tokenizer cannot be loaded: {file.name} {why}; copy it anew")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=section.trust_remote_code)
        if is_causal and not (folder / "tokenizer.json").is_file():
            tokenizer = _as_its_pieces(folder, tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path}: its tokenizer cannot be loaded: {reason(error)}") from None
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise UserError(
            f"{path}: its tokenizer knows no token but special ones ({files[0].name} is damaged); copy it anew"
        )
    _check_size(tokenizer, config.vocab_size, path)
    return tokenizer


def space_as_sentencepiece(backend: Any, prefix: bool) -> None:
    """Let a tokenizer of byte pairs write spaces as SentencePiece does: one in front of every text where ``prefix``.

    transformers leaves it out where a text begins with a space.
    """
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        first = [normalizers.Prepend("▁")] if prefix else []
        backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None


def _as_its_pieces(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal model that has a SentencePiece file alone, as LLaMA and Gemma came: begin token, leading space.

    transformers forgets both where no tokenizer_config.json names them, and takes names of its own for special tokens. Raises
    :class:`UserError` where it reads the file otherwise.
    """
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (OSError, RuntimeError):
        return tokenizer  # none, or of another kind under that name
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    kind = LlamaTokenizer if type(tokenizer) is TokenizersBackend else type(tokenizer)
    ids = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "unk_token": pieces.unk_id()}
    own = {"add_bos_token": True} | {name: pieces.id_to_piece(i) for name, i in ids.items() if i >= 0}
    options = {name: value for name, value in own.items() if name not in settings}
    found: PreTrainedTokenizerBase = kind.from_pretrained(folder, **options)
    words = [piece for piece in map(pieces.id_to_piece, range(pieces.vocab_size())) if piece.strip("▁").isalpha()]
    probe = " ".join(piece.strip("▁") for piece in words[-3:])
    wanted = pieces.encode(probe, out_type=str)
    if found.is_fast:
        space_as_sentencepiece(found.backend_tokenizer, wanted[:1] != [] and wanted[0].startswith("▁"))
    tokens = found.convert_ids_to_tokens(found(probe, add_special_tokens=False)["input_ids"])
    if tokens != wanted:
        raise UserError(
            f"its tokenizer.model cuts {probe!r} into {wanted}, but {type(found).__name__} into {tokens}; save the model's"
            " tokenizer.json beside it"
        )
    return found


def _check_size(tokenizer: PreTrainedTokenizerBase, rows: int, path: str) -> None:
    # A padding token that was added has no row and needs none: padding is masked out.
    beyond = [i for i in range(rows, min(len(tokenizer), rows + 100)) if i != tokenizer.pad_token_id]
    if beyond:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(beyond[:3]))) + (", ..." if len(beyond) > 3 else "")
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the word embedding {rows} rows; none for {names}; call"
            " model.resize_token_embeddings(len(tokenizer)) and save the model again, or take the tokenizer that belongs to it"
        )
    if len(tokenizer) < rows / 2:
        logger.warning(
            "%s: the tokenizer has %d tokens, the word embedding %d rows; is it the model's own?",
            path,
            len(tokenizer),
            rows,
        )
