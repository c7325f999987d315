"""What a model asks of its attention is done or refused, never passed over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prompt_tuning.backbone.attention import INDEX, LAST, TENSOR_RANK, prefix_attention
from prompt_tuning.backbone.kernels import KERNELS
from prompt_tuning.errors import UserError
from tests.unit.test_apart import everything, packed


def attend(**asked):
    """One call of our attention as models make it, by every kernel."""
    q, k, v, tables = everything(2)
    module = nn.Module()
    for name, value in ((INDEX, 0), (LAST, 5), (TENSOR_RANK, None)):
        setattr(module, name, value)
    return [
        prefix_attention(kernel, module, q, k, v, None, rows=packed(tables), **asked)[0] for kernel in KERNELS.values()
    ]


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "head_mask", "block_mask"])
def test_what_changes_attention_and_is_not_built_is_refused(name):
    with pytest.raises(UserError, match=f"asks its attention for '{name}'"):
        attend(**{name: torch.ones(4)})
    assert attend(**{name: None})


def test_what_changes_nothing_is_let_by():
    plain, same = attend(), attend(position_ids=torch.arange(3), use_cache=False, output_attentions=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


def test_a_cap_is_kept_by_every_kernel_and_vanishes_as_it_grows():
    plain, far, near = attend(), attend(softcap=1e6), attend(softcap=0.5)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(plain, far, strict=True))
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(plain, near, strict=True))
    assert torch.equal(*near)


def test_a_model_may_say_with_the_call_whether_it_looks_back_only():
    plain, causal = attend(), attend(is_causal=True)
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(plain, causal, strict=True))
