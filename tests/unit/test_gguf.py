"""Backbones in .gguf files: the same numbers and tokens, made once, and nothing read by half."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="the package gguf is not installed")

from model_parallel.grid import Grid
from prompt_tuning.backbone.families import families
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.backbone.stored.kept import made_once
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import BackboneSection
from tests.support.gguf import ARCHITECTURES, byte_pairs, make_model, make_pieces, write_gguf

TYPES = [name for name in ARCHITECTURES if name in families()]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def pieces():
    return make_pieces()


@pytest.fixture(scope="module")
def model():
    return make_model("llama", 320)


@pytest.fixture
def file(tmp_path, model, pieces):
    return write_gguf(tmp_path / "model" / "tiny.gguf", model, pieces)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_model_is_the_one_that_was_written(tmp_path, pieces, model_type):
    """Rotary halves, norms, biases and heads: its logits are those of the model before llama.cpp's changes, bit by bit."""
    model = make_model(model_type, pieces.vocab_size())
    folder = find_folder(str(write_gguf(tmp_path / "one.gguf", model, pieces)))
    tokens = torch.arange(5, 35)[None]
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(tokens).logits, model(tokens).logits)


def test_quantised_tensors_get_their_exact_values(tmp_path, pieces, model):
    """Against scales and codes read from the file's own blocks: 32 codes of a byte behind a scale of two."""
    from gguf import GGUFReader
    from safetensors.torch import load_file

    file = write_gguf(tmp_path / "one.gguf", model, pieces, quantised=True)
    found = load_file(find_folder(str(file)) / "model.safetensors")
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        blocks = np.asarray(stored[f"blk.1.{theirs}.weight"].data).reshape(-1, 34)
        values = blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].copy().view(np.int8)
        weight = found[f"model.layers.1.{ours}.weight"]
        assert weight.dtype == torch.float32
        assert np.array_equal(weight.numpy().reshape(-1), values.reshape(-1))


@pytest.mark.parametrize("text", ["The old house", "  The  new horse ÿ", "a\nb", "", "<s>The"])
def test_the_tokenizer_is_that_of_sentencepiece(file, pieces, text):
    tokenizer = AutoTokenizer.from_pretrained(find_folder(str(file)))
    plain = text.removeprefix("<s>")
    assert tokenizer(plain)["input_ids"] == [pieces.bos_id(), *pieces.encode(plain)]
    assert tokenizer.eos_token_id == pieces.eos_id()


def test_a_tokenizer_without_leading_space_gets_none(tmp_path, model, pieces):
    facts = {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = AutoTokenizer.from_pretrained(
        find_folder(str(write_gguf(tmp_path / "a.gguf", model, pieces, facts=facts)))
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("The")["input_ids"])[1] != "▁The"


@pytest.mark.parametrize(("split", "begins"), [("qwen2", False), ("llama-bpe", True), ("gpt-2", False)])
def test_byte_pairs_begin_and_are_composed_as_their_models_want(tmp_path, model, split, begins):
    """LLaMA 3's files do not say that texts get a begin token, Qwen's not that letters and accents are joined first."""
    file = write_gguf(tmp_path / "one.gguf", model, facts=byte_pairs(split))
    tokenizer = AutoTokenizer.from_pretrained(find_folder(str(file)))
    one, two = (tokenizer(text)["input_ids"] for text in ("\u00e9", "e\u0301"))
    assert one == ([257, 256] if begins else [256])
    assert (one == two) == (split == "qwen2")


def test_byte_pairs_of_an_unknown_split_are_refused(tmp_path, model):
    """transformers would split their texts as GPT-2's."""
    with pytest.raises(UserError, match=r"its tokenizer .gpt2 with texts split as 'smollm'. is not understood"):
        find_folder(str(write_gguf(tmp_path / "one.gguf", model, facts=byte_pairs("smollm"))))


def test_prompts_train_on_it_as_on_the_same_model_in_safetensors(tmp_path, file, model):
    plain = find_folder(str(file))
    model.save_pretrained(tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "plain" / name).write_bytes((plain / name).read_bytes())
    one, other = (load_backbone(BackboneSection(path=str(path)), Grid()) for path in (file.parent, tmp_path / "plain"))
    assert one.path == str(file.parent)
    assert one.identity.difference(other.identity.to_json()) is None


def test_it_is_said_and_made_once(file, caplog):
    caplog.set_level(logging.INFO)
    folders = {find_folder(str(file)), find_folder(str(file.parent))}
    assert len(folders) == 1
    said = [
        record.getMessage() for record in caplog.records if "tiny.gguf is dequantised once, into" in record.getMessage()
    ]
    assert len(said) == 1 and str(*folders) in said[0]


def test_another_file_of_the_name_is_made_anew(tmp_path, file, pieces):
    before = find_folder(str(file))
    write_gguf(file, make_model("llama", pieces.vocab_size(), rms_norm_eps=0.5), pieces)
    after = find_folder(str(file))
    assert before != after
    assert json.loads((after / "config.json").read_text())["rms_norm_eps"] == 0.5


@pytest.mark.parametrize("damage", ["cut", "gone", "list", "half"])
def test_a_damaged_copy_is_made_anew(file, caplog, damage):
    folder = find_folder(str(file))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "gone":
        weights.unlink()
    elif damage == "list":
        (folder / "made.json").write_text("[")
    else:
        (folder / "made.json").unlink()
    assert find_folder(str(file)) == folder
    assert weights.read_bytes() == whole
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1


def test_what_a_killed_process_left_is_no_obstacle(file, home):
    folder = find_folder(str(file))
    half = folder.with_name(f".{folder.name}.tmp")
    folder.rename(half)
    (half / "model.safetensors").write_bytes(b"half")
    assert find_folder(str(file)) == folder
    assert not half.exists()


def test_two_ranks_make_it_once(tmp_path):
    source = tmp_path / "source"
    source.write_text("x")
    made, found = [], []
    together = threading.Barrier(2)

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "a").write_text("a")

    def rank() -> None:
        together.wait()
        found.append(made_once([source], "it", "made", make))

    ranks = [threading.Thread(target=rank) for _ in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert len(made) == 1 and len(set(found)) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(file, home):
    home.write_text("no folder")
    with pytest.raises(UserError, match=r"tiny.gguf is dequantised into .*, where nothing can be written: "):
        find_folder(str(file))


def in_parts(file: Path, folders: list[Path]) -> None:
    content = file.read_bytes()
    size = -(-len(content) // len(folders))
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file.name}.part{i:02}").write_bytes(content[i * size : (i + 1) * size])


def test_parts_in_packages_are_joined(tmp_path, file, monkeypatch):
    """As files too large for one package are published: parts in packages that the named one requires."""
    site = tmp_path / "site"
    in_parts(file, [site / f"tiny_part{i}" / "data" for i in range(3)])
    data = site / "tiny_lm" / "data"
    data.mkdir(parents=True)
    (data / "SHA256SUMS").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    required = "".join(f"Requires-Dist: tiny-part{i}==1.0\n" for i in range(3))
    for name, more in {"tiny_lm": required, **{f"tiny_part{i}": "" for i in range(3)}}.items():
        record = site / f"{name}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}")
        (record / "top_level.txt").write_text(f"{name}\n")
        files = "".join(f"{path.relative_to(site)},,\n" for path in sorted((site / name).rglob("*")) if path.is_file())
        (record / "RECORD").write_text(files)
    monkeypatch.syspath_prepend(str(site))
    found = find_folder("package://tiny_lm/data")
    expected = find_folder(str(file))
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert not list(found.glob("*.gguf"))
    (site / "tiny_part2" / "data" / f"{file.name}.part02").write_bytes(b"other")
    with pytest.raises(UserError, match="its 3 parts make another file than SHA256SUMS says"):
        find_folder("package://tiny_lm/data")


def test_one_of_several_files_is_to_be_named(tmp_path, file):
    other = file.with_name("other.gguf")
    other.write_bytes(file.read_bytes())
    (file.parent / "mmproj-tiny.gguf").write_bytes(b"an eye")
    with pytest.raises(UserError, match=r"holds 2 \.gguf files \(other.gguf, tiny.gguf\); name one"):
        find_folder(str(file.parent))
    assert find_folder(str(file))


def test_a_file_that_was_split_is_to_be_merged(file):
    file = file.rename(file.with_name("tiny-00001-of-00002.gguf"))
    for path in (file, file.parent):
        with pytest.raises(
            UserError, match=r"join them with `llama-gguf-split --merge tiny-00001-of-00002.gguf tiny.gguf`"
        ):
            find_folder(str(path))


def test_a_config_and_a_tokenizer_beside_the_file_go_first(file, model, pieces):
    model.config.save_pretrained(file.parent)
    values = json.loads((file.parent / "config.json").read_text())
    (file.parent / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 0.25}))
    (file.parent / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    found = find_folder(str(file.parent))
    assert json.loads((found / "config.json").read_text())["rms_norm_eps"] == 0.25
    assert (found / "tokenizer.model").is_file() and not (found / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"llama.attention.scale": 0.5}, r"it says llama.attention.scale=0.5, which is not understood"),
        ({"llama.expert_count": 4}, r"it says llama.expert_count=4, which is not understood"),
        ({"llama.block_count": None}, r"it does not say llama.block_count"),
        ({"llama.attention.value_length": 8}, r"attention.value_length=8 beside heads of 16"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, r"rope.scaling.type='longrope'"),
        ({"llama.block_count": 3}, r"it lacks 13 tensors \(blk.2."),
        ({"llama.feed_forward_length": 32}, r"its tensors do not fit its sizes \(blk.0.ffn_"),
        ({"general.architecture": "mamba"}, r"a model of architecture 'mamba'"),
        (
            {"tokenizer.ggml.model": "plamo2"},
            r"its tokenizer \('plamo2'\) is not understood; put the model's own tokenizer",
        ),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, model, pieces, facts, says):
    own = pieces if "tokenizer.ggml.model" not in facts else None
    file = write_gguf(tmp_path / "one.gguf", model, own, facts=facts)
    with pytest.raises(UserError, match=rf"^backbone.path={file}: one.gguf: .*{says}"):
        find_folder(str(file))


def test_a_tensor_that_the_model_has_no_place_for_is_refused(tmp_path, model, pieces):
    file = write_gguf(tmp_path / "one.gguf", model, pieces, tensors={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(UserError, match=r"it has beside the model's 1 tensors \(blk.0.attn_sinks.weight\)"):
        find_folder(str(file))


@pytest.mark.parametrize("size", [0, 3, 100, 20000])
def test_a_cut_off_file_is_one_sentence(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"tiny.gguf cannot be read: .*; copy it anew"):
        find_folder(str(file))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"llama.rope.freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_stretched_positions_are_taken_over(tmp_path, model, pieces, facts, expected):
    folder = find_folder(str(write_gguf(tmp_path / "one.gguf", model, pieces, facts=facts)))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    assert {key: rope[key] for key in expected} == expected


def test_llama_3s_frequencies_are_recognised(tmp_path, pieces):
    said = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = make_model("llama", pieces.vocab_size(), rope_parameters=said)
    plain = 5e5 ** -(torch.arange(0, 16, 2) / 16)
    divisors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    facts = {"llama.rope.freq_base": 5e5}
    file = write_gguf(tmp_path / "one.gguf", model, pieces, facts=facts, tensors={"rope_freqs.weight": divisors})
    found = json.loads((find_folder(str(file)) / "config.json").read_text())["rope_parameters"]
    assert found == said
    file = write_gguf(tmp_path / "two.gguf", model, pieces, facts=facts, tensors={"rope_freqs.weight": divisors**2})
    with pytest.raises(UserError, match="its rope_freqs are not LLaMA 3's"):
        find_folder(str(file))
