"""Predictions of exported prompts; rows for different prompts may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from model_parallel.grid import Grid, local_device
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.encode import encode
from prompt_tuning.data.parts import in_one
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Row
from prompt_tuning.forward.loop import Loop
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.forward.write import Source, Text, sources_of, write, write_texts
from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.generation import written
from prompt_tuning.prompt.export import ExportedPrompt, load_prompt
from prompt_tuning.prompt.lora import put_lora
from prompt_tuning.settings.decode import DecodeSection, checked_settings
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.continuation import as_sources, source_tokens
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


@dataclass(frozen=True)
class Question:
    """Rows for one of the attached prompts, tokenised."""

    prompt: int
    counts: list[int]
    """[rows] How many examples each of them holds."""
    features: Features | None
    """Of all their examples; None where there are none."""


class AttachedPrompts:
    """Prompts on their backbone, ready to predict.

    Examples:
        >>> model = attach([load_prompt("runs/a/prompt"), load_prompt("runs/b/prompt")])   # doctest: +SKIP
        >>> model.predict([{"text": "It crashes."}, {"text": "Thank you!"}], prompts=[0, 1])   # doctest: +SKIP
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[ExportedPrompt], tokens_per_batch: int | None = None
    ) -> None:
        self.backbone = backbone
        self.prompts: list[ExportedPrompt] = []
        # Found once: a task is looked for among files, and rows are many.
        self.tasks: list[Task] = []
        self.device = backbone.grid.device
        self.budget = tokens_per_batch or default_budget(self.device, with_gradients=False)
        for exported in prompts:
            self.add(exported)
        backbone.model.eval()

    def add(self, exported: ExportedPrompt) -> None:
        """Attach one more prompt, behind the others. Raises :class:`UserError` if it belongs to another backbone."""
        described = self.backbone.description
        if described.has_encoder and not exported.task.is_written:
            raise UserError(
                f"{exported.folder}: the prompt writes no texts, and {described.path} ({described.config.model_type}) is opened to"
                " write them, decoder and all; attach it apart from prompts that do"
            )
        exported.check_backbone(self.backbone)
        exported.check_task()
        for own in (exported, *self.prompts[:1]):
            if self.prompts and own.prompt.lora is not None:
                raise _not_shared(own)
        if exported.prompt.lora is not None:
            put_lora(self.backbone, dict(exported.prompt.lora))
        if isinstance(exported.prompt.head, LanguageHead):
            exported.prompt.head.connect(self.backbone.language_head)
        if not exported.is_outline:
            exported.prompt.to(self.device)
        self.tasks.append(exported.task)
        self.prompts.append(exported)

    def remove(self, prompt: int) -> None:
        """Let a prompt go; those behind it move up by one. Raises :class:`UserError` for one that changed the backbone."""
        if self.prompts[prompt].prompt.lora is not None:
            raise _not_shared(self.prompts[prompt])
        del self.prompts[prompt], self.tasks[prompt]

    def predict(self, rows: Sequence[dict[str, Any]], prompts: int | Sequence[int] = 0) -> list[dict[str, Any]]:
        """What the prompt's task answers to each row, a label and probabilities for example; ``prompts``: which prompt a row is for."""
        choice = self._choice(len(rows), prompts)
        if not len(rows):
            return []
        return self.predict_located([(f"row {i}", dict(row)) for i, row in enumerate(rows, 1)], choice)

    def __call__(self, texts: str | Sequence[str]) -> list[dict[str, Any]]:
        """The first prompt's answers in the shape of transformers' text-classification pipeline. Raises :class:`UserError`."""
        task = self.tasks[0]
        if task.kind != "classification" or len(task.columns) != 1:
            instead = "generate" if task.is_written else f"predict, with {', '.join(task.columns)}"
            raise UserError(
                f"prompt 0 answers {task.name!r}, of kind {task.kind}, and no text with a class; use {instead}"
            )
        answers = self.predict([{task.columns[0]: text} for text in ([texts] if isinstance(texts, str) else texts)])
        return [{"label": own["label"], "score": own["probabilities"][own["label"]]} for own in answers]

    def generate(
        self, texts: Sequence[Any], prompts: int | Sequence[int] = 0, streamer: Any = None, **settings: Any
    ) -> list[str]:
        """What the language model writes behind each text; ``prompts``: which prompt it stands behind.

        A prompt that was trained on conversations takes them too: lists of messages, each with ``role`` and ``content``.

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
            for place, source in zip(places, self.sources(p, [texts[i] for i in places]), strict=True):
                sources[place] = source
        first = self.prompts[int(choice[0])]
        decode = checked_settings(first.decode, settings)
        if streamer is not None and decode.num_beams > 1:
            raise UserError(
                f"a streamer takes tokens as they come, which {decode.num_beams} beams settle last; set num_beams=1"
            )
        return [own.text for own in self.written(sources, decode, first.encoding.max_target_length, streamer=streamer)]

    def sources(self, prompt: int, texts: Sequence[Any]) -> list[Source]:
        """Texts, tokenised, behind which a prompt is to write. Raises :class:`UserError`."""
        self._check_writes(prompt)
        task, most = self.tasks[prompt], self.prompts[prompt].encoding.max_length
        has_encoder = self.backbone.description.has_encoder
        rows, _ = source_tokens(self.backbone.tokenizer, task, most, as_sources(task, texts), has_encoder)
        return [(prompt, np.asarray(row)) for row in rows]

    def written(self, sources: Sequence[Source], decode: DecodeSection, most: int, **how: Any) -> list[Text]:
        """What is written behind each source, at most ``most`` tokens if ``decode`` names no number; ``how``: streamer, seed."""
        modules = [exported.prompt for exported in self.prompts]
        return write_texts(self.backbone, modules, sources, decode, most, self.budget, **how)

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
        places = [np.flatnonzero(choice == p).tolist() for p in np.unique(choice)]
        questions = [self.question(int(choice[own[0]]), [rows[i] for i in own]) for own in places]
        result: list[dict[str, Any]] = [{} for _ in rows]
        for own, answers in zip(places, self.answers(questions), strict=True):
            for place, answer in zip(own, answers, strict=True):
                result[place] = answer
        return result

    def question(self, prompt: int, rows: Sequence[LocatedRow]) -> Question:
        """Rows for one prompt, checked and tokenised. Raises :class:`UserError`."""
        task, exported = self.tasks[prompt], self.prompts[prompt]
        examples = [prediction_rows(task, where, row) for where, row in rows]
        every = [example for own in examples for example in own]
        described = self.backbone.description
        recipe = Recipe(task, described.tokenizer, exported.encoding, exported.labels, described.has_encoder)
        return Question(prompt, list(map(len, examples)), encode(recipe, every) if every else None)

    def answers(self, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
        """What each question's prompt answers to each of its rows, as :meth:`predict_located` has it, all in common batches."""
        parts: dict[int, list[Features]] = {}
        for asked in questions:
            if asked.features is not None:
                parts.setdefault(asked.prompt, []).append(asked.features)
        used = sorted(parts)
        kinds = [find_kind(self.tasks[p].kind) for p in used]
        features = [in_one(parts[p], kind) for p, kind in zip(used, kinds, strict=True)]
        found = {
            p: iter(kind.describe(self.tasks[p], encoded, outputs, self.prompts[p].labels))
            for p, kind, encoded, outputs in zip(
                used, kinds, features, self.outputs(used, features) if used else [], strict=True
            )
        }
        result = []
        for asked in questions:
            several = [[next(found[asked.prompt]) for _ in range(count)] for count in asked.counts]
            result.append([own[0] if len(own) == 1 else {"predictions": own} for own in several])
        return result

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


def _not_shared(exported: ExportedPrompt) -> UserError:
    return UserError(
        f"{exported.folder}: method 'lora' changes layers of the backbone, which cannot be shared; attach it alone,"
        " with its backbone's path"
    )


def attach(
    prompts: ExportedPrompt | str | Sequence[ExportedPrompt | str],
    backbone: Backbone | str | None = None,
    device: str | None = None,
) -> AttachedPrompts:
    """Load the backbone that the prompts name (or take another path to it) and put the prompts on it.

    A text is what :func:`load_prompt` takes. Raises :class:`UserError` if they belong to different backbones or another than given.
    """
    given = [prompts] if isinstance(prompts, (ExportedPrompt, str)) else prompts
    several = [load_prompt(own) if isinstance(own, str) else own for own in given]
    if not several:
        raise UserError("no prompt to attach; give at least one")
    lora = [exported for exported in several if exported.prompt.lora is not None]
    if lora and (len(several) > 1 or isinstance(backbone, Backbone)):
        raise _not_shared(lora[0])
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
