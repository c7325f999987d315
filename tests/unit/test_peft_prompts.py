"""Prompts go to PEFT and come back with the same logits, padded batches included, or are refused in one sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher import cli
from prompt_tuning import attach, load_prompt
from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import write_prompt
from prompt_tuning.prompt.formats import import_prompt, peft
from prompt_tuning.prompt.formats._peft_models import CLASSES
from prompt_tuning.settings.members import resolve
from tests.support.foreign import exported_prompt, our_logits, padded
from tests.support.generation import make_writer
from tests.support.tiny import (
    make_backbone,
    make_copa,
    make_questions,
    make_tags,
    make_texts,
    make_values,
    run_json,
    write_jsonl,
)

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft (extra `bench`) is not installed"
)
ENCODERS = ("bert", "roberta", "xlm-roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2")
TEXTS = {"kind": "classification", "name": "texts", "labels": ["class0", "class1", "class2"]}
OF_KIND = {
    "classification": (TEXTS, make_texts),
    "choice": ("copa", make_copa),
    "regression": ({"kind": "regression", "name": "values"}, make_values),
    "tagging": ({"kind": "tagging", "name": "tags", "labels": ["O", "B-five", "I-five"]}, make_tags),
    "span": ({"kind": "span", "name": "questions", "has_null": True}, make_questions),
}


def make(folder, family, kind="classification", with_pooler=True, **sections):
    """An exported prompt of a tiny backbone in float32, and its dev split."""
    backbone = folder / "backbone"
    make_backbone(backbone, family, with_pooler=with_pooler)
    task, data = OF_KIND[kind]
    data(folder / "data")
    raw = run_json(backbone, folder / "data", backbone={"dtype": "float32"}, **{"data": {"stride": 4}, **sections})
    return exported_prompt(folder, {**raw, "task": task})


@torch.no_grad()
def their_logits(folder, features, kind="classification", outputs=3):
    """PEFT's own, through the class that the folder's README names."""
    import transformers
    from peft import PeftModel

    config = json.loads((folder / "adapter_config.json").read_text())
    name = next(word for word in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM") if word == config["task_type"])
    cls = getattr(transformers, CLASSES[name])
    path = config["base_model_name_or_path"]
    labels = {} if name in ("QUESTION_ANS", "CAUSAL_LM") else {"num_labels": outputs}
    model = PeftModel.from_pretrained(cls.from_pretrained(path, **labels), folder).eval()
    inputs = padded(features, model.config.pad_token_id)
    found = model(**inputs)
    logits = torch.stack([found.start_logits, found.end_logits], -1) if name == "QUESTION_ANS" else found.logits
    real = inputs["attention_mask"].bool()
    return logits[real] if name in ("TOKEN_CLS", "QUESTION_ANS") else logits.view(len(features), -1)


def to_and_back(tmp_path, prompt, kind):
    """The folder for PEFT, and what is imported of it."""
    task = OF_KIND[kind][0]
    backbone = str(tmp_path / "backbone")
    assert cli.main(["export", str(prompt), "--format", "peft", "--output", str(tmp_path / "peft")]) == 0
    told = json.dumps(task) if isinstance(task, dict) else task
    arguments = [
        "--backbone",
        backbone,
        "--task",
        told,
        "--output",
        str(tmp_path / "back"),
        "--set",
        "data.max_length=24",
        "--set",
        "data.stride=4",
    ]
    assert cli.main(["import", str(tmp_path / "peft"), *arguments]) == 0
    return tmp_path / "peft", tmp_path / "back"


@needs_peft
@pytest.mark.parametrize("family", ENCODERS + DECODERS)
def test_logits_are_peft_s_and_the_same_after_a_round_trip(tmp_path, family, capsys):
    prompt, features = make(tmp_path, family)
    if family in DECODERS:
        without_bias(prompt)  # as its classifier there is
    ours = our_logits(prompt, features)
    folder, back = to_and_back(tmp_path, prompt, "classification")
    assert apart(their_logits(folder, features), ours) < 1e-5
    assert ours.std() > 0.1, "equal logits of next to nothing would prove nothing"
    assert torch.equal(our_logits(back, features), ours)
    first, second = (load_file(place / "prompt.safetensors") for place in (prompt, back))
    assert torch.equal(first["prefix"], second["prefix"])
    assert "assumed: labels in this order: class0, class1, class2" in capsys.readouterr().err


def apart(found, expected):
    """The largest difference of logits, of their own size where they are above 1: rounding of float32 grows with them."""
    return (found - expected).abs().max() / expected.abs().max().clamp_min(1)


def without_bias(folder):
    """Write the prompt anew with a head whose bias is 0."""
    exported = load_prompt(folder)
    with torch.no_grad():
        exported.prompt.head.bias.zero_()
    kept = {k: v for k, v in exported.manifest.items() if k not in ("best", "tensors", "sha256", "sha256_of_the_rest")}
    write_prompt(folder, exported.prompt, kept)


@needs_peft
@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "choice"), ("roberta", "regression"), ("bert", "tagging"), ("roberta", "tagging"), ("roberta", "span")],
)
def test_every_kind_of_head_travels(tmp_path, family, kind):
    prompt, features = make(tmp_path, family, kind)
    ours = our_logits(prompt, features)
    folder, back = to_and_back(tmp_path, prompt, kind)
    outputs = {"choice": 1, "regression": 1}.get(kind, 3)
    if kind == "choice":
        theirs = rows_of_choices(folder, features)
    else:
        theirs = their_logits(folder, features, kind, outputs)
    assert apart(theirs, ours) < 1e-5
    assert torch.equal(our_logits(back, features), ours)


@torch.no_grad()
def rows_of_choices(folder, features):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    path = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1), folder
    ).eval()
    return model(**padded(features, model.config.pad_token_id)).logits.view(len(features), -1)


@needs_peft
@pytest.mark.parametrize("family", ENCODERS[:2])
def test_a_pooler_of_its_own_travels(tmp_path, family):
    prompt, features = make(tmp_path, family, with_pooler=False)
    assert load_prompt(prompt).prompt.head.pooler is not None
    folder, back = to_and_back(tmp_path, prompt, "classification")
    ours = our_logits(prompt, features)
    assert apart(their_logits(folder, features), ours) < 1e-5
    assert torch.equal(our_logits(back, features), ours)


@needs_peft
def test_a_projection_that_peft_trained_is_imported_as_peft_applies_it(tmp_path):
    """Made by PEFT itself, with the label order told on the command line."""
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    backbone = make_backbone(tmp_path / "backbone", "bert")
    _, features = make(tmp_path, "bert")
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=3)
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=32
    )
    model = get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "made")
    arguments = ["--backbone", str(backbone), "--output", str(tmp_path / "ours"), "--labels", "a", "b", "c"]
    arguments += ["--set", "data.max_length=24"]
    assert cli.main(["import", str(tmp_path / "made"), "--task", '{"kind": "classification"}', *arguments]) == 0
    assert load_prompt(tmp_path / "ours").labels == ("a", "b", "c")
    with torch.no_grad():
        theirs = model(**padded(features, 0)).logits
    assert apart(our_logits(tmp_path / "ours", features), theirs) < 1e-5


@needs_peft
def test_a_prefix_of_a_causal_model_is_imported_for_generation(tmp_path):
    """The likelihoods of targets, against PEFT's logits, row by row."""
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    backbone = make_writer(tmp_path / "backbone", "llama")
    torch.manual_seed(1)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), config).eval()
    model.save_pretrained(tmp_path / "made")
    rows = [{"source": "w1 w2 w3", "target": "w4 w5"}, {"source": "w6", "target": "w7 w8 w9"}]
    write_jsonl(tmp_path / "data" / "dev.jsonl", rows)
    task = '{"kind": "generation", "metrics": ["exact_match"]}'
    arguments = ["--task", task, "--backbone", str(backbone), "--output", str(tmp_path / "ours")]
    lengths = ["--set", "data.max_length=16", "--set", "data.max_target_length=16"]
    assert cli.main(["import", str(tmp_path / "made"), *arguments, *lengths]) == 0
    exported = load_prompt(tmp_path / "ours")
    attached = attach(exported)
    data = load_task_data(
        exported.task,
        attached.backbone.tokenizer,
        Source(str(tmp_path / "data")),
        exported.encoding,
        splits=("dev",),
        labels=exported.labels,
    )
    features = data.splits["dev"]
    found = our_logits(tmp_path / "ours", features)
    assert features.tags is not None
    for row, (first, last) in enumerate(zip(features.offsets, features.offsets[1:], strict=False)):
        ids, wanted = (torch.from_numpy(part[first:last]).long() for part in (features.tokens, features.tags))
        with torch.no_grad():
            chances = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits[0].log_softmax(-1)
        asked = wanted >= 0
        assert asked.sum() >= 2
        expected = chances[asked].gather(1, wanted[asked, None]).sum()
        assert abs(found[row].item() - expected.item()) < 1e-5


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("family", "kind", "sections", "message"),
    [
        ("bert", "classification", {"prompt": {"layers": [0, 2]}}, "prompt.layers"),
        ("bert", "classification", {"prompt": {"positions": "from_zero"}}, "prompt.positions"),
        ("bert", "classification", {"train": {"also": ["biases"]}}, "train.also"),
        ("bert", "classification", {"head": {"pooling": "mean"}}, "head.pooling 'mean'"),
        ("bert", "classification", {"method": "shallow_prompt"}, "has no prefix"),
        ("bert", "classification", {"method": "head"}, "has no prefix"),
        ("llama", "classification", {}, "has a bias"),
        ("albert", "classification", {}, "has not been compared"),
        ("bert", "span", {}, "leaves token types out"),
        ("llama", "tagging", {}, "TOKEN_CLS on llama"),
    ],
)
def test_what_peft_would_answer_otherwise_is_not_written(tmp_path, family, kind, sections, message):
    prompt, _ = make(tmp_path, family, kind, **sections)
    assert message in refusal(peft.write, tmp_path / "peft", load_prompt(prompt))
    assert not (tmp_path / "peft").exists()


def test_a_window_that_peft_s_prefix_would_leave_is_refused(tmp_path):
    make_backbone(tmp_path / "backbone", "mistral", sliding_window=16)
    make_texts(tmp_path / "data")
    raw = run_json(tmp_path / "backbone", tmp_path / "data", backbone={"dtype": "float32"}, task=TEXTS)
    prompt, _ = exported_prompt(tmp_path, raw)
    assert "set the longest text to 11 tokens" in refusal(peft.write, tmp_path / "peft", load_prompt(prompt))
    (tmp_path / "wide").mkdir()
    wide, _ = make(tmp_path / "wide", "mistral")
    without_bias(wide)
    peft.write(tmp_path / "made", load_prompt(wide))
    told = refusal(import_prompt, tmp_path / "made", settings_for(tmp_path / "backbone"), None, tmp_path / "back")
    assert "set the longest text to 11 tokens" in told


def settings_for(backbone, task=TEXTS):
    raw = {"task": task, "backbone": {"path": str(backbone)}, "data": {"max_length": 24}}
    return resolve(raw, Path("import")).shared


def changed(folder, name, change):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **change}))


@pytest.fixture
def written(tmp_path):
    """A folder in PEFT's format."""
    prompt, _ = make(tmp_path, "bert")
    peft.write(tmp_path / "peft", load_prompt(prompt))
    return tmp_path / "peft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_type": None}, "task_type None"),
        ({"peft_type": "LORA"}, "peft_type LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "prompts at the input"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "the decoder alone"),
        ({"task_type": "FEATURE_EXTRACTION"}, "has no head"),
        ({"num_layers": 4}, "num_layers 4"),
        ({"num_attention_heads": 2}, "num_attention_heads (key/value heads) 2"),
        ({"num_virtual_tokens": 7}, "where [7, any] belongs"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(written, tmp_path, change, message):
    changed(written, "adapter_config.json", change)
    settings = settings_for(tmp_path / "backbone")
    assert message in refusal(import_prompt, written, settings, None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def drop_head(tensors):
    return {name: tensor for name, tensor in tensors.items() if "classifier" not in name}


def transposed(tensors):
    return {**tensors, "base_model.classifier.weight": tensors["base_model.classifier.weight"].T.contiguous()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_head, "no tensor base_model.classifier.weight"),
        (transposed, "is [32, 3]"),
        (lambda t: {**t, "prompt_embeddings": t["prompt_embeddings"].T.contiguous()}, "is [192, 5]"),
        (lambda t: {**t, "prompt_embeddings": t["prompt_embeddings"][:, :128].contiguous()}, "has 128 numbers a token"),
        (lambda t: {**t, "prompt_embeddings": t["prompt_embeddings"] / 0}, "NaN or infinity"),
        (lambda t: {**t, "base_model.bert.x.lora_A.weight": torch.ones(1)}, "would be left out"),
        (lambda t: {**t, "base_model.classifier.weight": t["base_model.classifier.weight"][:2],
                    "base_model.classifier.bias": t["base_model.classifier.bias"][:2]}, "2 outputs"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(written, tmp_path, change, message):
    file = written / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    settings = settings_for(tmp_path / "backbone")
    assert message in refusal(import_prompt, written, settings, None, tmp_path / "back")


def test_a_lost_pooler_another_backbone_and_unnamed_labels_are_refused(written, tmp_path):
    bare = make_backbone(tmp_path / "bare", "bert", with_pooler=False)
    assert "holds no pooler" in refusal(import_prompt, written, settings_for(bare), None, tmp_path / "back")
    deeper = make_backbone(tmp_path / "deeper", "bert", num_hidden_layers=4)
    assert "has 4" in refusal(import_prompt, written, settings_for(deeper), None, tmp_path / "back")
    own = settings_for(tmp_path / "backbone", {"kind": "classification"})
    assert "names no labels" in refusal(import_prompt, written, own, None, tmp_path / "back")
    tags = settings_for(tmp_path / "backbone", OF_KIND["tagging"][0])
    assert "its head answers tasks of kind" in refusal(import_prompt, written, tags, None, tmp_path / "back")
    assert "known are Adapters" in refusal(import_prompt, tmp_path / "data", own, None, tmp_path / "back")
