"""Prompts of P-tuning v2's own code, ChatGLM and Adapters, from files laid out by hand: the same answers, or one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, DynamicCache

from launcher import cli
from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.prompt.formats import import_prompt
from prompt_tuning.settings.members import resolve
from prompt_tuning.tokens.features import Features
from tests.golden.test_reference import CASES, REFERENCE, TOLERANCES, _features, _real
from tests.support.foreign import our_logits
from tests.support.tiny import make_backbone, make_language_backbone, make_tokenizer

TEXTS = {"kind": "classification", "name": "texts", "labels": ["a", "b", "c"]}
TASKS = {
    "sequence_classification": TEXTS,
    "token_classification": {"kind": "tagging", "name": "tags", "labels": ["O", "B-a", "I-a", "B-b", "I-b"]},
    "multiple_choice": "copa",
    "question_answering": {"kind": "span", "name": "questions"},
}
RECORDED = [name for name in CASES if "conv" not in name]


def settings_for(backbone, task=TEXTS, max_length=24):
    raw = {"task": task, "backbone": {"path": str(backbone)}, "data": {"max_length": max_length}}
    return resolve(raw, Path("import")).shared


def refusal(folder, settings, labels=None):
    with pytest.raises(UserError) as error:
        import_prompt(folder, settings, labels, folder.parent / "refused")
    assert "\n" not in str(error.value) and not (folder.parent / "refused").exists()
    return str(error.value)


def change(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))


# P-tuning v2's own code


def reference_folder(folder, name):
    """A recorded case as its Trainer would have saved it, and its backbone by itself; the case's tensors."""
    case, tensors = CASES[name], load_file(REFERENCE / f"{name}.safetensors")
    family = case["family"]
    base = "roberta." if family == "roberta" else "bert." if family == "bert" else "deberta."
    parts = ("prefix_encoder.", "classifier.", "qa_outputs.", "pooler.")
    whole = {key: value for key, value in tensors.items() if key.startswith((base, *parts))}
    whole[f"{base}embeddings.position_ids"] = torch.arange(64)[None]
    folder.mkdir()
    torch.save(whole, folder / "pytorch_model.bin")
    config = {**case["model_config"], "pre_seq_len": case["prompt_length"], "prefix_projection": "proj" in name}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = folder.parent / "backbone"
    model = AutoModel.from_config(AutoConfig.for_model(**case["model_config"]))
    frozen = {k.removeprefix(base): v for k, v in whole.items() if k.startswith(base)}
    model.load_state_dict(frozen, strict=False)
    if not any(key.startswith("pooler.") for key in frozen):
        model.pooler = None
    model.save_pretrained(backbone)
    make_tokenizer(case["model_config"]["pad_token_id"]).save_pretrained(backbone)
    return case, tensors, backbone


@pytest.mark.parametrize("name", RECORDED)
def test_logits_are_those_that_the_reference_gave(tmp_path, name):
    case, tensors, backbone = reference_folder(tmp_path / "theirs", name)
    settings = settings_for(backbone, TASKS[case["head"]])
    assumed = import_prompt(tmp_path / "theirs", settings, None, tmp_path / "ours")
    assert not any("no weights to compare" in sentence for sentence in assumed)
    found = our_logits(tmp_path / "ours", _features(tensors))
    if case["head"] == "question_answering":
        expected = torch.stack([tensors["expect.start_logits"], tensors["expect.end_logits"]], -1)[_real(tensors)]
    elif case["head"] == "token_classification":
        expected = tensors["expect.logits"][_real(tensors)]
    else:
        expected = tensors["expect.logits"]
    assert (found - expected).abs().max() < TOLERANCES["logits"]


@pytest.fixture
def reference(tmp_path):
    _, _, backbone = reference_folder(tmp_path / "theirs", "bert_seqcls_plain")
    return tmp_path / "theirs", backbone


def test_labels_that_the_files_name_decide_the_order(reference, tmp_path):
    folder, backbone = reference
    import_prompt(folder, settings_for(backbone), None, tmp_path / "plain")
    change(folder, "config.json", id2label={"0": "b", "1": "c", "2": "a"})
    import_prompt(folder, settings_for(backbone), None, tmp_path / "named")
    plain, named = (load_prompt(tmp_path / name).prompt.head for name in ("plain", "named"))
    assert load_prompt(tmp_path / "named").labels == ("a", "b", "c")
    assert torch.equal(named.weight, plain.weight[[2, 0, 1]]) and torch.equal(named.bias, plain.bias[[2, 0, 1]])
    own = {"kind": "classification", "name": "texts"}
    import_prompt(folder, settings_for(backbone, own), None, tmp_path / "own")
    assert load_prompt(tmp_path / "own").labels == ("b", "c", "a")
    change(folder, "config.json", id2label={"0": "x", "1": "c", "2": "a"})
    assert "answers x, c, a" in refusal(folder, settings_for(backbone))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: {**t, "bert.encoder.layer.1.output.dense.bias": t["bert.encoder.layer.1.output.dense.bias"] + 1e-3}, "differs"),
        (lambda t: {**t, "prefix_encoder.weight": torch.ones(5, 64)}, "prompts at the input"),
        (lambda t: {**t, "prefix_encoder.gate": torch.ones(1)}, "would be left out"),
        (lambda t: {k: v for k, v in t.items() if "classifier" not in k}, "no head"),
        (lambda t: {k: v for k, v in t.items() if "prefix_encoder" not in k}, "no tensor prefix_encoder"),
        (lambda t: {**t, "prefix_encoder.embedding.weight": t["prefix_encoder.embedding.weight"].T}, "where [5, any] belongs"),
        (lambda t: {**t, "prefix_encoder.embedding.weight": t["prefix_encoder.embedding.weight"][:, :256]}, "256 numbers"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused(reference, edit, message):
    folder, backbone = reference
    torch.save(edit(torch.load(folder / "pytorch_model.bin", weights_only=True)), folder / "pytorch_model.bin")
    assert message in refusal(folder, settings_for(backbone))


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers", "hidden_size"])
def test_other_sizes_than_the_backbone_s_are_refused(reference, key):
    """Two heads of 32 have as many numbers as four of 16."""
    folder, backbone = reference
    change(folder, "config.json", **{key: 2})
    assert f"{key} 2" in refusal(folder, settings_for(backbone))


def test_a_pickle_of_more_than_tensors_is_not_run(reference):
    folder, backbone = reference
    torch.save({"classifier.weight": Path}, folder / "pytorch_model.bin")
    assert "could run code" in refusal(folder, settings_for(backbone))


# ChatGLM2

CHATGLM2 = {
    "model_type": "chatglm",
    "num_layers": 3,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "pre_seq_len": 5,
    "prefix_projection": False,
}
WIDTH = 3 * 2 * 2 * 16
WRITTEN = {"kind": "generation", "name": "texts", "metrics": ["exact_match"]}


def chatglm_folder(folder, projection):
    torch.manual_seed(4)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CHATGLM2, "prefix_projection": projection}))
    start = "transformer.prefix_encoder"
    tensors = {f"{start}.embedding.weight": torch.randn(5, WIDTH)}
    if projection:
        tensors |= {
            f"{start}.trans.0.weight": torch.randn(32, WIDTH) / 8,
            f"{start}.trans.0.bias": torch.randn(32),
            f"{start}.trans.2.weight": torch.randn(WIDTH, 32) / 4,
            f"{start}.trans.2.bias": torch.randn(WIDTH),
        }
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    return {name: tensor.half().float() for name, tensor in tensors.items()}


@torch.no_grad()
@pytest.mark.parametrize("projection", [False, True])
def test_a_chatglm_prefix_acts_as_its_own_code_permutes_it(tmp_path, projection):
    """Its modelling file: view [rows, P, N * 2, G, D], permute (2, 1, 0, 3, 4), split in pairs [P, rows, G, D], text from 0."""
    backbone = make_language_backbone(tmp_path / "backbone", "glm")
    tensors = chatglm_folder(tmp_path / "theirs", projection)
    settings = resolve(
        {
            "task": WRITTEN,
            "backbone": {"path": str(backbone)},
            "data": {"max_length": 16, "max_target_length": 16},
        },
        Path("import"),
    ).shared
    import_prompt(tmp_path / "theirs", settings, None, tmp_path / "ours")
    start = "transformer.prefix_encoder"
    past = tensors[f"{start}.embedding.weight"][None]
    if projection:
        inner = torch.tanh(past @ tensors[f"{start}.trans.0.weight"].T + tensors[f"{start}.trans.0.bias"])
        past = inner @ tensors[f"{start}.trans.2.weight"].T + tensors[f"{start}.trans.2.bias"]
    pairs = past.view(1, 5, 6, 2, 16).permute(2, 1, 0, 3, 4).split(2)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3), layer)
    ids = torch.tensor([[5, 9, 7, 30, 12]])
    model = AutoModel.from_pretrained(backbone).eval()
    mask = torch.ones(1, 10, dtype=torch.long)
    expected = model(ids, attention_mask=mask, past_key_values=cache, position_ids=torch.arange(5)[None])[0][0]
    found = states(tmp_path / "ours", ids)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


def states(folder, ids):
    """Last hidden states [L, H] of one text behind an imported prompt."""
    model = attach(load_prompt(folder))
    prompt = model.prompts[0].prompt
    features = Features(ids[0].numpy().astype(np.int32), None, np.array([0, ids.shape[1]]), 1, np.zeros(1, np.int64))
    pool = Pool([features], PromptShapes.of([prompt]))
    batch = lay_out(
        pool, Items(np.zeros(1, np.int64), np.arange(1), np.ones(1)), pad_token=0, device=torch.device("cpu")
    )
    return hidden_states(model.backbone, [prompt], replace(batch, read=None))[batch.tokens]


def test_what_is_no_chatglm2_on_its_own_backbone_is_refused(tmp_path):
    glm, llama = (make_language_backbone(tmp_path / name, name) for name in ("glm", "llama"))
    chatglm_folder(tmp_path / "theirs", False)
    assert "rotated as those of GLM" in refusal(tmp_path / "theirs", settings_for(llama, WRITTEN))
    assert "has no head" in refusal(tmp_path / "theirs", settings_for(glm))
    change(tmp_path / "theirs", "config.json", multi_query_group_num=4)
    assert "key/value heads 4" in refusal(tmp_path / "theirs", settings_for(glm, WRITTEN))
    config = {key: value for key, value in CHATGLM2.items() if key != "kv_channels"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    assert "ChatGLM-6B" in refusal(tmp_path / "theirs", settings_for(glm, WRITTEN))


# Adapters


def adapters_folder(folder, flat=True, head="own", leave_out=(), family="bert", **config):
    """As Adapters 1.3.0 writes it; 'own': a head of its own, 'class': one of transformers' classes, None: none."""
    torch.manual_seed(6)
    folder.mkdir()
    inner = {
        "architecture": "prefix_tuning",
        "flat": False,
        "prefix_length": 4,
        "leave_out": list(leave_out),
        "use_gating": False,
    }
    about = {"hidden_size": 32, "model_type": family, "name": "x", "version": "adapters.1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps({"config": {**inner, **config}, **about}))
    width = (3 - len(leave_out)) * 2 * 32
    start = "prefix_tuning.prefix_tunings.x.self_prefix"
    own = {"control_trans": torch.randn(4 * width)}
    if not flat:
        own = {
            "wte.weight": torch.randn(4, 32),
            "control_trans.0.weight": torch.randn(7, 32),
            "control_trans.0.bias": torch.randn(7),
            "control_trans.2.weight": torch.randn(width, 7),
            "control_trans.2.bias": torch.randn(width),
        }
    copies = (f"{family}.", f"{family}.encoder.layer.0.attention.self.prefix_tuning.pool.")
    torch.save({f"{where}{start}.{k}": v for where in copies for k, v in own.items()}, folder / "pytorch_adapter.bin")
    if head is not None:
        weights = {"1": (32, 32), "4": (3, 32)}
        named = {"b": 0, "c": 1, "a": 2}
        inner = {
            "head_type": "classification",
            "layers": 2,
            "activation_function": "tanh",
            "label2id": named,
            "use_pooler": False,
        }
        names = {f"heads.x.{n}": size for n, size in weights.items()}
        whole = {"config": inner, **about}
        if head == "class":
            names = {"classifier": (3, 32)}
            whole = {"config": None, "model_class": "BertForSequenceClassification", "label2id": named, **about}
        (folder / "head_config.json").write_text(json.dumps(whole))
        tensors = {f"{n}.weight": torch.randn(size) for n, size in names.items()}
        tensors |= {f"{n}.bias": torch.randn(size[0]) for n, size in names.items()}
        torch.save(tensors, folder / "pytorch_model_head.bin")
        own |= tensors
    return own


@torch.no_grad()
@pytest.mark.parametrize(("flat", "head", "leave_out"), [(True, "own", ()), (False, "own", ()), (True, "class", (0,))])
def test_an_adapter_acts_as_transformers_cache_says(tmp_path, flat, head, leave_out):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    tensors = adapters_folder(tmp_path / "theirs", flat, head, leave_out)
    import_prompt(tmp_path / "theirs", settings_for(backbone), None, tmp_path / "ours")
    exported = load_prompt(tmp_path / "ours")
    assert exported.manifest["positions"] == "from_zero" and exported.manifest["layers"] == (
        [1, 2] if leave_out else None
    )
    ids = torch.tensor([[5, 9, 7, 30, 12]])
    if flat:
        table = tensors["control_trans"].view(4, -1, 2, 4, 8)
    else:
        inner = torch.tanh(
            tensors["wte.weight"] @ tensors["control_trans.0.weight"].T + tensors["control_trans.0.bias"]
        )
        table = (inner @ tensors["control_trans.2.weight"].T + tensors["control_trans.2.bias"]).view(4, -1, 2, 4, 8)
    assert torch.allclose(exported.prompt.prefix.own_table(), table, atol=1e-5)
    model = AutoModel.from_pretrained(backbone).eval()
    if leave_out:
        assert exported.prompt.prefix.layers == (1, 2)
        return  # a cache has no layer without a prefix
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(table.permute(1, 2, 3, 0, 4)):
        cache.update(keys[None], values[None], layer)
    mask = torch.ones(1, 9, dtype=torch.long)
    hidden = model(ids, attention_mask=mask, past_key_values=cache, position_ids=torch.arange(5)[None])[0][:, 0]
    inner = torch.tanh(hidden @ tensors["heads.x.1.weight"].T + tensors["heads.x.1.bias"])
    expected = (inner @ tensors["heads.x.4.weight"].T + tensors["heads.x.4.bias"])[:, [2, 0, 1]]
    features = Features(ids[0].numpy().astype(np.int32), None, np.array([0, 5]), 1, np.zeros(1, np.int64))
    assert (our_logits(tmp_path / "ours", features) - expected).abs().max() < 1e-5


def test_what_adapters_does_otherwise_is_refused(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert")
    adapters_folder(tmp_path / "gated", use_gating=True)
    assert "use_gating" in refusal(tmp_path / "gated", settings_for(backbone))
    adapters_folder(tmp_path / "lora", architecture="lora")
    assert "no prefix tuning" in refusal(tmp_path / "lora", settings_for(backbone))
    adapters_folder(tmp_path / "headless", head=None)
    assert "has no head" in refusal(tmp_path / "headless", settings_for(backbone))
    adapters_folder(tmp_path / "relu")
    content = json.loads((tmp_path / "relu" / "head_config.json").read_text())
    change(tmp_path / "relu", "head_config.json", config={**content["config"], "activation_function": "relu"})
    assert "activation_function 'relu'" in refusal(tmp_path / "relu", settings_for(backbone))
    deeper = make_backbone(tmp_path / "deeper", "bert", num_hidden_layers=4)
    adapters_folder(tmp_path / "shallow")
    assert "192 numbers a token" in refusal(tmp_path / "shallow", settings_for(deeper))
    roberta = make_backbone(tmp_path / "roberta", "roberta")
    assert "model_type bert" in refusal(tmp_path / "shallow", settings_for(roberta))


# All


def test_the_command_says_its_mistakes_in_one_sentence(tmp_path, capsys):
    start = ["import", str(tmp_path), "--backbone", str(tmp_path), "--output", str(tmp_path / "ours")]
    for arguments, message in (
        (["--task", "{"], "not JSON"),
        (["--task", "boolq", "--set", "prompt.length=3"], "--set prompt.length: the files say it"),
        (["--task", "boolq"], "nothing there is of a format that is known"),
    ):
        assert cli.main([*start, *arguments]) == 1
        assert message in capsys.readouterr().err
