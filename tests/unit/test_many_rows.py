"""Predictions of many rows at once take no more than their answers do."""

from __future__ import annotations

import pytest

from model_parallel.grid import Grid
from prompt_tuning.data import encode
from prompt_tuning.predict import attach
from prompt_tuning.prompt import export
from prompt_tuning.settings.members import resolve
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_questions, make_texts, run_json

SPAN = {"task": {"kind": "span", "name": "questions", "has_null": True}, "data": {"stride": 4, "max_length": 20}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """An untrained prompt of texts, and one of questions over windows of contexts."""
    folder = tmp_path_factory.mktemp("many")
    backbone, found = make_backbone(folder / "backbone", "bert"), []
    for name, raw in (
        ("texts", run_json(backbone, make_texts(folder / "texts"))),
        ("questions", run_json(backbone, make_questions(folder / "questions"), **SPAN)),
    ):
        export.write_prompt(folder / name, *exported(raw, folder))
        found.append(export.load_prompt(folder / name))
    return found


def exported(raw, folder):
    member = build_fleet(resolve(raw, folder / "run.json"), Grid()).members[0]
    return member.prompt, member.description()


def predict_in_chunks(model, rows, sizes, monkeypatch):
    """Three rows a chunk; how many rows each had goes to ``sizes``."""
    real = encode._encode

    def counted(recipe, some):
        sizes.append(len(some))
        return real(recipe, some)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "CHUNK", 3)
        patch.setattr(encode, "_encode", counted)
        return model.predict(rows)


def test_many_rows_are_tokenised_in_chunks_and_answered_as_one_by_one(prompts, monkeypatch):
    texts, questions = ([{"text": f"w{i} w{2 * i}"} for i in range(7)], [])
    for i in range(5):
        context = " ".join(f"w{(i + j) % 60}" for j in range(12 + 7 * i))
        questions.append({"id": str(i), "question": f"w{i}", "context": context, "answers": []})
    for prompt, rows in zip(prompts, (texts, questions), strict=True):
        model = attach(prompt)
        alone = [model.predict([row])[0] for row in rows]
        sizes = []
        together = predict_in_chunks(model, rows, sizes, monkeypatch)
        assert max(sizes) == 3 and sum(sizes) == len(rows)
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            if "label" in one:
                assert one["label"] == other["label"]
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
            else:
                assert one["answer"] == other["answer"]


def test_a_task_is_looked_for_once_however_many_rows_there_are(prompts, monkeypatch):
    model, asked = attach(prompts[0]), []
    monkeypatch.setattr(export, "find_task", lambda task: asked.append(task))
    model.predict([{"text": f"w{i}"} for i in range(5)])
    assert not asked
