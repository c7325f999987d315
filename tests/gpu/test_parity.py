"""The families' contract on a CUDA device: the same parity, for real kernels, NCCL's device and bfloat16."""

from __future__ import annotations

import pytest
import torch

from model_parallel.grid import Grid
from prompt_tuning.backbone.families import families
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.settings.sections import BackboneSection
from tests.contracts.test_families import (
    BOUNDS,
    assert_equal,
    make_batch,
    make_prompt,
    prefix_gradients,
    ramp_loss,
)
from tests.support.tiny import make_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def run(folder, device, dtype, attention="sdpa", checkpointing=False):
    """Hidden states and prefix gradients on a device, brought to the CPU."""
    section = BackboneSection(path=str(folder), dtype=dtype, attention=attention)
    backbone = load_backbone(section, Grid(device=torch.device(device)), activation_checkpointing=checkpointing)
    prompt = make_prompt(backbone).to(device)
    prompt.dropout = 0.2
    batch = make_batch([prompt]).to(torch.device(device))
    keys = torch.arange(len(batch.lengths), device=device)
    hidden = hidden_states(backbone, [prompt], batch, keys).cpu()
    on_cpu = batch.to(torch.device("cpu"))
    gradients = prefix_gradients(ramp_loss(hidden, on_cpu), [prompt])
    return [hidden.detach()[on_cpu.tokens], *(gradient.cpu() for gradient in gradients)]


@pytest.fixture(scope="module", params=sorted(families()))
def folder(request, tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cuda_equals_cpu_in_float64(folder, attention):
    assert_equal(run(folder, "cuda", "float64", attention), run(folder, "cpu", "float64"), BOUNDS["float64"])


def test_checkpointing_gives_the_same_bits(folder):
    plain, checkpointed = (run(folder, "cuda", "bfloat16", checkpointing=flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_bfloat16_follows_float32(folder):
    half, single = (
        torch.cat([t.float().flatten() for t in run(folder, "cuda", dtype)[1:]]) for dtype in ("bfloat16", "float32")
    )
    assert torch.nn.functional.cosine_similarity(half, single, dim=0) > 0.98
