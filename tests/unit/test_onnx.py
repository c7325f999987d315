"""One ONNX graph of several prompts: onnxruntime answers as torch does, and what a graph cannot do is refused in a sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prompt_tuning import attach, load_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.onnx import write
from prompt_tuning.onnx.check import check, graph_logits, packed_logits
from prompt_tuning.onnx.graph import Graph, padded_attention, takes_types
from prompt_tuning.onnx.write import write_onnx
from tests.support.served import export
from tests.support.tiny import (
    WORDS,
    make_backbone,
    make_texts,
    make_values,
    run_json,
    write_jsonl,
)

onnxruntime = pytest.importorskip("onnxruntime")
NAMES = ("five", "two", "mean", "values")
ROOT = Path(__file__).parents[2]


def make_prompts(folder, family):
    """Prompts of unequal lengths, in some layers, from zero, with a mean, and of regression; one class of outputs more."""
    backbone = make_backbone(folder / "backbone", family, num_hidden_layers=2)
    texts, four = make_texts(folder / "texts"), make_texts(folder / "four", labels=4)
    runs = {
        "five": run_json(backbone, texts, prompt={"length": 5}),
        "two": run_json(
            backbone, four, prompt={"length": 2, "positions": "from_zero", "layers": [1]}, train={"seed": 5}
        ),
        "mean": run_json(backbone, texts, method="head", head={"pooling": "mean"}),
        "values": run_json(backbone, make_values(folder / "values"), task={"kind": "regression", "name": "values"}),
    }
    for name, raw in runs.items():
        export(folder, name, raw)
    return {name: load_prompt(folder / "prompts" / name) for name in NAMES}


@pytest.fixture(scope="module", params=["bert", "roberta", "llama"])
def written(request, tmp_path_factory):
    """A graph in onnxruntime, and its prompts in float64 torch, with which nothing of it is computed."""
    folder = tmp_path_factory.mktemp(request.param)
    prompts = make_prompts(folder, request.param)
    rows = write_jsonl(folder / "rows.jsonl", [{"text": " ".join(WORDS[i : 2 * i + 1])} for i in range(1, 12)])
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "roberta":
            patch.setattr(write, "ONE_FILE", 0)  # as of a large one
        said = write_onnx(folder / "made", prompts, int8=str(rows) if request.param == "bert" else None)
    shutil.move(folder / "made", folder / "onnx")
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    return SimpleNamespace(
        family=request.param,
        folder=folder / "onnx",
        prompts=prompts,
        model=attach(list(prompts.values())),
        session=session,
        said=said,
        about=json.loads((folder / "onnx" / "model.json").read_text()),
    )


def draw_rows(count, seed=3):
    chance = np.random.default_rng(seed)
    return [{"text": " ".join(chance.choice(WORDS, size=n % 30 + 1))} for n in range(count)]


def test_every_length_and_mix_answers_as_torch_in_float64(written):
    assert written.model.backbone.model.dtype == torch.float64
    features = [written.model.question(p, [("a", row) for row in draw_rows(30, p)]).features for p in range(len(NAMES))]
    assert {1 + 2 <= int(n) <= 24 for own in features for n in np.diff(own.offsets)} == {True}
    expected = packed_logits(written.model, features)
    found = graph_logits(written.session, features, [3, 4, 3, 1], np.random.default_rng(1))
    for own, wanted in zip(found, expected, strict=True):
        assert np.ptp(wanted) > 0.1 and np.abs(own - wanted).max() < 1e-4
    # Prompts are told apart by more than the tolerance.
    assert np.abs(expected[0] - expected[2]).max() > 0.1


def test_a_row_of_one_token_alone_answers_as_torch(written):
    (token,) = written.model.backbone.tokenizer("w7", add_special_tokens=False)["input_ids"]
    fed = {"input_ids": [[token]], "attention_mask": [[1]], "token_type_ids": [[0]], "prompt_ids": [1]}
    names = [own.name for own in written.session.get_inputs()]
    (found,) = written.session.run(None, {name: np.array(fed[name], np.int64) for name in names})
    (features,) = [written.model.question(1, [("a", {"text": "w7"})]).features]
    alone = replace(
        features,
        tokens=np.array([token]),
        token_types=None if features.token_types is None else np.array([0]),
        offsets=np.array([0, 1]),
    )
    expected = packed_logits(
        written.model, [written.model.question(0, [("a", {"text": "w7"})]).features, alone, alone, alone]
    )
    assert np.abs(found[0] - expected[1][0]).max() < 1e-4


def test_outputs_that_a_prompt_does_not_have_are_never_the_largest(written):
    features = [written.model.question(p, [("a", {"text": "w1 w2"})]).features for p in range(len(NAMES))]
    whole = graph_logits(written.session, features, [4, 4, 4, 4], np.random.default_rng(1))
    assert all(np.isneginf(whole[p][:, count:]).all() for p, count in enumerate((3, 4, 3, 1)))


def test_the_folder_says_what_a_client_needs(written):
    about = written.about
    assert [own["name"] for own in about["prompts"]] == list(NAMES)
    assert about["prompts"][1]["labels"] == list(written.prompts["two"].labels)
    assert about["checked"]["largest_difference"] < 1e-5 and about["versions"]["onnxruntime"]
    types = ["token_type_ids"] if written.family == "bert" else []
    assert sorted(own.name for own in written.session.get_inputs()) == sorted(
        ["input_ids", "attention_mask", "prompt_ids", *types]
    )


def test_weights_of_a_large_model_stand_in_a_file_that_moves_with_it(written):
    assert (written.folder / "model.onnx.data").exists() == (written.family == "roberta")


def test_the_client_of_the_docs_needs_neither_torch_nor_this_program(written, tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    rows = draw_rows(12)
    names = [NAMES[i % len(NAMES)] for i in range(len(rows))]
    code = code[: code.rindex("print(")].replace('"onnx/tickets"', repr(str(written.folder)))
    code += "\nimport sys\nassert not {'torch', 'transformers', 'prompt_tuning'} & set(sys.modules)\n"
    code += f"print(json.dumps(answers({rows}, {names})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = written.model.predict(rows, [NAMES.index(name) for name in names])
    for found, wanted in zip(json.loads(done.stdout), answers, strict=True):
        assert found == wanted["label"] if "label" in wanted else abs(found - wanted["value"]) < 1e-4


def test_8_bit_weights_say_how_many_answers_stay(written):
    if written.family != "bert":
        assert "int8" not in written.about and not (written.folder / "model.int8.onnx").exists()
        return
    own = written.about["int8"]["prompts"]
    assert set(own) == set(NAMES) and "same_answers" not in own["values"]
    assert own["five"]["rows"] == 11 and own["five"]["same_answers"] > 0.7
    assert all(1e-4 < one["largest_difference"] < 0.5 for one in own.values())
    text = "\n".join(written.said)
    assert f"five: {own['five']['same_answers']:.1%} of 11 answers equal" in text and "rows.jsonl" in text


def test_large_tables_are_kept_in_8_bits(written, tmp_path):
    import onnx

    from prompt_tuning.onnx import eight_bits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eight_bits, "_LARGE", 1000)
        eight_bits.write_int8(written.folder / "model.onnx", tmp_path / "small.onnx", True)
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer}
    table = "embed_tokens.weight" if written.family == "llama" else "word_embeddings.weight"
    assert [kind for name, kind in stored.items() if f"{table}.int8" in name] == [onnx.TensorProto.INT8]
    assert not [name for name in stored if name.endswith(table)]
    found = eight_bits.agreement(
        tmp_path / "small.onnx",
        written.model,
        {
            name: written.model.question(p, [("a", row) for row in draw_rows(9)]).features
            for p, name in enumerate(NAMES)
        },
    )
    assert all(own["largest_difference"] < 0.5 for own in found["prompts"].values())


def test_a_graph_that_answers_otherwise_is_not_written(written, tmp_path, monkeypatch):
    """The same graph under prompts in another order."""

    def trace(file, model, has_types):
        for own in written.folder.glob("model.onnx*"):
            shutil.copy(own, file.parent)

    monkeypatch.setattr(write, "_trace", trace)
    write_onnx(tmp_path / "right", written.prompts)
    swapped = {name: written.prompts[name] for name in ("five", "mean", "two", "values")}
    with pytest.raises(
        UserError, match=r"onnxruntime's logits are .* off torch's, more than 0.0001, so that nothing is"
    ):
        write_onnx(tmp_path / "wrong", swapped)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_nan_is_not_within_any_tolerance(written):
    class Broken:
        def get_inputs(self):
            return written.session.get_inputs()

        def run(self, outputs, fed):
            (logits,) = written.session.run(outputs, fed)
            return (np.where(fed["prompt_ids"][:, None] == 3, np.nan, logits),)

    with pytest.raises(UserError, match="are nan off torch's"):
        check(Broken(), written.model, takes_types(written.model.backbone), Path("model.onnx"))


# Families, as torch computes the graph: windows, capped scores, shared layers, fused keys


@pytest.mark.parametrize("family", ["albert", "modernbert", "distilbert", "gpt2", "gemma2", "opt", "glm4", "electra"])
def test_the_padded_forward_equals_the_packed_one(family, tmp_path):
    changes = {"sliding_window": 4} if family == "gemma2" else {}
    backbone, texts = make_backbone(tmp_path / "backbone", family, **changes), make_texts(tmp_path / "texts")
    export(tmp_path, "five", run_json(backbone, texts, prompt={"length": 5}))
    export(tmp_path, "one", run_json(backbone, texts, prompt={"length": 1}, head={"pooling": "last"}))
    model = attach([load_prompt(tmp_path / "prompts" / name) for name in ("five", "one")])
    graph = Graph(model.backbone, [own.prompt for own in model.prompts]).double().eval()
    inputs = [SimpleNamespace(name=name) for name in ("input_ids", "attention_mask", "prompt_ids")]
    if takes_types(model.backbone):
        inputs.append(SimpleNamespace(name="token_type_ids"))

    def run(outputs, fed):
        with torch.no_grad(), padded_attention(model.backbone):
            return (graph(**{name: torch.from_numpy(value) for name, value in fed.items()}).numpy(),)

    features = [model.question(p, [("a", row) for row in draw_rows(24, p)]).features for p in range(2)]
    expected = packed_logits(model, features)
    session = SimpleNamespace(get_inputs=lambda: inputs, run=run)
    found = graph_logits(session, features, [3, 3], np.random.default_rng(2))
    assert np.ptp(expected[0]) > 0.1
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) < 1e-5  # prompts in float32


def test_the_benchmark_compares_a_graph_with_torch(written):
    command = [sys.executable, "benchmarks/onnx_speed.py", written.folder.parent / "prompts", written.folder]
    options = ["--rows", written.folder.parent / "rows.jsonl", "--batch-rows", "1", "3", "--repeats", "1"]
    if written.family == "roberta":  # one is enough
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        one, three = json.loads(done.stdout)
        assert (one["rows"], three["rows"]) == (1, 3)
        assert max(own["largest_difference"]["model"] for own in (one, three)) < 1e-4
        assert set(three["milliseconds"]) == {"torch", "model"}
