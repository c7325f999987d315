"""What T5's encoders have of their own: files with a decoder, several names of one embedding, biases by distance, no cloze."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoModelForTextEncoding, AutoTokenizer

from launcher import run as worker
from model_parallel import rng
from model_parallel.grid import Grid
from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.errors import UserError
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.prompt.initialise import _some_tokens
from prompt_tuning.settings.sections import BackboneSection
from tests.contracts.test_families import assert_equal, make_batch, make_prompt, open_backbone
from tests.support.disentangled import in_full_precision
from tests.support.fleets import open_fleet
from tests.support.generation import make_passages, make_writer, writing_run
from tests.support.tiny import make_backbone, make_texts, run_json

TYPES = ("t5", "mt5", "umt5")


@pytest.mark.parametrize("model_type", TYPES)
def test_without_a_prompt_it_is_transformers_own(tmp_path, monkeypatch, model_type):
    """Rows longer than the last bucket's distance among them, against transformers' own encoder, one row at a time."""
    in_full_precision(monkeypatch)
    folder = make_backbone(tmp_path, model_type)
    backbone = open_backbone(folder)
    prompt = make_prompt(backbone)
    prompt.prefix = None
    lengths = (1, 40, 7)
    batch = make_batch([prompt], lengths)
    found = hidden_states(backbone, [prompt], batch)
    theirs = AutoModelForTextEncoding.from_pretrained(folder, dtype=torch.float64).eval()
    assert len(batch.groups) == len(lengths), "rows of one length each"
    for row in batch.groups:
        expected = theirs(batch.input_ids[:, row.tokens]).last_hidden_state[0]
        assert_equal([found[row.tokens]], [expected], 1e-10)


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_word_embedding_has_several_names(tmp_path, model_type, name):
    """Files name it by itself or after its encoder; where it has the decoder's name alone, it is missing."""
    folder = make_backbone(tmp_path, model_type)
    file = folder / "model.safetensors"
    weights = load_file(file)
    words = weights.pop("shared.weight")
    weights.pop("encoder.embed_tokens.weight", None)
    save_file({**weights, name: words}, file, {"format": "pt"})
    if name.startswith("decoder"):
        with pytest.raises(UserError, match="shared"):
            open_backbone(folder)
        return
    assert torch.equal(open_backbone(folder).model.shared.weight, words.double())


def test_an_output_embedding_is_no_word_embedding(tmp_path):
    """Flan-T5's is another matrix."""
    folder = make_backbone(tmp_path, "t5")
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder, tie_word_embeddings=False)
    with torch.no_grad():
        whole.lm_head.weight.add_(1)
    whole.save_pretrained(folder)
    assert torch.equal(open_backbone(folder).model.shared.weight, whole.shared.weight.double())


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
def test_a_text_start_has_the_keys_and_values_of_a_text(tmp_path, monkeypatch, model_type):
    in_full_precision(monkeypatch)
    folder = make_backbone(tmp_path / "backbone", model_type)
    member = open_fleet(run_json(folder, make_texts(tmp_path / "data"), prompt={"init": "text"})).members[0]
    tokens = torch.from_numpy(_some_tokens(member.splits["train"], 5, rng.key(member.seed, "init", "text"))).long()
    model, found = AutoModelForTextEncoding.from_pretrained(folder, dtype=torch.float64).eval(), []
    for block in model.encoder.block:
        for side in (block.layer[0].SelfAttention.k, block.layer[0].SelfAttention.v):
            side.register_forward_hook(lambda module, given, out: found.append(out[0]))
    model(tokens[None])
    expected = torch.stack(found, 1).view(5, 3, 2, 4, 16)
    assert_equal([member.prompt.prefix.table()], [expected], 1e-10)


def test_a_forward_from_a_later_layer_has_the_first_ones_biases(tmp_path):
    backbone = open_backbone(make_backbone(tmp_path, "t5"))
    prompt = make_prompt(backbone, layers=(2,))
    batch = make_batch([prompt])
    with backbone.family.layers_until(backbone.model, 2) as entering:
        backbone.model(input_ids=batch.input_ids, rows=PackedRows(batch.groups))
    whole = hidden_states(backbone, [prompt], batch)
    with backbone.family.layers_from(backbone.model, 2, entering[0].detach()):
        rows = PackedRows(batch.groups, tables=(prompt.prefix.by_layer(),))
        found = backbone.model(input_ids=batch.input_ids, rows=rows).last_hidden_state[0]
    assert torch.equal(found, whole)


def test_a_cloze_template_is_refused_in_a_sentence(tmp_path):
    folder = make_backbone(tmp_path / "backbone", "t5")
    section = BackboneSection(path=str(folder))
    with pytest.raises(UserError, match="an encoder of model_type 't5' has none; choose another backbone"):
        load_backbone(section, Grid(), language=True, description=describe_backbone(section))


@pytest.mark.parametrize("is_scaled", [True, False])
def test_an_output_embedding_of_its_own_writes(tmp_path, is_scaled):
    """As Flan-T5's, whose config of old says so by tie_word_embeddings."""
    folder = make_writer(tmp_path, "t5")
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64)
    torch.manual_seed(0)
    whole.lm_head.weight = torch.nn.Parameter(torch.randn_like(whole.lm_head.weight))
    whole.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": is_scaled}))
    head = load_backbone(BackboneSection(path=str(folder), dtype="float64"), Grid(), language=True).language_head
    hidden = torch.randn(3, 32, dtype=torch.float64)
    expected = whole.lm_head(hidden * (32**-0.5 if is_scaled else 1))
    assert_equal([head(hidden)], [expected], 1e-10)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert theirs.config.scale_decoder_outputs is is_scaled
    assert torch.equal(theirs.lm_head.weight, whole.lm_head.weight)


def test_tasks_that_write_and_others_are_apart(tmp_path):
    """One wants the decoder too, and a backbone is loaded once."""
    backbone, texts = make_writer(tmp_path / "backbone", "t5"), make_texts(tmp_path / "texts")
    raw = run_json(backbone, texts)
    written = {"task": {"kind": "generation"}, "data": {"path": str(make_passages(tmp_path / "passages"))}}
    raw["fleet"] = {"members": [{"name": "reads"}, {"name": "writes", **written}]}
    with pytest.raises(UserError, match="'generation' alone; run this task apart from those of that kind"):
        open_fleet(raw)


def test_prompts_of_the_encoder_are_not_put_on_both(tmp_path):
    backbone = make_writer(tmp_path / "backbone", "t5")
    reads = run_json(backbone, make_texts(tmp_path / "texts"))
    writes = writing_run(backbone, make_passages(tmp_path / "passages"))
    folders = []
    for name, raw in (("writes", writes), ("reads", reads)):
        raw["train"] |= {"max_steps": 1}
        (tmp_path / "run.json").write_text(json.dumps(raw))
        assert worker.main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / name)]) == 0
        (member,) = (tmp_path / name / "members").iterdir()
        folders.append(load_prompt(member / "prompt"))
    attach(folders[1])
    with pytest.raises(UserError, match="attach it apart from prompts that do"):
        attach(folders)


def test_a_file_of_the_encoder_alone_writes_nothing(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "t5")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(backbone)
    file = backbone / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("decoder.")}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="decoder"):
        open_fleet(writing_run(backbone, make_passages(tmp_path / "passages")))
