"""Predictions of exported prompts; rows for different prompts may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model_parallel.grid import Grid, local_device
from prompt_tuning.backbone import Backbone, load_backbone
from prompt_tuning.config import BackboneSection
from prompt_tuning.data import Features, encode
from prompt_tuning.errors import UserError
from prompt_tuning.export import ExportedPrompt
from prompt_tuning.model import member_logits
from prompt_tuning.packing import Items, Pool, default_budget, lay_out, plan
from prompt_tuning.sources import LocatedRow


class AttachedPrompts:
    """Prompts on their backbone, ready to predict.

    >>> model = attach([load_prompt("runs/a/prompt"), load_prompt("runs/b/prompt")])   # doctest: +SKIP
    >>> model.predict([{"text": "It crashes."}, {"text": "Thank you!"}], prompts=[0, 1])   # doctest: +SKIP
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[ExportedPrompt], tokens_per_batch: int | None = None
    ) -> None:
        self.backbone, self.prompts = backbone, list(prompts)
        self.device = backbone.grid.device
        self.budget = tokens_per_batch or default_budget(self.device)
        for exported in self.prompts:
            exported.check_backbone(backbone)
            exported.prompt.to(self.device)
        backbone.model.eval()

    def predict(self, rows: Sequence[dict[str, Any]], prompts: int | Sequence[int] = 0) -> list[dict[str, Any]]:
        """Label and probabilities of each row of the prompt's task; ``prompts`` says which prompt a row is for."""
        choice = np.full(len(rows), prompts) if np.ndim(prompts) == 0 else np.asarray(prompts, dtype=np.int64)
        if len(choice) != len(rows):
            raise UserError(f"{len(rows)} rows, but prompts for {len(choice)}; give one number, or one for each row")
        unknown = sorted({int(c) for c in choice if not 0 <= c < len(self.prompts)})
        if unknown:
            raise UserError(f"no prompt {unknown[0]}: {len(self.prompts)} attached, counted from 0")
        if not len(rows):
            return []
        result: list[dict[str, Any]] = [{} for _ in rows]
        parts = {int(p): np.flatnonzero(choice == p) for p in np.unique(choice)}
        used = sorted(parts)
        features = []
        for p in used:
            located = [(f"row {i + 1}", dict(rows[i])) for i in parts[p].tolist()]
            features.append(self._encode(p, located))
        for p, logits in zip(used, self.logits(used, features), strict=True):
            labels = self.prompts[p].labels
            for i, row in zip(parts[p], _softmax(logits), strict=True):
                probabilities = dict(zip(labels, row.tolist(), strict=True))
                result[i] = {"label": labels[int(row.argmax())], "probabilities": probabilities}
        return result

    def _encode(self, prompt: int, rows: list[LocatedRow]) -> Features:
        exported = self.prompts[prompt]
        # Labels play no part in a prediction; a row may carry any.
        plain = [(where, {k: v for k, v in row.items() if k != exported.task.label_column}) for where, row in rows]
        manifest = exported.manifest
        return encode(
            exported.task, self.backbone.tokenizer, plain, manifest["max_length"], exported.labels, manifest["template"]
        )

    @torch.no_grad()
    def logits(self, prompts: list[int], features: list[Features]) -> list[np.ndarray]:
        """Logits [examples, outputs] of tokenised examples under some of the prompts, all in common batches."""
        pool = Pool(features)
        items = Items.of(
            [(i, np.arange(len(f)), 1.0) for i, f in enumerate(features) if len(f)] or [(0, np.arange(0), 1.0)]
        )
        outputs: list[np.ndarray] = [
            np.zeros((len(f), len(self.prompts[p].labels))) for p, f in zip(prompts, features, strict=True)
        ]
        lengths = np.array([self.prompts[p].prompt.length for p in prompts])
        if not len(items):
            return outputs
        for chosen in plan(pool, items, lengths, self.budget, 0, 1):
            batch = lay_out(pool, chosen, self.backbone.pad_token, self.device)
            modules = [self.prompts[prompts[m]].prompt for m in batch.members]
            for m, found, (examples, _) in zip(
                batch.members, member_logits(self.backbone, modules, batch), batch.spans, strict=True
            ):
                outputs[m][batch.examples[examples].cpu().numpy()] = found.double().cpu().numpy()
        return outputs


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def attach(
    prompts: ExportedPrompt | Sequence[ExportedPrompt],
    backbone: Backbone | str | None = None,
    device: str | None = None,
) -> AttachedPrompts:
    """Load the backbone that the prompts name (or take another path to it) and put the prompts on it.

    Raises :class:`UserError` if the prompts belong to different backbones or to another one than given.
    """
    several = [prompts] if isinstance(prompts, ExportedPrompt) else list(prompts)
    if not several:
        raise UserError("no prompt to attach; give at least one")
    if isinstance(backbone, Backbone):
        return AttachedPrompts(backbone, several)
    identity = several[0].manifest["backbone"]
    section = BackboneSection(
        path=backbone or several[0].backbone_path,
        revision=identity["revision"] if backbone is None else None,
        dtype=identity["dtype"],
        attention=identity["attention"],
    )
    place = local_device(0) if device is None else torch.device(device)
    return AttachedPrompts(load_backbone(section, Grid(device=place)), several)
