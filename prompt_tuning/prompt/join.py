"""Documents' prompts behind each other, without training again: their keys and values, one table behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.prompt.manifest import Manifest
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt

SAME = ("method", "positions", "layers", "shape", "template")
"""What joined prompts must have in common, beside their backbone."""


@torch.no_grad()
def join_prompts(several: Sequence[ExportedPrompt]) -> tuple[Prompt, Manifest]:
    """One prompt that holds all, and what its prompt.json says, as :func:`prompt_tuning.prompt.export.write_prompt` takes them.

    Each prompt keeps the positions that it was trained with, as caches of documents do that are put together (Eyuboglu et al.
    2025); text stands behind them all. Raises :class:`UserError` for prompts that cannot stand behind each other.
    """
    first = several[0]
    for own in several:
        if own.task.kind != "document":
            raise UserError(
                f"{own.folder}: it answers {own.task.name!r}, of kind {own.task.kind}; prompts of kind 'document' can be joined"
            )
        other = next((key for key in SAME if own.manifest[key] != first.manifest[key]), None)
        if other is not None:
            raise UserError(
                f"{own.folder}: its {other} is {own.manifest[other]}, and that of {first.folder} is {first.manifest[other]};"
                " only prompts that have it in common can be joined"
            )
        both = [exported.manifest["backbone"] for exported in (own, first)]
        if any(both[0].get(key) != both[1].get(key) for key in ("fingerprint", "quantize")):
            raise UserError(
                f"{own.folder}: it was trained on another backbone than {first.folder}, or on other weights of it (quantize); join"
                " prompts of one"
            )
    tables = [own.prompt.prefix.table() for own in several if own.prompt.prefix is not None]
    table = torch.cat(tables)
    assert first.prompt.prefix is not None
    prefix = Prefix(first.prompt.prefix.shape, len(table), None, table.dtype)
    prefix.fill(table)
    task = {**first.manifest["task"], "name": "-".join(own.task.name for own in several)[:100]}
    lengths = {key: max(own.manifest[key] for own in several) for key in ("max_length", "max_target_length", "stride")}
    manifest = {key: value for key, value in first.manifest.items() if key not in ("tensors", "sha256", "best")}
    return Prompt(LanguageHead(None), prefix, positions=first.manifest["positions"]), {
        **manifest,
        **lengths,
        "task": task,
        "length": len(table),
    }
