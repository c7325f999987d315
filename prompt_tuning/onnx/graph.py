"""What is traced: padded rows in, logits out, each row under the prompt that its number names.

Packed rows have Python in them (slices, groups by member), which a graph with rows and lengths of any number cannot. So the same
model attends here by a function for padded rows, and every prompt is a place in stacked tensors.

Shape letters: R rows, L tokens of the longest, M prompts, P tokens of the longest prompt, N layers, G key/value heads, D head
size, H hidden size, C outputs of the largest head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from prompt_tuning.backbone.attention import attention_name, prefix_attention, select_attention
from prompt_tuning.backbone.kernels import Look, written_out
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prompt import Prompt

FIRST, LAST, MEAN = range(3)
"""Which tokens a head sees."""
PLAIN, BACKBONES, TANH, GELU = range(4)
"""What happens to the text's vector in front of the last layer: nothing, the backbone's pooler, or an own one."""


@dataclass
class PaddedRows:
    """What the attention function needs to know of padded rows: which tokens are real, and each row's prefix."""

    real: Tensor
    """[R, L] bool."""
    index: Tensor
    """[R, L] How many real tokens of the row stand before each."""
    prompt_ids: Tensor
    """[R]"""
    tables: Sequence[Tensor | None]
    """Of each layer: keys and values [M, 2, G, P, D]; None: no prompt reaches it."""
    present: Sequence[Tensor | None]
    """Of each layer: which of these there are, bool [M, P]."""
    read: None = None
    """Every token's last hidden states are asked for."""
    texts: dict[Look, Tensor] = field(default_factory=dict)
    """What all layers share: which text each token sees [R, L, L]."""

    def text(self, look: Look) -> Tensor:
        """Which text each token sees, bool [R, L, L]. Padding sees all that is real: a softmax over nothing is NaN."""
        key = Look(look.is_causal, look.window)
        if key not in self.texts:
            distance = self.index[:, :, None] - self.index[:, None, :]
            seen = self.real[:, None, :].expand(distance.shape)
            if look.is_causal:
                seen = seen & ((distance >= 0) | ~self.real[:, :, None])
            if look.window is not None:
                seen = seen & ((distance.abs() < look.window) | ~self.real[:, :, None])
            self.texts[key] = seen
        return self.texts[key]


def _attend_padded(
    softcap: float | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PaddedRows,
    layer: int,
    look: Look,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention of every token over [prefix ; text] of its row, [R, L, heads, D]."""
    table, present, mask = rows.tables[layer], rows.present[layer], rows.text(look)
    if table is not None and present is not None:
        own = table[rows.prompt_ids]
        key, value = torch.cat([own[:, 0], key], 2), torch.cat([own[:, 1], value], 2)
        front = present[rows.prompt_ids][:, None, :].expand(-1, mask.shape[1], -1)
        mask = torch.cat([front, mask], 2)
    return written_out(query, key, value, mask[:, None], scale, 0.0, softcap).transpose(1, 2)


def _attention(module: nn.Module, *tensors: Any, softcap: float | None = None, **named: Any) -> tuple[Tensor, None]:
    def kernel(*arguments: Any) -> Tensor:
        return _attend_padded(softcap, *arguments)

    return prefix_attention(kernel, module, *tensors, **named)


_NAME = attention_name("padded")
AttentionInterface.register(_NAME, _attention)


@contextmanager
def padded_attention(backbone: Backbone) -> Iterator[None]:
    """The backbone takes padded rows, ``rows=PaddedRows(...)``, in place of packed ones."""
    modules = backbone.family.attention_modules(backbone.model)
    select_attention(backbone.model, modules, _NAME)
    try:
        yield
    finally:
        select_attention(backbone.model, modules, attention_name(backbone.attention))


def takes_types(backbone: Backbone) -> bool:
    """Whether tokens have types, which the model looks at."""
    names = inspect.signature(type(backbone.model).forward).parameters
    return "token_type_ids" in names and "token_type_ids" in backbone.tokenizer.model_input_names


class Graph(nn.Module):
    """A backbone with some prompts, all of texts or all of tokens: logits [R, C] or [R, L, C] of padded rows.

    Outputs that a prompt's head does not have are minus infinity. A copy of the prompts' tensors, in float32.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt]) -> None:
        super().__init__()
        self.model, self.pooler = backbone.model, backbone.pooler
        self.family, self.has_types = backbone.family, takes_types(backbone)
        heads = [prompt.head for prompt in prompts if isinstance(prompt.head, Head)]
        of_tokens = [head.pooling == "tokens" for head in heads]
        assert all(of_tokens) or not any(of_tokens), (
            "heads of texts and heads of tokens have logits of different shapes"
        )
        self.heads = TokenHeads(heads) if of_tokens[0] else Heads(heads)
        self.register_buffer("starts", torch.tensor([prompt.text_start for prompt in prompts]))
        self.num_layers = backbone.shape.num_layers
        longest = max(prompt.length for prompt in prompts)
        for layer in range(self.num_layers):
            own = [None if p.prefix is None else p.prefix.by_layer()[layer] for p in prompts]
            if not any(table is not None for table in own):
                continue
            shape = next(table.shape for table in own if table is not None)
            tables = [torch.zeros(0, *shape[1:]) if table is None else table.detach().float() for table in own]
            stacked = torch.stack([pad(table, (0, 0, 0, 0, 0, 0, 0, longest - len(table))) for table in tables])
            self.register_buffer(f"table_{layer}", stacked.permute(0, 2, 3, 1, 4).contiguous())
            counts = torch.tensor([len(table) for table in tables])
            self.register_buffer(f"present_{layer}", torch.arange(longest) < counts[:, None])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """From int64 tokens [R, L], which of them are real (1, else 0), and prompts [R] counted from 0."""
        real = attention_mask > 0
        index = (real.long().cumsum(1) - 1).clamp(min=0)
        layers = range(self.num_layers)
        tables, present = ([getattr(self, f"{kind}_{n}", None) for n in layers] for kind in ("table", "present"))
        rows = PaddedRows(real, index, prompt_ids, tables, present)
        named: dict[str, Any] = {"rows": rows}
        if token_type_ids is not None:
            named["token_type_ids"] = token_type_ids
        if getattr(self.model.config, "use_cache", False):
            named["use_cache"] = False
        starts: Tensor = self.get_buffer("starts")
        positions = self.family.positions(index + starts[prompt_ids][:, None], self.model.config)
        output = self.model(input_ids=input_ids, position_ids=positions, **named)
        found: Tensor = self.heads(output.last_hidden_state, real, index, prompt_ids, self.pooler)
        return found


class TokenHeads(nn.Module):
    """Heads that see every token, stacked."""

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.register_buffer("weight", _stacked([head.weight for head in heads], 0.0))
        self.register_buffer("bias", _stacked([head.bias for head in heads], -torch.inf))

    def forward(self, hidden: Tensor, real: Tensor, index: Tensor, prompt_ids: Tensor, pooler: Any) -> Tensor:
        """Logits [R, L, C] from hidden states [R, L, H]; of padding they mean nothing."""
        weight, bias = self.get_buffer("weight")[prompt_ids], self.get_buffer("bias")[prompt_ids]
        return hidden @ weight.transpose(1, 2) + bias[:, None]


class Heads(nn.Module):
    """Heads of texts, stacked; each is worked out for every row, and the row's own taken."""

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.register_buffer("weight", _stacked([head.weight for head in heads], 0.0))
        self.register_buffer("bias", _stacked([head.bias for head in heads], -torch.inf))
        sees = [{"mean": MEAN, "last": LAST}.get(head.pooling, FIRST) for head in heads]
        ways = [_way(head) for head in heads]
        self.sees, self.ways = sorted(set(sees)), sorted(set(ways))
        self.register_buffer("place_seen", torch.tensor([self.sees.index(own) for own in sees]))
        self.register_buffer("place_way", torch.tensor([self.ways.index(own) for own in ways]))
        own_poolers = [head.pooler for head in heads if head.pooler is not None]
        if own_poolers:
            none = torch.zeros(heads[0].weight.shape[1])
            weights = [none.expand(len(none), -1) if h.pooler is None else h.pooler.weight for h in heads]
            biases = [none if head.pooler is None else head.pooler.bias for head in heads]
            self.register_buffer("pooler_weight", torch.stack([w.detach().float() for w in weights]))
            self.register_buffer("pooler_bias", torch.stack([b.detach().float() for b in biases]))

    def forward(
        self, hidden: Tensor, real: Tensor, index: Tensor, prompt_ids: Tensor, pooler: nn.Module | None
    ) -> Tensor:
        """Logits [R, C] from hidden states [R, L, H]."""
        text = _own(self._texts(hidden, real, index), self.get_buffer("place_seen")[prompt_ids])
        found = []
        for way in self.ways:
            if way == PLAIN:
                found.append(text)
            elif way == BACKBONES:
                assert pooler is not None, "a head without its own pooler needs the backbone's"
                found.append(pooler(text[:, None]))
            else:
                weight, bias = self.get_buffer("pooler_weight"), self.get_buffer("pooler_bias")
                made = _own(torch.einsum("rh,mkh->rmk", text, weight) + bias, prompt_ids)
                found.append(nn.functional.gelu(made) if way == GELU else torch.tanh(made))
        features = _own(torch.stack(found, 1), self.get_buffer("place_way")[prompt_ids])
        logits = torch.einsum("rh,mch->rmc", features, self.get_buffer("weight")) + self.get_buffer("bias")
        return _own(logits, prompt_ids)

    def _texts(self, hidden: Tensor, real: Tensor, index: Tensor) -> Tensor:
        """What each of ``sees`` is of a row, [R, sees, H]: sums over its tokens by weights [R, L]."""
        count = real.sum(1, keepdim=True)
        weights = []
        for way in self.sees:
            if way == MEAN:
                weights.append(real.to(hidden.dtype) / count.to(hidden.dtype))
            else:
                weights.append((real & (index == (0 if way == FIRST else count - 1))).to(hidden.dtype))
        return torch.stack(weights, 1) @ hidden


def _stacked(tensors: list[Tensor], fill: float) -> Tensor:
    """In float32, all as long as the longest."""
    most = max(map(len, tensors))
    return torch.stack(
        [pad(t.detach().float(), (0, 0) * (t.dim() - 1) + (0, most - len(t)), value=fill) for t in tensors]
    )


def _way(head: Head) -> int:
    if head.pooler is not None:
        return GELU if head.pooling == "context" else TANH
    return BACKBONES if head.pooling == "pooler" else PLAIN


def _own(values: Tensor, places: Tensor) -> Tensor:
    """Of values [R, m, ...], each row's at its place [R]: [R, ...]."""
    index = places[:, None, None].expand(-1, 1, values.shape[2])
    return values.gather(1, index)[:, 0]
