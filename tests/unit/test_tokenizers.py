"""Tokenizers in the files that people have: SentencePiece alone, byte pairs in two files, words a line; without padding token."""

from __future__ import annotations

import io
import json
import logging

import pytest
import sentencepiece
from transformers import AutoConfig

from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.gguf import SENTENCES, make_pieces

TEXTS = ["The old house", "  The  new horse ÿ", "a\nb", "", "The red horse is there."]


def train(model_type="unigram", size=60, **options):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=written,
        vocab_size=size,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def describe(folder, model_type, **config):
    AutoConfig.for_model(model_type, **{"vocab_size": 400, **config}).save_pretrained(folder)
    return describe_backbone(BackboneSection(path=str(folder)))


def ids(description):
    return [description.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    "settings", [None, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "LlamaTokenizerFast"}]
)
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_sentencepiece_file_alone_is_llamas_tokenizer(tmp_path, model_type, settings):
    """Against SentencePiece itself: the begin token, and a space in front of every text."""
    pieces = make_pieces()
    (tmp_path / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ids(describe(tmp_path, model_type)) == [[1, *pieces.encode(text)] for text in TEXTS]


def test_what_the_tokenizers_settings_say_goes_first(tmp_path):
    pieces = make_pieces()
    (tmp_path / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ids(describe(tmp_path, "llama")) == [pieces.encode(text) for text in TEXTS]


def test_a_sentencepiece_file_alone_is_gemmas_tokenizer(tmp_path):
    """No space in front; special tokens under the file's names and numbers."""
    pieces = train(
        "bpe", 320, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<start>", user_defined_symbols="<mask>",
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    assert ids(describe(tmp_path, "gemma3_text")) == [[2, *pieces.encode(text)] for text in TEXTS]


def test_a_sentencepiece_file_that_is_cut_otherwise_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(make_pieces().serialized_model_proto())
    with pytest.raises(
        UserError, match=r"its tokenizer.model cuts .*, but Qwen2Tokenizer into .*; save the model's tokenizer"
    ):
        describe(tmp_path, "qwen2")


def test_a_sentencepiece_file_alone_is_xlm_robertas_tokenizer(tmp_path):
    """Its special tokens stand before all pieces, so that each is one further."""
    pieces = train()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces.serialized_model_proto())
    expected = [[0, *(i + 1 if i else 3 for i in pieces.encode(text)), 2] for text in TEXTS]
    assert ids(describe(tmp_path, "xlm-roberta")) == expected


def test_byte_pairs_in_two_files_are_robertas_tokenizer(tmp_path):
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "Ġ", "Ġab", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(vocabulary)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    description = describe(tmp_path, "roberta")
    assert description.tokenizer("ab ab")["input_ids"] == [0, 6, 8, 2]
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded: "):
        describe(tmp_path, "roberta")


@pytest.mark.parametrize(("settings", "expected"), [(None, [2, 5, 6, 3]), ({"do_lower_case": False}, [2, 7, 6, 3])])
def test_words_a_line_are_berts_tokenizer(tmp_path, settings, expected):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "old", "The"]))
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert describe(tmp_path, "bert", vocab_size=10).tokenizer("The old")["input_ids"] == expected


def test_without_a_padding_token_any_token_fills_rows(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(make_pieces().serialized_model_proto())
    for pad in (None, -1, 400, 7):
        description = describe(tmp_path, "llama", pad_token_id=pad)
        assert description.tokenizer.pad_token_id is None
        assert description.pad_token == (7 if pad == 7 else 0)


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json", "vocab.txt", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n"])
def test_a_damaged_tokenizer_file_is_one_sentence(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    model_type = {"tokenizer.model": "llama", "vocab.txt": "bert"}.get(file, "xlm-roberta")
    with pytest.raises(UserError, match=rf"^backbone.path={tmp_path}: "):
        describe(tmp_path, model_type)


def test_a_vocabulary_of_special_tokens_alone_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UserError, match=r"knows no token but special ones \(vocab.txt is damaged\)"):
        describe(tmp_path, "bert")


def test_more_tokens_than_rows_are_refused_and_far_fewer_are_said(tmp_path, caplog):
    (tmp_path / "tokenizer.model").write_bytes(make_pieces().serialized_model_proto())
    with pytest.raises(UserError, match="the tokenizer has 320 tokens, the word embedding 300 rows; none for "):
        describe(tmp_path, "llama", vocab_size=300)
    caplog.set_level(logging.WARNING)
    describe(tmp_path, "llama", vocab_size=384)
    assert not caplog.records
    describe(tmp_path, "llama", vocab_size=1000)
    assert "has 320 tokens, the word embedding 1000 rows; is it the model's own?" in caplog.text
