"""Predictions of exported prompts; rows for different prompts may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from model_parallel.grid import Grid, local_device
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.encode import encode
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Row
from prompt_tuning.forward.loop import Loop
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.forward.write import Source, sources_of, write
from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.generation import written
from prompt_tuning.messages import sentences
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.prompt.lora import put_lora
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.continuation import source_tokens
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


def checked_settings(decode: DecodeSection, changes: dict[str, Any]) -> DecodeSection:
    """Settings of writing with some changed. Raises :class:`UserError`."""
    try:
        return DecodeSection.model_validate({**decode.model_dump(), **changes})
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{place}: {text}".lstrip(": ") for place, text in sentences(error, DecodeSection, ()))
        ) from None


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
            exported.check_task()
            exported.prompt.to(self.device)
            if exported.prompt.lora is not None:
                put_lora(backbone, dict(exported.prompt.lora))
            if isinstance(exported.prompt.head, LanguageHead):
                exported.prompt.head.connect(backbone.language_head)
        backbone.model.eval()

    def predict(self, rows: Sequence[dict[str, Any]], prompts: int | Sequence[int] = 0) -> list[dict[str, Any]]:
        """What the prompt's task answers to each row, a label and probabilities for example; ``prompts``: which prompt a row is for."""
        choice = self._choice(len(rows), prompts)
        if not len(rows):
            return []
        return self.predict_located([(f"row {i}", dict(row)) for i, row in enumerate(rows, 1)], choice)

    def generate(
        self, texts: Sequence[str], prompts: int | Sequence[int] = 0, streamer: Any = None, **settings: Any
    ) -> list[str]:
        """What the language model writes behind each text; ``prompts``: which prompt it stands behind.

        ``settings`` are those of the run file's section `decode`, such as ``num_beams=4``; what is not given is as the first of
        the prompts was trained. ``streamer``: of transformers, for one text. Raises :class:`UserError`.
        """
        choice = self._choice(len(texts), prompts)
        if not len(texts):
            return []
        if streamer is not None and len(texts) > 1:
            raise UserError(f"a streamer takes one text, and {len(texts)} were given; leave it out")
        sources: list[Source] = [(0, np.zeros(0))] * len(texts)
        for p in np.unique(choice).tolist():
            places = np.flatnonzero(choice == p).tolist()
            self._check_writes(p)
            task, most = self.tasks[p], self.prompts[p].encoding.max_length
            rows, _ = source_tokens(self.backbone.tokenizer, task.separator, most, [texts[i] for i in places])
            for place, row in zip(places, rows, strict=True):
                sources[place] = (p, np.asarray(row))
        first = self.prompts[int(choice[0])]
        decode = checked_settings(first.decode, settings)
        if streamer is not None and decode.num_beams > 1:
            raise UserError(
                f"a streamer takes tokens as they come, which {decode.num_beams} beams settle last; set num_beams=1"
            )
        modules = [exported.prompt for exported in self.prompts]
        length = first.encoding.max_target_length
        return write(self.backbone, modules, sources, decode, length, self.budget, streamer=streamer)

    def _check_writes(self, prompt: int) -> None:
        task = self.tasks[prompt]
        if not task.is_written:
            raise UserError(
                f"prompt {prompt} answers {task.name!r}, of kind {task.kind}, and writes no texts; use predict"
            )

    def _choice(self, count: int, prompts: int | Sequence[int]) -> np.ndarray:
        """The prompt of each of ``count`` rows. Raises :class:`UserError`."""
        choice = np.full(count, prompts) if np.ndim(prompts) == 0 else np.asarray(prompts, dtype=np.int64)
        if len(choice) != count:
            raise UserError(f"{count} rows, but prompts for {len(choice)}; give one number, or one for each row")
        unknown = sorted({int(c) for c in choice if not 0 <= c < len(self.prompts)})
        if unknown:
            raise UserError(f"no prompt {unknown[0]}: {len(self.prompts)} attached, counted from 0")
        return choice

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

    def outputs(self, prompts: list[int], features: list[Features]) -> list[Any]:
        """What the kinds of some of the prompts keep of the logits of tokenised examples, all in common batches.

        float64 [examples, outputs], or [tokens, k] where a kind asks every token, or a list of what was written.
        """
        modules = [self.prompts[p].prompt for p in prompts]
        kinds = [find_kind(self.tasks[p].kind) for p in prompts]
        loop = Loop(self.backbone, modules, kinds, features, self.budget)
        # What has no target has no likelihood either.
        scored = [i for i, kind in enumerate(kinds) if not kind.writes or features[i].has_label.any()]
        found: dict[int, Any] = {**loop.outputs(scored)} if scored else {}
        alike: dict[tuple[str, int], list[int]] = {}
        for i in (i for i, kind in enumerate(kinds) if kind.writes):
            exported = self.prompts[prompts[i]]
            key = exported.decode.model_dump_json(), exported.encoding.max_target_length
            alike.setdefault(key, []).append(i)
        for (_, length), some in alike.items():
            sources = [source for i in some for source in sources_of(i, features[i])]
            decode = self.prompts[prompts[some[0]]].decode
            texts = iter(write(self.backbone, modules, sources, decode, length, self.budget))
            for i in some:
                count = len(features[i])
                found[i] = written(features[i], found.get(i, np.zeros((count, 1))), list(islice(texts, count)))
        return [found[i] for i in range(len(prompts))]


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
