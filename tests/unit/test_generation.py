"""Generation: tokens of sources and targets, the loss over the language head, texts against a row alone without cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from prompt_tuning.backbone import language_head
from prompt_tuning.backbone.language_head import log_probabilities
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.forward.write import _texts, sources_of, write
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.fleets import assert_same_course, follow, open_fleet
from tests.support.generation import enlarge, make_passages, make_writer, stock_logits, three_members, writing_run
from tests.support.rows import encode
from tests.support.tiny import make_tokenizer

CAUSAL = ("llama", "gpt2", "qwen3", "glm4", "gemma3_text")
OTHERS = ("opt", "gpt_neox", "gpt_bigcode", "phi", "phi3", "cohere", "cohere2", "granite", "gemma2", "gemma", "mistral",
          "starcoder2", "smollm3", "glm")  # fmt: skip
"""But Qwen 2, whose own tokenizer knows none of the tiny words."""
TASK = find_task({"kind": "generation"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_passages(tmp_path_factory.mktemp("passages"))


@pytest.fixture
def tokenizer():
    found = make_tokenizer()
    found.eos_token = "[SEP]"
    return found


def names(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([i for i in ids if i >= 0])


# ---- tokens


def test_the_target_alone_is_asked_for_and_its_end_with_it(tokenizer):
    rows = [("a", {"source": "w1 w2", "target": "w3 w4"}), ("b", {"source": "w5", "target": ""})]
    found = encode(TASK, tokenizer, rows, Encoding(10), ("text",))
    assert names(tokenizer, found.tokens) == ["[CLS]", "w1", "w2", "w3", "w4", "[CLS]", "w5"]
    wanted = [tokenizer.convert_ids_to_tokens(int(i)) if i >= 0 else None for i in found.tags]
    assert wanted == [None, None, "w3", "w4", "[SEP]", None, "[SEP]"]
    assert found.notes.num_source.tolist() == [3, 2] and found.notes.num_labels.tolist() == [3, 1]
    assert found.terms(np.array([0, 1])) == 4 and found.is_labelled


def test_sources_and_targets_are_cut_apart(tokenizer):
    rows = [("a", {"source": "w1 " * 9, "target": "w2 " * 9}), ("b", {"source": "w1", "target": "w2 w2 w2"})]
    found = encode(TASK, tokenizer, rows, Encoding(4, max_target_length=4), ("text",))
    first, second = found.tags[: found.offsets[1]], found.tags[found.offsets[1] :]
    assert names(tokenizer, first) == ["w2"] * 4, "what is cut has no end"
    assert names(tokenizer, second) == ["w2"] * 3 + ["[SEP]"], "what fits has one"
    assert found.notes.num_source.tolist() == [4, 2]
    assert list(found.remarks.values()) == [(1, 2), (1, 2)]


def test_the_separator_stands_between_however_long_the_source(tokenizer):
    task = find_task({"kind": "generation", "separator": " w9 "})
    rows = [("a", {"source": "w1 " * 9, "target": "w2"})]
    found = encode(task, tokenizer, rows, Encoding(5), ("text",))
    assert names(tokenizer, found.tokens) == ["[CLS]", "w1", "w1", "w1", "w9", "w2"]


def test_several_targets_are_all_right_and_the_first_is_trained(tokenizer):
    rows = [("a", {"source": "w1", "target": ["w2", "w3 w4"]}), ("b", {"source": "w1"})]
    found = encode(TASK, tokenizer, rows, Encoding(5), ("text",))
    assert [list(own) for own in found.notes.targets] == [["w2", "w3 w4"], []]
    assert names(tokenizer, found.tags) == ["w2", "[SEP]"] and found.has_label.tolist() == [True, False]


@pytest.mark.parametrize("target", [3, ["w1", 2], []])
def test_targets_that_are_no_texts_are_refused(tokenizer, target):
    with pytest.raises(UserError, match=r"row 1: column `target` is .*, neither a text nor a list of texts"):
        encode(TASK, tokenizer, [("row 1", {"source": "w1", "target": target})], Encoding(5), ("text",))


def test_a_tokenizer_without_end_token_is_refused():
    with pytest.raises(UserError, match="names no end token"):
        encode(TASK, make_tokenizer(), [("a", {"source": "w1", "target": "w2"})], Encoding(5), ("text",))


# ---- loss


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor) and func.overloadpacket.__name__ not in ("t", "transpose", "detach"):
                self.numel = max(self.numel, tensor.numel())
        return found


@pytest.mark.parametrize("is_capped", [False, True])
def test_the_chunked_loss_is_the_plain_one_and_never_holds_all_logits(monkeypatch, is_capped):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 300, dtype=torch.float64).requires_grad_(False)
    if is_capped:
        head = language_head._Scaled(head, type("Config", (), {"final_logit_softcapping": 1.5, "logit_scale": 0.5}))
    hidden, tokens = torch.randn(50, 8, dtype=torch.float64), torch.randint(0, 300, (50,))
    ramp = torch.linspace(-1, 1, 50, dtype=torch.float64)
    whole, mine = (hidden.clone().requires_grad_() for _ in range(2))
    expected = torch.log_softmax(head(whole), -1)[torch.arange(50), tokens]
    (expected * ramp).sum().backward()
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", 300 * 16)
    with Largest() as made:
        found = log_probabilities(head, mine, tokens)
        (found * ramp).sum().backward()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert whole.grad.norm() > 0.1 and (mine.grad - whole.grad).norm() / whole.grad.norm() < 1e-12
    assert made.numel == 300 * 16, "a chunk of logits"


@pytest.mark.parametrize("model_type", CAUSAL)
def test_scores_are_those_of_rows_alone_with_the_prefix_in_a_cache(tmp_path, data, model_type):
    fleet = open_fleet(three_members(tmp_path, data, model_type))
    enlarge(fleet)
    for index, found in split_outputs(fleet, [0, 1, 2], "dev").items():
        member, prompt = fleet.members[index], fleet.members[index].prompt
        features = member.splits["dev"]
        for row in range(len(features)):
            part = slice(features.offsets[row], features.offsets[row + 1])
            tokens, tags = features.tokens[part].tolist(), features.tags[part]
            logits = stock_logits(tmp_path, prompt.prefix.table(), tokens, prompt.text_start)
            places = np.flatnonzero(tags >= 0)
            logs = torch.log_softmax(logits, -1)[places, tags[places].astype(np.int64)]
            assert found[row, 0] == pytest.approx(logs.sum().item(), abs=1e-9)


def test_the_loss_of_a_step_is_the_mean_over_its_target_tokens(tmp_path, data):
    fleet = open_fleet(writing_run(make_writer(tmp_path, "llama"), data))
    (member,) = fleet.members
    features, examples = member.splits["train"], member.step_examples(0)
    logs = fleet.loops["train"].outputs([0])[0][examples, 0]
    loss = fleet.train_step([0]).losses.item()
    assert loss == pytest.approx(-logs.sum() / features.notes.num_labels[examples].sum(), abs=1e-10)
    assert [name for name, _ in member.parameters] == ["prefix.embedding"]


def test_a_member_of_a_fleet_is_itself_alone(tmp_path, data):
    raw = three_members(tmp_path, data)
    together = follow(open_fleet(raw))
    for name in ("five", "two", "seven"):
        assert_same_course(together, follow(open_fleet(raw, only=name)), "float64", [name])
    assert together.losses["five"][-1] < together.losses["five"][0] - 0.1


# ---- texts


def alone(folder, prompt, source, most, end):
    """Likeliest tokens, one forward of the whole row for each."""
    row = list(source)
    while len(row) < len(source) + most:
        table = None if prompt.prefix is None else prompt.prefix.table()
        row.append(int(stock_logits(folder, table, row, prompt.text_start)[-1].argmax()))
        if row[-1] == end:
            break
    return [token for token in row[len(source) :] if token != end]


def beams_alone(folder, prompt, source, most, end, width):
    """The best of ``width`` beams by mean log probability of its tokens, found without a cache."""
    beams, done = [(0.0, [])], []
    for _ in range(most):
        steps = []
        for score, written in beams:
            logits = stock_logits(folder, prompt.prefix.table(), [*source, *written], prompt.text_start)[-1]
            logs = torch.log_softmax(logits, -1)
            steps += [(score + float(logs[i]), [*written, int(i)]) for i in logs.topk(2 * width).indices]
        steps.sort(key=lambda step: -step[0])
        done += [(score / len(own), own) for score, own in steps[:width] if own[-1] == end]
        beams = [(score, own) for score, own in steps[: 2 * width] if own[-1] != end][:width]
        # As transformers without early stopping by a heuristic: no running beam can become better than the worst done.
        if len(done) >= width and beams[0][0] / len(beams[0][1]) <= sorted(done, reverse=True)[width - 1][0]:
            break
    done += [(score / len(own), own) for score, own in beams]
    return [token for token in max(done, key=lambda own: own[0])[1] if token != end]


@pytest.mark.parametrize("model_type", CAUSAL + OTHERS)
def test_greedy_texts_of_mixed_prompts_are_those_of_rows_alone(tmp_path, data, model_type):
    fleet = open_fleet(three_members(tmp_path, data, model_type))
    enlarge(fleet)
    tokenizer = fleet.backbone.tokenizer
    prompts = [member.prompt for member in fleet.members]
    sources = [source for p in range(3) for source in sources_of(p, fleet.members[p].splits["dev"])]
    texts = write(fleet.backbone, prompts, sources, DecodeSection(), 9, 2048)
    expected = [
        tokenizer.decode(alone(tmp_path, prompts[p], row.tolist(), 9, tokenizer.eos_token_id), skip_special_tokens=True)
        for p, row in sources
    ]
    assert texts == expected and len(set(texts)) > 6 and max(len(text.split()) for text in texts) > 4
    assert texts == write(fleet.backbone, prompts, sources, DecodeSection(), 9, 1), "one at a time"


@pytest.mark.parametrize("model_type", CAUSAL)
def test_beams_are_those_of_rows_alone(tmp_path, data, model_type):
    fleet = open_fleet(three_members(tmp_path, data, model_type))
    enlarge(fleet)
    tokenizer, prompts = fleet.backbone.tokenizer, [member.prompt for member in fleet.members]
    sources = [sources_of(p, fleet.members[p].splits["dev"])[place] for p in range(3) for place in (1, 4)]
    texts = write(fleet.backbone, prompts, sources, DecodeSection(num_beams=3), 6, 2048)
    for text, (p, row) in zip(texts, sources, strict=True):
        own = beams_alone(tmp_path, prompts[p], row.tolist(), 6, tokenizer.eos_token_id, 3)
        assert text == tokenizer.decode(own, skip_special_tokens=True)
    assert texts != write(fleet.backbone, prompts, sources, DecodeSection(), 6, 2048)


def test_peft_writes_the_same_behind_the_same_numbers(tmp_path, data):
    peft = pytest.importorskip("peft")
    raw = writing_run(make_writer(tmp_path, "llama"), data)
    raw["backbone"]["dtype"] = "float32"
    fleet = open_fleet(raw)
    enlarge(fleet)
    (member,) = fleet.members
    sources = sources_of(0, member.splits["dev"])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=member.prompt.length)
    theirs = peft.get_peft_model(stock, config).eval()
    table = member.prompt.prefix.table().detach()  # [P, N, 2, G, D], which is PEFT's flat order
    theirs.prompt_encoder.default.embedding.weight.data.copy_(table.flatten(1))
    longest, pad = max(len(row) for _, row in sources), fleet.backbone.description.pad_token
    ids = torch.tensor([[pad] * (longest - len(row)) + row.tolist() for _, row in sources])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for _, row in sources])
    tokenizer = fleet.backbone.tokenizer
    for beams in (1, 3):
        found = theirs.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=7, num_beams=beams, pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id, do_sample=False,
        )[:, longest:]  # fmt: skip
        wanted = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
        own = write(fleet.backbone, [member.prompt], sources, DecodeSection(num_beams=beams), 7, 2048)
        assert own == wanted and len(set(own)) > 3


def test_writing_leaves_the_backbone_as_it_was(tmp_path, data):
    """A step after an evaluation is the step without one."""
    first, second = (open_fleet(three_members(tmp_path, data)) for _ in range(2))
    sources = sources_of(0, first.members[0].splits["dev"])
    write(first.backbone, [first.members[0].prompt], sources, DecodeSection(), 4, 512)
    assert first.backbone.model.training
    assert torch.equal(first.train_step([0, 1, 2]).losses, second.train_step([0, 1, 2]).losses)


def test_the_head_reads_states_that_lie_end_to_end(tmp_path, data):
    """Behind texts of several tokens the last states do not, and torch would copy the weights for each of them: seconds in bfloat16."""
    fleet, seen = open_fleet(three_members(tmp_path, data)), []
    (output,) = getattr(fleet.backbone.language_head, "head", fleet.backbone.language_head).children()
    output.register_forward_pre_hook(lambda _, inputs: seen.append((tuple(inputs[0].shape), inputs[0].is_contiguous())))
    sources = [own for own in sources_of(0, fleet.members[0].splits["dev"]) if len(own[1]) > 1]
    write(fleet.backbone, [fleet.members[0].prompt], sources, DecodeSection(), 3, 512)
    assert len(seen) == 3 and {shape[:2] for shape, _ in seen} == {(len(sources), 1)}
    assert all(is_contiguous for _, is_contiguous in seen)


def test_drawn_texts_follow_from_the_seed(tmp_path, data):
    fleet = open_fleet(three_members(tmp_path, data))
    prompts, sources = [fleet.members[0].prompt], sources_of(0, fleet.members[0].splits["dev"])
    settings = DecodeSection(sample=True, temperature=2.0, top_p=0.9)
    texts = [write(fleet.backbone, prompts, sources, settings, 6, 512, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_writing_ends_at_the_stop_text(tmp_path, data):
    fleet = open_fleet(three_members(tmp_path, data))
    enlarge(fleet)
    prompts, sources = [fleet.members[0].prompt], sources_of(0, fleet.members[0].splits["dev"])
    whole = write(fleet.backbone, prompts, sources, DecodeSection(), 8, 512)
    stop = whole[0].split()[2]
    cut = write(fleet.backbone, prompts, sources, DecodeSection(stop=[stop]), 8, 512)
    assert cut == [text.partition(stop)[0].strip() for text in whole] and cut != whole


def test_what_stands_behind_the_end_is_no_text(tmp_path, data):
    """A row that has ended is filled with padding, for which some tokenizers have a plain word."""
    fleet = open_fleet(writing_run(make_writer(tmp_path, "llama"), data))
    ids = np.array([fleet.backbone.tokenizer.convert_tokens_to_ids(["w1", "[SEP]", "w2"])])
    assert [text.text for text in _texts(fleet.backbone, ids, ())] == ["w1"]


def test_texts_know_how_many_tokens_they_have_and_whether_they_ended(tmp_path, data):
    """Padding is no token of a text that ended, and its word is one of a text that did not."""
    fleet = open_fleet(writing_run(make_writer(tmp_path, "llama"), data))
    pad = fleet.backbone.description.pad_token
    w1, end, w2 = fleet.backbone.tokenizer.convert_tokens_to_ids(["w1", "[SEP]", "w2"])
    for row, stop, expected in (
        ([w1, w2, end, pad], (), (2, True)),
        ([w1, w2, w1, w2], (), (4, False)),
        ([w1, w2, w1, pad], (), (4, False)),
        ([w1, w2, pad, pad], ("w2",), (2, True)),
        ([w1, w2, w1, w2], ("w2",), (4, True)),
    ):
        (found,) = _texts(fleet.backbone, np.array([row]), stop)
        assert (found.num_tokens, found.has_ended) == expected, row
