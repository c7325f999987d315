"""Encoder-decoders that write texts, with a prefix at all three attentions, against transformers' models row by row."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from launcher import cli
from launcher import run as worker
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.forward.batch import Items, Pool, PromptShapes
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.run import member_logits
from prompt_tuning.forward.write import sources_of, write
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.settings.decode import DecodeSection
from tests.support.disentangled import in_full_precision
from tests.support.fleets import open_fleet
from tests.support.generation import enlarge, make_passages, make_writer, three_members
from tests.support.tiny import make_backbone, make_texts, run_json
from tests.support.two_sided import beams, greedy, rows_of, start_of, stock_logits

TYPES = ("bart", "t5", "mt5", "umt5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_passages(tmp_path_factory.mktemp("passages"))


@pytest.fixture
def raw(tmp_path, data):
    return three_members(tmp_path / "backbone", data, "bart")


@pytest.fixture(params=TYPES)
def each(tmp_path, data, monkeypatch, request):
    """A run file for each model type."""
    in_full_precision(monkeypatch)
    return three_members(tmp_path / "backbone", data, request.param)


def test_sources_and_targets_keep_the_tokens_around_a_text(raw):
    features = open_fleet(raw).members[0].splits["dev"]
    tokenizer = AutoTokenizer.from_pretrained(raw["backbone"]["path"])
    for _, source, target in rows_of(features):
        for names in map(tokenizer.convert_ids_to_tokens, (source, target)):
            assert names[0] == "[CLS]" and names[-1] == "[SEP]" and "[SEP]" not in names[:-1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_equal_transformers_model_row_by_row(tmp_path, each, attention):
    fleet = open_fleet({**each, "backbone": {**each["backbone"], "attention": attention}})
    enlarge(fleet)
    found = split_outputs(fleet, [0, 1, 2], "dev")
    prompts = [member.prompt for member in fleet.members]
    pool = Pool([member.splits["dev"] for member in fleet.members], PromptShapes.of(prompts))
    count = len(fleet.members[0].splits["dev"])
    items = Items.of([(i, torch.arange(count).numpy(), 1.0) for i in range(3)])
    batch = lay_out(pool, items, 1, torch.device("cpu"))
    ramp = torch.linspace(-1, 1, count, dtype=torch.float64)
    logits = member_logits(fleet.backbone, prompts, batch)
    sum((own[:, 0] * ramp).sum() for own in logits).backward()
    start = start_of(tmp_path / "backbone")
    for index, member in enumerate(fleet.members):
        prompt = member.prompt
        table = prompt.prefix.table().detach().requires_grad_()
        expected = []
        for _, source, target in rows_of(member.splits["dev"]):
            rows = stock_logits(tmp_path / "backbone", table, source, [start, *target[:-1]]).log_softmax(-1)
            expected.append(rows[torch.arange(len(target)), torch.tensor(target)].sum())
        (torch.stack(expected) * ramp).sum().backward()
        assert torch.allclose(logits[index][:, 0], torch.stack(expected), rtol=0, atol=1e-9)
        assert torch.allclose(torch.as_tensor(found[index])[:, 0], torch.stack(expected), rtol=0, atol=1e-4)
        mine, theirs = prompt.prefix.embedding.grad.view(table.shape), table.grad
        for level in range(table.shape[1]):
            assert theirs[:, level].norm() > 1e-6, "every site matters"
            assert (mine[:, level] - theirs[:, level]).norm() / theirs[:, level].norm() < 1e-9


@pytest.mark.parametrize("width", [1, 3])
@torch.no_grad()
def test_texts_of_mixed_prompts_in_a_batch_are_those_of_rows_alone(tmp_path, each, width):
    fleet = open_fleet(each)
    enlarge(fleet)
    prompts = [member.prompt for member in fleet.members]
    for prompt in prompts:
        prompt.prefix.embedding.mul_(0.3)  # so that sources matter too
    sources = [own for place, member in enumerate(fleet.members) for own in sources_of(place, member.splits["dev"])]
    settings = DecodeSection(num_beams=width, max_new_tokens=6)
    texts = write(fleet.backbone, prompts, sources, settings, 6, 10**6)
    tokenizer, folder = fleet.backbone.tokenizer, tmp_path / "backbone"
    expected = []
    for place, tokens in sources:
        table = prompts[place].prefix.table().double()
        if width == 1:
            ids = greedy(folder, table, tokens.tolist(), 6)
        else:
            ids = beams(folder, table, tokens.tolist(), 6, width)
        ids = ids[: ids.index(3)] if 3 in ids else ids
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert texts == expected
    assert len(set(texts)) > 2, "texts follow sources and prompts"


SITES = {"five": ["encoder"], "two": ["cross", "decoder"], "seven": ["cross"]}
REACHED = {
    "bart": {"five": (0, 1, 2), "two": (3, 4, 5, 6), "seven": (5, 6)},
    "umt5": {"five": (0, 1, 2), "two": (3, 4, 5, 6), "seven": (5, 6)},
}


@pytest.mark.parametrize("model_type", REACHED)
def test_a_site_without_prefix_gets_nothing_in_front(tmp_path, data, monkeypatch, model_type):
    """Prompts at different sites share a batch, in training and where they write."""
    in_full_precision(monkeypatch)
    raw = three_members(tmp_path / "backbone", data, model_type)
    for member in raw["fleet"]["members"]:
        member["prompt"]["sites"] = SITES[member["name"]]
    fleet = open_fleet(raw)
    enlarge(fleet)
    folder, prompts = tmp_path / "backbone", [member.prompt for member in fleet.members]
    start, reached = start_of(folder), [REACHED[model_type][member.name] for member in fleet.members]
    assert [prompt.prefix.layers for prompt in prompts] == reached
    found = split_outputs(fleet, [0, 1, 2], "dev")
    for index, member in enumerate(fleet.members):
        table = prompts[index].prefix.table().detach().double()
        for row, source, target in rows_of(member.splits["dev"]):
            rows = stock_logits(folder, table, source, [start, *target[:-1]], reached[index]).log_softmax(-1)
            expected = float(rows[torch.arange(len(target)), torch.tensor(target)].sum().detach())
            assert float(found[index][row][0]) == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        sources = [own for place, member in enumerate(fleet.members) for own in sources_of(place, member.splits["dev"])]
        texts = write(fleet.backbone, prompts, sources, DecodeSection(max_new_tokens=6), 6, 10**6)
        for text, (place, tokens) in zip(texts, sources, strict=True):
            table = prompts[place].prefix.table().double()
            ids = greedy(folder, table, tokens.tolist(), 6, reached[place])
            ids = ids[: ids.index(3)] if 3 in ids else ids
            assert text == fleet.backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_sites_of_a_backbone_that_has_none_are_refused(tmp_path, data):
    raw = three_members(tmp_path / "backbone", data, "llama")
    raw["prompt"] = {**raw["prompt"], "sites": ["cross"]}
    with pytest.raises(UserError, match=r"prompt\.sites names attentions of an encoder-decoder"):
        open_fleet(raw)


def test_checkpointing_gives_the_same_bits(each):
    losses = []
    for checkpointing in (False, True):
        fleet = open_fleet({**each, "train": {**each["train"], "activation_checkpointing": checkpointing}})
        enlarge(fleet)
        losses.append(one_gradient(fleet))
    assert all(torch.equal(*pair) for pair in zip(*losses, strict=True))


def one_gradient(fleet):
    prompts = [member.prompt for member in fleet.members]
    pool = Pool([member.splits["dev"] for member in fleet.members], PromptShapes.of(prompts))
    items = Items.of([(i, torch.arange(4).numpy(), 1.0) for i in range(3)])
    found = member_logits(fleet.backbone, prompts, lay_out(pool, items, 1, torch.device("cpu")))
    sum(own.sum() for own in found).backward()
    return [prompt.prefix.embedding.grad for prompt in prompts]


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_run_is_exported_and_its_prompts_write_and_evaluate_as_it_did(tmp_path, each, data, capsys, quantize):
    each["train"] |= {"max_steps": 3}
    each["backbone"]["quantize"] = quantize
    each["fleet"]["members"][1]["prompt"]["sites"] = ["cross"]
    (tmp_path / "run.json").write_text(json.dumps(each))
    assert worker.main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    for member in sorted((tmp_path / "out" / "members").iterdir()):
        answers = [json.loads(line) for line in (member / "answers" / "test.jsonl").read_text().splitlines()]
        model = attach(load_prompt(member / "prompt"))
        assert model.generate([row["source"] for row in rows]) == [own["predicted"]["text"] for own in answers]
        assert [own["text"] for own in model.predict(rows)] == [own["predicted"]["text"] for own in answers]
        capsys.readouterr()
        command = ["evaluate", "--prompt", str(member / "prompt"), "--data", str(data), "--split", "test"]
        assert cli.main(command) == 0
        found, expected = json.loads(capsys.readouterr().out), json.loads((member / "result.json").read_text())
        # Of batches of other shapes, a mean's last bits may be others.
        assert found["metrics"] == pytest.approx(expected["test"], rel=1e-12)
        assert found["loss"] == pytest.approx(expected["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"max_length": 65}}, "has 64 positions for each"),
        ({"data": {"cache_activations": True}}, "no hidden states are kept"),
    ],
)
def test_what_is_not_done_is_refused_in_a_sentence(raw, sections, said):
    for name, own in sections.items():
        raw[name] |= own
    with pytest.raises(UserError, match=said):
        open_fleet(raw)


def test_a_task_without_texts_is_refused(tmp_path):
    raw = run_json(make_backbone(tmp_path / "backbone", "bart"), make_texts(tmp_path / "data"))
    with pytest.raises(UserError, match="encoder-decoder, which is for tasks of kind 'generation' alone"):
        open_fleet(raw)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_layerdrop": 0.1}, "drops whole layers"),
        ({"decoder_attention_heads": 2}, "one prefix is for both"),
        ({"decoder_start_token_id": None}, "names no decoder_start_token_id"),
    ],
)
def test_a_config_that_prompts_do_not_fit_is_refused(tmp_path, data, changes, said):
    with pytest.raises(UserError, match=said):
        open_fleet(
            three_members(tmp_path / "backbone", data, "bart")
            | {"backbone": {"path": str(make_writer(tmp_path / "other", "bart", **changes))}}
        )


@pytest.mark.parametrize("changes", [{"optimizer": {"relative": True}}, {"prompt": {"init": "data"}}])
def test_prompts_start_from_what_each_site_sees(tmp_path, data, changes):
    raw = three_members(tmp_path / "backbone", data, "bart")
    for name, own in changes.items():
        raw[name] = {**raw[name], **own}
    fleet = open_fleet(raw)
    table = fleet.members[0].prompt.prefix
    values = table.scale if table.scale is not None else table.table().square().mean((0, 3, 4))
    assert values.shape[:2] == (7, 2) and values.isfinite().all() and values.unique().numel() == 14


def test_validate_says_what_would_be_trained(tmp_path, each, capsys):
    (tmp_path / "run.json").write_text(json.dumps(each))
    assert cli.main(["validate", str(tmp_path / "run.json")]) == 0, capsys.readouterr()


def test_plan_counts_it(tmp_path, each, capsys):
    (tmp_path / "run.json").write_text(json.dumps(each))
    given = ["--ranks", "4", "--matrix-rate", "1TFLOP/s", "--bandwidth", "10GB/s", "--memory", "8GiB", "--json"]
    assert cli.main(["plan", str(tmp_path / "run.json"), *given]) == 0
    placements = {cost["name"]: cost for cost in json.loads(capsys.readouterr().out)["considered"]}
    assert {"replicate", "tensor 2", "tensor 4", "ZeRO-3"} <= set(placements)
