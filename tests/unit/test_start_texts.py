"""Prompts that start from a text of the user's, and first tokens that are never trained."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import load_prompt, rebuild_prompt
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.identity import compare, experiment
from prompt_tuning.settings.members import resolve
from prompt_tuning.tokens.continuation import leading_tokens
from prompt_tuning.trainer import build_fleet
from tests.support.fleets import assert_same_course, follow, open_fleet
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
    member = start(places, prompt={"init": {"text": TEXT}, "length": 4})
    model, shape = AutoModel.from_pretrained(places[0], dtype=torch.float64).eval(), member.prompt.prefix.shape
    if model.config.model_type == "llama":
        cache = model(first_ids(member, 4), use_cache=True).past_key_values
        own = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    else:  # an encoder has no cache, and its keys and values are what its projections give
        seen = []
        for layer in model.encoder.layer:
            for projection in (layer.attention.self.key, layer.attention.self.value):
                projection.register_forward_hook(lambda _, __, found: seen.append(found[0]))
        model(first_ids(member, 4))
        heads = [found.view(4, shape.key_value_heads, shape.head_size).transpose(0, 1) for found in seen]
        own = [torch.stack(pair) for pair in zip(heads[::2], heads[1::2], strict=True)]
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


def test_a_members_start_takes_the_place_of_the_run_files(places, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    inits = [{"file": str(tmp_path / "text.txt")}, {"text": "the dog sleeps"}, "normal"]
    members = [{"prompt": {"init": init}} for init in inits]
    found = run(places, {"members": members}, prompt={"init": {"text": TEXT}, "length": 3}).members
    first, second = (spec.config.prompt.init for spec in found[:2])
    assert (first.text, first.file) == (None, inits[0]["file"]) and second.text == "the dog sleeps"
    assert found[2].config.prompt.init == "normal"


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
        ({"init": {"text": TEXT}, "init_from": "runs/other"}, "keep one of them"),
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
    for member, old, text in zip(fleet.members, before, (TEXT, TEXT, f"then {TEXT}"), strict=True):
        free = start(places, prompt={"length": 5, "init": {"text": text}}, optimizer=optimizer)
        assert torch.equal(old, table(free)), f"{member.name} starts from its text, frozen tokens too"
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


def test_a_member_with_frozen_tokens_is_itself_beside_others(places):
    """DESIGN, section 6: with others that freeze fewer or none, and alone."""
    backbone, data, _ = places
    raw = run_json(backbone, data, backbone={"path": str(backbone), "dtype": "float64"}, train={"eval_steps": 50})
    members = [
        {"name": f"k{k}", "prompt": {"length": 5, "frozen_tokens": k, "init": {"text": TEXT}}} for k in (0, 1, 3)
    ]
    raw["fleet"] = {"members": members}
    together = follow(open_fleet(raw), 4)
    for name in ("k0", "k1", "k3"):
        assert_same_course(together, follow(open_fleet(raw, only=name), 4), "float64")


def test_a_text_that_many_start_from_is_said_once(places, caplog):
    members = [{"prompt": {"length": 4, "init": {"text": TEXT}}, "train": {"seed": seed}} for seed in (1, 2, 3)]
    with caplog.at_level("INFO"):
        fleet = build_fleet(run(places, {"members": members}), Grid())
    assert sum("starts from the first 4" in line for line in caplog.messages) == 1
    assert all(torch.equal(table(member), table(fleet.members[0])) for member in fleet.members)
