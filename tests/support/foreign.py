"""Prompts whose prefix and head are large enough to show a wrong place, and texts as other libraries take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_parallel.grid import Grid
from prompt_tuning import attach, load_prompt
from prompt_tuning.forward.loop import Loop
from prompt_tuning.kinds import find_kind
from prompt_tuning.report.results import export_member
from prompt_tuning.settings.members import resolve
from prompt_tuning.tokens.features import Features
from prompt_tuning.trainer import build_fleet


def exported_prompt(folder: Path, raw: dict[str, Any]) -> tuple[Path, Features]:
    """A prompt of random numbers near 1, exported, and the dev split of its task."""
    fleet = build_fleet(resolve(raw, folder / "run.json"), Grid())
    member, torch_state = fleet.members[0], torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in member.prompt.named_parameters():
            if parameter.requires_grad or name.startswith("head.pooler"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch_state))
    export_member(folder / "prompt", member)
    return folder / "prompt", member.splits["dev"]


def our_logits(folder: Path, features: Features) -> Tensor:
    """Of an exported prompt: [rows, outputs], or [tokens, outputs] of all rows where every token is asked."""
    model = attach(load_prompt(folder))
    kind = replace(find_kind(model.tasks[0].kind), keep=lambda logits, targets: logits)
    loop = Loop(model.backbone, [model.prompts[0].prompt], [kind], [features], model.budget)
    return torch.as_tensor(loop.outputs([0])[0])


def padded(features: Features, pad_token: int) -> dict[str, Tensor]:
    """Rows with padding on the right, as transformers' models take them."""
    bounds = list(zip(features.offsets.tolist(), features.offsets.tolist()[1:], strict=False))
    longest = max(last - first for first, last in bounds)
    ids = torch.full((len(bounds), longest), pad_token)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (first, last) in enumerate(bounds):
        ids[row, : last - first] = torch.from_numpy(features.tokens[first:last]).long()
        mask[row, : last - first] = 1
        if features.token_types is not None:
            types[row, : last - first] = torch.from_numpy(features.token_types[first:last]).long()
    found = {"input_ids": ids, "attention_mask": mask}
    return found if features.token_types is None else {**found, "token_type_ids": types}
