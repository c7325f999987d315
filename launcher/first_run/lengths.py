"""How many tokens of texts are kept: measured with the backbone's own tokenizer, nothing cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from launcher.first_run.files import Split
from launcher.first_run.reasons import Advice
from prompt_tuning.backbone.find import Description, smallest_window
from prompt_tuning.backbone.load import model_on_meta
from prompt_tuning.data.encode import encode
from prompt_tuning.kinds import find_kind
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.labels import label_name
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.recipe import Encoding, Recipe
from prompt_tuning.tokens.rows import own_rows

MEASURED = 4000
"""Rows of a split whose texts are tokenised, evenly spaced."""
WHOLE = 10**6
"""Tokens that no text has: nothing is cut."""
LONGEST, LONGEST_WINDOW, LONGEST_TARGET = 512, 384, 256
"""Tokens kept of a text, of a window over a context, and of a target, where longer ones would cost much."""


@dataclass(frozen=True)
class Sizes:
    """Tokens of the texts of a split, special ones included [sequences], and of the targets [rows] where texts are written."""

    texts: np.ndarray
    targets: np.ndarray
    are_all: bool
    """Whether all rows were measured."""


def choose_lengths(
    advice: Advice, task: Task, splits: Mapping[str, Split], described: Description, base: RunFile, prompt: int
) -> None:
    """Tokens that are kept of texts, and how many rows are cut; ``prompt``: tokens of the prompt."""
    labels = _labels(task, splits)
    sizes = {name: _sizes(task, split, described, labels) for name, split in splits.items()}
    room, limit = _room(described, prompt, base.prompt.positions, task)
    if task.is_written:
        longest = max(int(own.targets.max()) for own in sizes.values())
        most = min(LONGEST_TARGET, room if described.has_encoder else room // 2)
        target = _kept(
            advice, "data.max_target_length", "targets", longest, most, limit if most < LONGEST_TARGET else ""
        )
        _say_cut(advice, "targets", {name: (own.targets, own.are_all) for name, own in sizes.items()}, target)
        room -= 0 if described.has_encoder else target
    longest = max(int(own.texts.max()) for own in sizes.values())
    cap = LONGEST_WINDOW if task.kind == "span" else LONGEST
    what = "questions with contexts" if task.kind == "span" else "texts"
    if task.is_written:
        what = "conversations" if task.is_chat else "sources"
    length = _kept(advice, "data.max_length", what, longest, min(cap, room), limit if room < cap else "")
    if task.kind != "span":
        _say_cut(advice, what, {name: (own.texts, own.are_all) for name, own in sizes.items()}, length)
        return
    why = "contexts fit in one window"
    if longest > length:
        why = "windows over longer contexts share a quarter, so that nothing is cut"
    advice.say("data.stride", length // 4, why)


def _labels(task: Task, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Names enough for all rows that are measured."""
    if task.labels is not None or not find_kind(task.kind).asks_classes:
        return task.labels or find_kind(task.kind).collect_labels(task, splits["train"].rows)
    names = {
        label_name(row.get(task.label_column)) for split in splits.values() for _, row in own_rows(task, split.rows)
    }
    return tuple(sorted(name for name in names if name is not None))


def _sizes(task: Task, split: Split, described: Description, labels: tuple[str, ...]) -> Sizes:
    """Tokenise the texts of a split, nothing cut."""
    step = max(1, -(-len(split.rows) // MEASURED))
    recipe = Recipe(task, described.tokenizer, Encoding(WHOLE, None, 0, WHOLE), labels, described.has_encoder)
    features = encode(recipe, split.rows[::step])
    are_all = step == 1 and split.is_whole
    if task.is_written:
        return Sizes(features.notes.num_source, features.notes.num_labels, are_all)
    return Sizes(np.diff(features.offsets), np.zeros(1, np.int64), are_all)


def _kept(advice: Advice, key: str, what: str, longest: int, most: int, limit: str) -> int:
    """Take a length that no text fills, or ``most``, for which ``limit`` is the reason."""
    length = min(longest // 8 * 8 + 8, most)
    why = f"all {what} fit, the longest has {longest} tokens"
    if longest > length:
        why = f"the longest of the {what} has {longest} tokens; {limit or f'more would cost much, --set {key}=N keeps it'}"
    return int(advice.say(key, length, why))


def _room(described: Description, prompt: int, positions: str, task: Task) -> tuple[int, str]:
    """Most tokens of a text, and of a target behind it, beside the prompt, and what limits them."""
    limit = described.family.max_positions(described.config)
    takes_some = positions == "after_prefix" and described.family.has_positions(described.config)
    beside = prompt if takes_some and not described.has_encoder else 0
    room, why = limit - beside, f"{described.path} takes {limit}" + (f", {beside} of them the prompt" if beside else "")
    window = smallest_window(described.config) if task.is_written else None
    if window is not None and window - prompt < room:
        room, why = window - prompt, f"local layers of {described.path} see {window}, {prompt} of them the prompt"
    return room, why


def _say_cut(advice: Advice, what: str, sizes: Mapping[str, tuple[np.ndarray, bool]], kept: int) -> None:
    for name, (own, are_all) in sizes.items():
        cut = int((own > kept).sum())
        if cut:
            measured = "" if are_all else " that were measured"
            lost = "their oldest messages are" if what == "conversations" else "their ends are"
            advice.notes.append(
                f"{name}: {cut} of {len(own)} {what}{measured} are longer than {kept} tokens, and {lost} cut"
            )


def choose_also(advice: Advice, described: Description, base: RunFile) -> None:
    """Norms alone where the backbone has no biases to train."""
    if "biases" not in base.train.also:
        return
    model = model_on_meta(described.config, described.family, base.backbone)
    matrices = [module for module in model.modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
    if all(getattr(module, "bias", None) is None for module in matrices):
        advice.say("train.also", ["norms"], f"{described.path} has no biases, which the recipe would train too")
