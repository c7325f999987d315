"""Fused and transposed query/key/value projections (GPT-2's Conv1D) under a plan written here, as a family would."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2Model

from model_parallel.apply import shard_modules
from model_parallel.grid import make_grid
from model_parallel.loading import load_weights, stored_tensors
from model_parallel.plan import Plan, Sizes, columns, rows, vocabulary, whole
from tests.support.ranks import run_ranks

PLAN = Plan(
    rules=(
        vocabulary("wte"),
        whole("wpe"),
        columns("h.*.attn.c_attn", "heads", "key_value_heads", "key_value_heads", transposed=True),
        rows("h.*.attn.c_proj", "heads", transposed=True),
        columns("h.*.mlp.c_fc", transposed=True),
        rows("h.*.mlp.c_proj", transposed=True),
    ),
    divided=(("h.*.attn", ("num_heads", "split_size")),),
)
CONFIG = GPT2Config(
    vocab_size=83, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
)
IDS = torch.arange(24).view(2, 12) * 3 % 83


def run(model):
    """Hidden states, and the gradient of what enters the second block."""
    entered = []

    def start(module, args):
        entered.append(args[0].detach().requires_grad_())
        return (entered[0], *args[1:])

    model.h[1].register_forward_pre_hook(start)
    hidden = model(input_ids=IDS, use_cache=False).last_hidden_state
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden) ** 3).sum().backward()
    return hidden.detach(), entered[0].grad


def run_sharded(grid, folder):
    grid = make_grid(grid.rank, grid.size, grid.device, grid.size)
    sizes = Sizes(CONFIG.n_head, CONFIG.n_head, CONFIG.n_embd // CONFIG.n_head)
    with torch.device("meta"):
        model = GPT2Model(CONFIG).double().requires_grad_(False)
    stored = stored_tensors(folder, set(model.state_dict()), "transformer")
    cuts = shard_modules(model, PLAN, sizes, grid)
    load_weights(model, stored, cuts, grid)
    return run(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = GPT2Model(CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("gpt2")
    save_file(model.state_dict(), path / "model.safetensors")
    return path, run(model.requires_grad_(False))


@pytest.mark.parametrize("tensor", [2, 4])
def test_fused_transposed_projections_equal_the_whole(folder, tensor):
    path, alone = folder
    for rank in run_ranks(tensor, run_sharded, path):
        for found, expected in zip(rank, alone, strict=True):
            assert expected.norm() > 1e-3
            assert ((found - expected).norm() / expected.norm()).item() < 1e-10
