"""Language heads over tensor ranks and ZeRO-3: the same losses, gradients and texts as one process has."""

from __future__ import annotations

import itertools

import pytest

from prompt_tuning.backbone import language_head
from prompt_tuning.backbone.families import families
from prompt_tuning.errors import UserError
from prompt_tuning.forward.write import sources_of, write
from prompt_tuning.settings.decode import DecodeSection
from tests.support.documents import document_run, make_document, make_questions, make_reader, open_backbone, taught_rows
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.generation import enlarge, make_passages, make_writer, writing_run
from tests.support.ranks import run_ranks
from tests.support.rows import write_rows
from tests.support.tiny import make_language_backbone, run_json, write_jsonl
from tests.support.topologies import exact_norms

TWO_SIDED = tuple(name for name, family in families().items() if family.sites or family.writing)
# Qwen 2's own tokenizer knows none of the tiny words.
WRITE = tuple(
    name for name, family in families().items() if (family.pooling == "last" or name in TWO_SIDED) and name != "qwen2"
)
MASKED = tuple(name for name, family in families().items() if family.pooling != "last" and family.has_language_head)
LONG = ("llama", "gpt2", "gemma3_text", "bart", "t5", "umt5")
SOME = [("writes", kind) for kind in LONG] + [("fills", "roberta"), ("teaches", "llama")]
"""Tried in every topology of two ranks."""
SOME_OVER_FOUR = [("writes", kind) for kind in ("llama", "gpt2", "bart", "t5")]
TOPOLOGIES = {
    "tensor 2": (2, {"tensor": 2}),
    "zero 2": (2, {"zero": True}),
    "tensor 2 x zero 2": (4, {"tensor": 2, "zero": True}),
}
SETTINGS = {
    "greedy": DecodeSection(),
    "beams": DecodeSection(num_beams=3),
    "drawn": DecodeSection(sample=True, temperature=2.0, top_p=0.9),
}
ODD = {"vocab_size": 83}
"""Of which two ranks have 41 and 42 tokens."""


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Run files by (what the head does, model type)."""
    folder = tmp_path_factory.mktemp("heads")
    passages, boolq = make_passages(folder / "passages", {"train": 11, "dev": 7}), write_rows("boolq", folder / "boolq")
    members = [
        {"name": "five", "prompt": {"length": 5}},
        {"name": "two", "prompt": {"length": 2, "positions": "from_zero"}, "train": {"seed": 12, "batch_size": 5}},
    ]
    found = {}
    for kind in WRITE:
        backbone = make_writer(folder / kind, kind, tie_word_embeddings=kind not in ("gpt2", "mt5"), **ODD)
        found["writes", kind] = writing_run(backbone, passages, fleet={"members": members})
    for kind in MASKED:
        raw = run_json(make_language_backbone(folder / kind, kind), boolq, train={"batch_size": 3})
        found["fills", kind] = {**raw, "task": "boolq", "data": {**raw["data"], "max_length": 30, "template": "cloze"}}
    reader, document = make_reader(folder / "reader", **ODD), make_document(folder / "document.txt")
    rows = taught_rows(open_backbone(reader), document)
    write_jsonl(make_questions(folder / "document") / "train.jsonl", rows)
    found["teaches", "llama"] = document_run(reader, folder / "document", document)
    return found


def open_exact(raw, parallel, grid):
    # As many as 41 tokens of vocabulary give 17 at once and 42 give 16, so that ranks which count their own would part.
    language_head.LOGITS_AT_ONCE = 17 * 41
    fleet = open_fleet({**raw, "parallel": parallel}, grid)
    exact_norms(fleet.backbone.model)
    return fleet


def train_and_write(grid, raws, parallel):
    """By model: the course of some steps, and texts written by large prompts, by decode setting."""
    found = {}
    for (what, kind), raw in raws.items():
        fleet = open_exact(raw, parallel, grid)
        course, texts = follow(fleet, 2 if kind in LONG else 1), {}
        if what == "writes":
            enlarge(fleet)
            prompts = [member.prompt for member in fleet.members]
            if kind in ("mt5", "umt5"):  # whose scores nothing divides: their sources would not matter
                for prompt in prompts:
                    prompt.prefix.embedding.detach().mul_(0.3)
            sources = [source for p in (0, 1) for source in sources_of(p, fleet.members[p].splits["dev"])]
            # Of the many, few batches: each builds what `generate` needs anew.
            settings, budget = (SETTINGS, 200) if kind in LONG else ({"greedy": SETTINGS["greedy"]}, 2048)
            texts = {name: write(fleet.backbone, prompts, sources, how, 7, budget) for name, how in settings.items()}
        found[what, kind] = course, texts
    return found


def assert_as_alone(size, raws, parallel):
    (alone,) = run_ranks(1, train_and_write, raws, {})
    ranks = run_ranks(size, train_and_write, raws, parallel)
    for found, key in itertools.product(ranks, alone):
        (course, texts), (expected, wanted) = found[key], alone[key]
        assert_same_course(course, expected, "float64")
        # Which texts share a batch, and so a seed, depends on the data ranks.
        for name in [name for name in wanted if name != "drawn" or "zero" not in parallel]:
            assert texts[name] == wanted[name], (key, name)
        assert texts == ranks[0][key][1], "every rank has the same texts"
        assert not wanted or len({*wanted["greedy"]}) > 4
        assert len(wanted) < 2 or wanted["beams"] != wanted["greedy"] != wanted["drawn"]


@pytest.mark.parametrize("label", TOPOLOGIES)
def test_training_and_writing_over_ranks_equals_one_process(raws, label):
    """Fails if a rank's own logits stand for all, if their gradient is not summed, or if ranks cut chunks of their own."""
    size, parallel = TOPOLOGIES[label]
    assert_as_alone(size, {key: raws[key] for key in (SOME if size == 2 else SOME_OVER_FOUR)}, parallel)


def test_every_language_head_is_shared_out(raws):
    assert_as_alone(2, {key: raw for key, raw in raws.items() if key not in SOME}, {"tensor": 2})


def refusal(grid, raw, parallel):
    try:
        open_fleet({**raw, "parallel": parallel}, grid)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("label", ["tensor 2", "zero 2"])
def test_a_head_that_is_handed_the_embedding_is_refused(raws, tmp_path, label):
    size, parallel = TOPOLOGIES[label]
    raw = {**raws["fills", "bert"]}
    raw["backbone"] = {**raw["backbone"], "path": str(make_language_backbone(tmp_path, "deberta-v2", legacy=False))}
    said = run_ranks(size, refusal, raw, parallel)
    assert all(text is not None and "takes the whole word embedding; use parallel.tensor 1" in text for text in said)
