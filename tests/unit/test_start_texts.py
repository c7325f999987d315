"""Prompts that start from a text of the user's, and first tokens that are never trained."""

from __future__ import annotations

import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import load_prompt, rebuild_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.identity import compare, experiment
from prompt_tuning.settings.members import resolve
from prompt_tuning.tokens.continuation import leading_tokens
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import make_backbone, make_texts, run_json

TEXT = "the quick brown fox jumps over the lazy dog and then the dog sleeps"


@pytest.fixture(scope="module", params=["bert", "llama"])
def places(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    return make_backbone(folder / "backbone", request.param), make_texts(folder / "data"), folder


def run(places, fleet=None, **sections):
    backbone, data, folder = places
    raw = run_json(backbone, data, **sections)
    return resolve(raw if fleet is None else {**raw, "fleet": fleet}, folder / "run.json")


def start(places, **sections):
    return build_fleet(run(places, **sections), Grid()).members[0]


def table(member):
    return member.prompt.prefix.table().detach().clone()


def first_ids(member, length):
    """The first token ids of the text, [1, P]."""
    tokenizer = member.backbone.tokenizer
    ids = [*leading_tokens(tokenizer), *tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:length]
    return torch.tensor([ids])


def test_a_text_gives_the_words_of_its_first_tokens_at_the_input(places):
    member = start(places, method="shallow_prompt", prompt={"init": {"text": TEXT}, "length": 4})
    ids = first_ids(member, 4)
    assert torch.equal(member.prompt.inputs, member.backbone.model.get_input_embeddings().weight[ids[0]])


def test_a_text_gives_the_keys_and_values_of_its_first_tokens(places):
    from transformers import AutoModelForCausalLM

    member = start(places, prompt={"init": {"text": TEXT}, "length": 4})
    if member.backbone.model.config.model_type != "llama":
        pytest.skip("encoders have no cache to compare with")
    model = AutoModelForCausalLM.from_pretrained(places[0], dtype=torch.float64).eval()
    cache = model(first_ids(member, 4), use_cache=True).past_key_values
    own = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    expected = torch.stack(own).permute(3, 0, 1, 2, 4)  # [N, 2, G, P, D] as [P, N, 2, G, D]
    torch.testing.assert_close(table(member).double(), expected, rtol=1e-6, atol=1e-6)


def test_a_file_is_its_text_and_a_changed_one_another_experiment(places, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    sections = {"prompt": {"init": {"file": str(file)}, "length": 4}}
    before = run(places, **sections)
    from_text = start(places, prompt={"init": {"text": TEXT}, "length": 4})
    assert torch.equal(table(build_fleet(before, Grid()).members[0]), table(from_text))
    assert compare(experiment(before), experiment(run(places, **sections)), True).difference is None
    file.write_text(f"{TEXT}.", encoding="utf-8")
    assert "sha256" in (compare(experiment(before), experiment(run(places, **sections)), True).difference or "")
    with pytest.raises(UserError, match="not the recorded one"):
        build_fleet(before, Grid())


def test_an_older_name_of_training_rows_is_the_same_experiment(places):
    old, new = (run(places, prompt={"init": name, "length": 3}) for name in ("text", "data"))
    assert experiment(old) == experiment(new)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"init": {"text": "dog"}, "length": 30}, r"fewer than prompt.length=30; set prompt.length=\d"),
        ({"init": {"text": " "}}, "give a text"),
        ({"init": {}}, "has nothing"),
        ({"init": {"text": "a", "file": "b"}}, "has text and file"),
        ({"init": {"txt": "a"}}, "unknown key"),
        ({"init": "words"}, "is unknown; choose"),
        ({"init": {"file": "/nowhere/at/all"}}, "cannot be read"),
        ({"init": {"text": TEXT}, "reparameterisation": "mlp"}, "prompt.init=a text fills the table"),
        ({"frozen_tokens": 1}, "would freeze numbers that mean nothing"),
        ({"init": "data", "length": 3, "frozen_tokens": 3}, "leaves nothing"),
    ],
)
def test_what_cannot_be_started_from_is_refused(places, prompt, message):
    with pytest.raises(UserError, match=message):
        start(places, prompt=prompt)


@pytest.mark.parametrize("method", ["head", "shallow_prompt", "full"])
def test_methods_without_prefix_have_no_tokens_to_freeze(places, method):
    with pytest.raises(UserError, match="frozen_tokens=1 does not fit method"):
        run(places, method=method, prompt={"init": "data", "frozen_tokens": 1})


def test_a_file_that_is_no_utf8_is_refused(places, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"caf\xe9 and more")
    with pytest.raises(UserError, match="not UTF-8"):
        start(places, prompt={"init": {"file": str(tmp_path / "text.txt")}, "length": 2})


@pytest.mark.parametrize("relative", [False, True])
def test_frozen_tokens_keep_their_bits_in_a_fleet_and_in_the_export(places, tmp_path, relative):
    members = [
        {"prompt": {"length": 5, "frozen_tokens": frozen, "init": {"text": text}}}
        for frozen, text in ((0, TEXT), (1, TEXT), (3, f"then {TEXT}"))
    ]
    optimizer = {"weight_decay": 0.1, "relative": relative, "lr": 0.01}
    fleet = build_fleet(run(places, {"members": members}, optimizer=optimizer), Grid())
    before = [table(member) for member in fleet.members]
    for _ in range(3):
        fleet.train_step([0, 1, 2])
        for member in fleet.members:
            member.step += 1
    for number, (member, old, frozen) in enumerate(zip(fleet.members, before, (0, 1, 3), strict=True)):
        assert torch.equal(table(member)[:frozen], old[:frozen])
        assert all((row != was).any() for row, was in zip(table(member)[frozen:], old[frozen:], strict=True))
        tensors = {name: p.detach() for name, p in member.prompt.named_parameters()}
        rebuilt = rebuild_prompt(member.spec.config, member.description(), tensors)
        assert torch.equal(rebuilt.prefix.table(), table(member))
        export_member(tmp_path / str(number), member)
        assert torch.equal(load_prompt(tmp_path / str(number)).prompt.prefix.table(), table(member))
