"""Graphs whose prompts ask every token, or compare choices: onnxruntime and the clients of the docs answer as torch does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prompt_tuning import attach, load_prompt
from prompt_tuning.onnx import eight_bits
from prompt_tuning.onnx.check import graph_logits, packed_logits
from prompt_tuning.onnx.write import write_onnx
from tests.support.served import export
from tests.support.tiny import (
    WORDS,
    make_backbone,
    make_copa,
    make_questions,
    make_tags,
    make_texts,
    run_json,
    write_jsonl,
)

onnxruntime = pytest.importorskip("onnxruntime")
DOCS = Path(__file__).parents[2] / "docs" / "onnx.md"
SPAN = {"kind": "span", "name": "questions", "has_null": True}
CHOICE = {"kind": "choice", "name": "plausible", "text": "premise", "choices": ["choice1", "choice2"]}


def put_byte_tokenizer(backbone):
    """Bytes, which begin a word inside a sentence with the blank before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(backbone)


def make_prompts(folder, family):
    """Prompts of unequal lengths that tag words and find answers, one with more outputs; or, apart, of texts and of choices."""
    is_byte = family == "roberta"
    backbone = make_backbone(
        folder / "backbone", family, num_hidden_layers=2, vocab_size=300, max_position_embeddings=96
    )
    if is_byte:
        put_byte_tokenizer(backbone)
    tags = make_tags(folder / "tags")
    task, data = {"kind": "tagging", "name": "tags"}, {"max_length": 40 if is_byte else 9}
    runs = {
        "tags": run_json(backbone, tags, task=task, data=data),
        "more": run_json(
            backbone,
            tags,
            task={**task, "labels": ["O", "B-five", "I-five", "B-x", "I-x"]},
            data=data,
            prompt={"length": 2, "positions": "from_zero", "layers": [1]},
        ),
        "questions": run_json(
            backbone,
            make_questions(folder / "questions"),
            task=SPAN,
            data={"stride": 4, "max_length": 60 if is_byte else 20},
        ),
    }
    for name, raw in runs.items():
        export(folder, name, raw)
    return {name: load_prompt(folder / "prompts" / name) for name in runs}


@pytest.fixture(scope="module", params=["bert", "roberta", "llama"])
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    prompts = make_prompts(folder, request.param)
    both = [{**a, **b} for a, b in zip(draw_rows("tags", 8), draw_rows("questions", 8), strict=True)]
    rows = str(write_jsonl(folder / "rows.jsonl", both)) if request.param == "bert" else None
    said = write_onnx(folder / "onnx", prompts, int8=rows)
    return SimpleNamespace(
        family=request.param,
        folder=folder / "onnx",
        said=said,
        prompts=prompts,
        model=attach(list(prompts.values())),
        session=onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]),
        about=json.loads((folder / "onnx" / "model.json").read_text()),
    )


def draw_words(chance, most):
    return list(chance.choice(WORDS, size=chance.integers(1, most)))


def draw_rows(name, count, seed=3):
    """Rows of a prompt, some longer than it takes."""
    chance = np.random.default_rng(seed)
    if name == "questions":
        texts = [(" ".join(draw_words(chance, 14)), " ".join(draw_words(chance, 40))) for _ in range(count)]
        return [{"question": question, "context": context} for question, context in texts]
    return [{"words": [str(word) for word in draw_words(chance, 14)]} for _ in range(count)]


def test_every_token_answers_as_torch_in_float64(written):
    features = [
        written.model.question(place, [("a", row) for row in draw_rows(name, 12, place)]).features
        for place, name in enumerate(written.prompts)
    ]
    expected = packed_logits(written.model, features)
    found = graph_logits(written.session, features, [3, 5, 2], np.random.default_rng(1))
    for own, wanted, encoded in zip(found, expected, features, strict=True):
        assert own.shape == wanted.shape == (len(encoded.tokens), own.shape[1])
        assert np.ptp(wanted) > 0.1 and np.abs(own - wanted).max() < 1e-4
    whole = graph_logits(written.session, features, [5, 5, 5], np.random.default_rng(1))
    assert np.isneginf(whole[0][:, 3:]).all() and np.isneginf(whole[2][:, 2:]).all()


def test_8_bit_weights_say_how_many_tags_and_answers_stay(written):
    if written.family == "bert":
        words = sum(len(row["words"]) for row in draw_rows("tags", 8))
        own = written.about["int8"]["prompts"]
        assert [own[name]["answers"] for name in ("tags", "more", "questions")] == [words, words, 8]
        assert all(one["same_answers"] > 0.5 for one in own.values())
        assert any(f"% of {words} answers equal" in line for line in written.said)


def run_client(folder, lines):
    """What the docs' clients print, without torch, transformers or this program."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join([blocks[0][: blocks[0].rindex("print(")], *blocks[1:]])
    code = code.replace('"onnx/tickets"', repr(str(folder)))
    code += "\nimport sys\nassert not {'torch', 'transformers', 'prompt_tuning'} & set(sys.modules)\n" + lines
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_clients_of_the_docs_tag_words_and_find_answers_as_predict_does(written):
    tagged = [(name, row) for name in ("tags", "more") for row in draw_rows(name, 12)]
    asked = draw_rows("questions", 12)
    names, rows = [name for name, _ in tagged], [row for _, row in tagged]
    if written.family == "roberta":
        assert written.about["prompts"][0]["lead"] == " "
    found = run_client(
        written.folder,
        f"print(json.dumps([tags({rows}, {names}), [best_answer(row, 'questions') for row in {asked}]]))",
    )
    places = [list(written.prompts).index(name) for name in names]
    assert found[0] == [own["tags"] for own in written.model.predict(rows, places)]
    assert len({tag for own in found[0] for tag in own}) > 2
    wanted = [own["answer"] for own in written.model.predict(asked, 2)]
    assert found[1] == wanted and len(set(wanted)) > 3


def test_choices_are_rows_of_which_the_largest_wins(tmp_path):
    backbone = make_backbone(tmp_path / "backbone", "bert", num_hidden_layers=2)
    export(tmp_path, "which", run_json(backbone, make_copa(tmp_path / "copa"), task=CHOICE))
    export(tmp_path, "texts", run_json(backbone, make_texts(tmp_path / "texts")))
    prompts = {name: load_prompt(tmp_path / "prompts" / name) for name in ("texts", "which")}
    chance = np.random.default_rng(5)
    rows = [{name: " ".join(draw_words(chance, 9)) for name in ("premise", "choice1", "choice2")} for _ in range(12)]
    file = write_jsonl(tmp_path / "rows.jsonl", [{**row, "text": row["premise"]} for row in rows])
    said = write_onnx(tmp_path / "onnx", prompts, int8=str(file))
    assert "which: " in said[-1] and "of 12 answers equal" in said[-1]
    found = run_client(tmp_path / "onnx", f"print(json.dumps([choose(row, 'which') for row in {rows}]))")
    wanted = [own["label"] for own in attach(prompts["which"]).predict(rows)]
    assert found == wanted and set(wanted) == {"choice1", "choice2"}


def test_choices_that_a_row_does_not_have_never_win_with_8_bits(tmp_path):
    """Stand-ins run in their place, and are left out of what is compared."""
    backbone = make_backbone(tmp_path / "backbone", "bert", num_hidden_layers=2)
    task = {"kind": "choice", "name": "listed", "text": "premise", "choices": ["all"], "most_choices": 3}
    chance, rows = np.random.default_rng(6), []
    for count in (2, 3, 2, 2):
        rows.append({"premise": "w1 w2", "all": [" ".join(draw_words(chance, 5)) for _ in range(count)], "label": 0})
    for split in ("train", "dev"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    export(tmp_path, "listed", run_json(backbone, tmp_path / "data", task=task))
    exported = load_prompt(tmp_path / "prompts" / "listed")
    encoded = attach(exported).question(0, [("a", row) for row in rows]).features
    logits = np.zeros((12, 1))
    logits[2::3] = 1
    assert eight_bits.answers_of(exported, encoded, logits) == ["0", "2", "0", "0"]
