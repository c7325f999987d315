"""Predictions of exported prompts; rows for different prompts may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model_parallel.grid import Grid, local_device
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.encode import encode
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Row
from prompt_tuning.forward.loop import Loop
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.kinds import find_kind
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.prompt.lora import put_lora
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import Example, check_columns, expanded


def prediction_rows(task: Task, where: str, raw: Row) -> list[LocatedRow]:
    """The task's own rows in a row of a file, checked, without labels: those play no part in a prediction."""
    found: list[LocatedRow] = []
    for row in expanded(task, where, raw):
        check_columns(task, where, row)
        found.append((where, Example({key: value for key, value in row.items() if key != task.label_column})))
    return found


class AttachedPrompts:
    """Prompts on their backbone, ready to predict.

    >>> model = attach([load_prompt("runs/a/prompt"), load_prompt("runs/b/prompt")])   # doctest: +SKIP
    >>> model.predict([{"text": "It crashes."}, {"text": "Thank you!"}], prompts=[0, 1])   # doctest: +SKIP
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[ExportedPrompt], tokens_per_batch: int | None = None
    ) -> None:
        self.backbone, self.prompts = backbone, list(prompts)
        # Found once: a task is looked for among files, and rows are many.
        self.tasks = [exported.task for exported in self.prompts]
        self.device = backbone.grid.device
        self.budget = tokens_per_batch or default_budget(self.device, with_gradients=False)
        for exported in self.prompts:
            exported.check_backbone(backbone)
            exported.prompt.to(self.device)
            if exported.prompt.lora is not None:
                put_lora(backbone, dict(exported.prompt.lora))
            if isinstance(exported.prompt.head, LanguageHead):
                exported.prompt.head.connect(backbone.language_head)
        backbone.model.eval()

    def predict(self, rows: Sequence[dict[str, Any]], prompts: int | Sequence[int] = 0) -> list[dict[str, Any]]:
        """What the prompt's task answers to each row, a label and probabilities for example; ``prompts``: which prompt a row is for."""
        choice = np.full(len(rows), prompts) if np.ndim(prompts) == 0 else np.asarray(prompts, dtype=np.int64)
        if len(choice) != len(rows):
            raise UserError(f"{len(rows)} rows, but prompts for {len(choice)}; give one number, or one for each row")
        unknown = sorted({int(c) for c in choice if not 0 <= c < len(self.prompts)})
        if unknown:
            raise UserError(f"no prompt {unknown[0]}: {len(self.prompts)} attached, counted from 0")
        if not len(rows):
            return []
        return self.predict_located([(f"row {i}", dict(row)) for i, row in enumerate(rows, 1)], choice)

    def predict_located(self, rows: Sequence[LocatedRow], choice: np.ndarray | None = None) -> list[dict[str, Any]]:
        """As :meth:`predict`, for rows that know where they stand, which errors then name; ``choice`` [rows]: their prompts.

        A row that holds several examples, or none, gets ``{"predictions": [...]}``.
        """
        choice = np.zeros(len(rows), np.int64) if choice is None else choice
        result: list[dict[str, Any]] = [{"predictions": []} for _ in rows]
        examples: dict[int, list[LocatedRow]] = {}
        counts = []
        for (where, row), prompt in zip(rows, choice.tolist(), strict=True):
            own = prediction_rows(self.tasks[prompt], where, row)
            counts.append(len(own))
            if own:
                examples.setdefault(prompt, []).extend(own)
        if not examples:
            return result
        used = sorted(examples)
        features = [self._encode(p, examples[p]) for p in used]
        for p, encoded, outputs in zip(used, features, self.outputs(used, features), strict=True):
            task = self.tasks[p]
            found = iter(find_kind(task.kind).describe(task, encoded, outputs, self.prompts[p].labels))
            for i in np.flatnonzero(choice == p).tolist():
                several = [next(found) for _ in range(counts[i])]
                result[i] = several[0] if len(several) == 1 else {"predictions": several}
        return result

    def _encode(self, prompt: int, rows: list[LocatedRow]) -> Features:
        exported = self.prompts[prompt]
        recipe = Recipe(self.tasks[prompt], self.backbone.tokenizer, exported.encoding, exported.labels)
        return encode(recipe, rows)

    def outputs(self, prompts: list[int], features: list[Features]) -> list[np.ndarray]:
        """What the kinds of some of the prompts keep of the logits of tokenised examples, all in common batches.

        float64 [examples, outputs], or [tokens, k] where a kind asks every token.
        """
        chosen = [self.prompts[p] for p in prompts]
        kinds = [find_kind(self.tasks[p].kind) for p in prompts]
        loop = Loop(self.backbone, [exported.prompt for exported in chosen], kinds, features, self.budget)
        found = loop.outputs(range(len(chosen)))
        return [found[i] for i in range(len(chosen))]


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
    lora = [exported for exported in several if exported.prompt.lora is not None]
    if lora and (len(several) > 1 or isinstance(backbone, Backbone)):
        raise UserError(
            f"{lora[0].folder}: method 'lora' changes layers of the backbone, which cannot be shared; attach it alone,"
            " with its backbone's path"
        )
    if isinstance(backbone, Backbone):
        return AttachedPrompts(backbone, several)
    identity = several[0].manifest["backbone"]
    section = BackboneSection(
        path=backbone or several[0].backbone_path,
        revision=identity["revision"] if backbone is None else None,
        dtype=identity["dtype"],
        quantize=identity.get("quantize"),
        attention=identity["attention"],
    )
    if backbone is None:
        try:
            find_folder(section.path, section.revision)
        except UserError as error:
            raise UserError(
                f"{error}; where it lies elsewhere now, say so by --backbone, or attach(..., backbone=)"
            ) from None
    place = local_device(0) if device is None else torch.device(device)
    language = any(isinstance(exported.prompt.head, LanguageHead) for exported in several)
    return AttachedPrompts(load_backbone(section, Grid(device=place), language=language), several)
