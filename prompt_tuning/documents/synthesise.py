"""Training rows for a document's prompt, from the frozen model alone: questions about a passage, answers, and what it expects.

For each passage the model has it in its context, as a prompt that nothing has trained; it goes on with beginnings of questions,
answers them, and its likeliest tokens in each place of the answers are kept (Eyuboglu et al. 2025, arXiv 2506.06266).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.language_head import likeliest, log_probabilities
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.documents.context import context_ids, context_prompt
from prompt_tuning.documents.questions import BLANK, ENDS, GAP, HALF, OPENING, SENTENCE, Beginnings
from prompt_tuning.formats import LocatedRow
from prompt_tuning.forward.loop import Loop
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.forward.write import write_texts
from prompt_tuning.kinds import find_kind
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.tasks.own.document import TEACHER
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.lessons import LESSON_TOKENS
from prompt_tuning.tokens.passages import sentences_of
from prompt_tuning.tokens.recipe import Encoding, Recipe

NEAR_TOKENS = 64
"""Room for the sentence that the teacher reads once more before a question."""
QUESTION_TOKENS = 24
"""Most tokens that are written behind a beginning."""
SPARE = 3
"""Questions that are begun for each one wanted: some are none, some the same, and of some the passage says nothing."""


@dataclass(frozen=True)
class Asking:
    """How passages are asked about."""

    questions: int
    """Most that the model writes about a passage."""
    passage_tokens: int
    seed: int
    beginnings: Beginnings
    temperature: float = 0.5


@dataclass(frozen=True)
class Question:
    """A question about a passage."""

    about: str
    text: str
    near: str = ""
    """The sentence that it is about, which the teacher reads once more before it."""
    answer: str = ""
    """Where the passage itself gives it; empty: the model does."""


Pair = tuple[Question, str]
"""A question and its answer."""


def synthesise(
    backbone: Backbone, task: Task, encoding: Encoding, passage: str, number: int, asking: Asking
) -> list[dict[str, Any]]:
    """Rows about the passage of a number, a function of their settings alone."""
    teacher = Teaching(backbone, task, encoding, context_prompt(backbone, context_ids(backbone, passage)))
    backbone.model.eval()
    nobody = Teaching(backbone, task, encoding, context_prompt(backbone, context_ids(backbone, "")))
    written, whole = _ask(teacher, passage, asking, rng.key(asking.seed, "passage", number))
    pairs = _told(teacher.answered(written), teacher, nobody)[: asking.questions] + teacher.answered(whole)
    lessons = teacher.lessons(pairs)
    return [
        {"question": own.text, "answer": answer, "about": own.about, "passage": number, TEACHER: lesson}
        for (own, answer), lesson in zip(pairs, lessons, strict=True)
    ]


def _told(pairs: list[Pair], teacher: Teaching, nobody: Teaching) -> list[Pair]:
    """Those whose answers the passage makes likelier, by most first: of the others it says nothing."""
    blind = [(replace(own, near=""), answer) for own, answer in pairs]
    gains = np.array(teacher.likelihoods(pairs)) - np.array(nobody.likelihoods(blind))
    return [pairs[place] for place in np.argsort(-gains, kind="stable").tolist() if gains[place] > 0]


def _ask(teacher: Teaching, passage: str, asking: Asking, key: int) -> tuple[list[Question], list[Question]]:
    """Questions that the model has written the ends of, no two alike, and questions that are whole."""
    begun, whole = _begun(passage, asking, key)
    decode = DecodeSection(stop=["\n"], sample=True, temperature=asking.temperature)
    ends = teacher.write([teacher.before(own) for own in begun], decode, key % (1 << 31), QUESTION_TOKENS)
    found: dict[str, Question] = {}
    for own, end in zip(begun, ends, strict=True):
        text = _question(own.text, end)
        if text is not None:
            found.setdefault(text.casefold(), replace(own, text=text))
    return list(found.values()), whole


def _begun(passage: str, asking: Asking, key: int) -> tuple[list[Question], list[Question]]:
    """Beginnings of questions, about one sentence after the other, and questions that are whole."""
    sentences = sentences_of(passage)
    order = rng.permutation(rng.key(key, "sentences"), len(sentences)).tolist()
    whole: list[Question] = []
    plain: list[tuple[str, str]] = []
    for about, own in asking.beginnings.items():
        for text in own:
            if HALF in text:
                whole += [
                    Question(about, text.replace(HALF, first), answer=rest)
                    for number, sentence in enumerate(sentences)
                    for first, rest in _halves(sentence, rng.key(key, "halves", number))
                ]
            elif GAP in text:
                whole += [
                    Question(about, text.replace(GAP, around), answer=words)
                    for number, sentence in enumerate(sentences)
                    for around, words in _gaps(sentence, rng.key(key, "gaps", number))
                ]
            elif SENTENCE in text:
                chosen = order[: max(1, asking.questions // 10)]
                whole += [Question(about, text.replace(SENTENCE, _words(sentences[place]))) for place in chosen]
            elif OPENING in text:
                whole.append(Question(about, text.replace(OPENING, _words(passage))))
            else:
                plain.append((about, text))
    count = round(SPARE * asking.questions) if plain else 0
    turns = rng.permutation(rng.key(key, "beginnings"), max(1, len(plain))).tolist()
    begun = []
    for place in range(count):
        about, text = plain[turns[place % len(plain)]]
        begun.append(Question(about, text, sentences[order[place % len(sentences)]]))
    return begun, whole


def _halves(sentence: str, key: int, most: int = 3) -> list[tuple[str, str]]:
    """A sentence in two, at a few places."""
    words = _plain(sentence)
    places = (rng.permutation(key, max(0, len(words) - 3)) + 2).tolist()[:most]
    return [(" ".join(words[:place]).lstrip("# "), " ".join(words[place:])) for place in places]


def _gaps(sentence: str, key: int, most: int = 3, width: int = 3, beside: int = 8) -> list[tuple[str, str]]:
    """Words around a gap of one to some words, and the words in it, at a few places behind the first word."""
    words, found = _plain(sentence), []
    places = (rng.permutation(key, max(0, len(words) - 1)) + 1).tolist()[:most]
    for turn, place in enumerate(places):
        end = place + 1 + turn % width
        around = [*words[max(0, place - beside) : place], BLANK, *words[end : end + beside]]
        found.append((" ".join(around).lstrip("# "), " ".join(words[place:end])))
    return found


def _words(text: str, most: int = 12) -> str:
    """The first words of a text, on one line."""
    return " ".join(_plain(text)[:most]).lstrip("# ")


def _plain(text: str) -> list[str]:
    """The words of a text, fit to stand in quotes."""
    return text.replace('"', "'").split()


def _question(beginning: str, end: str) -> str | None:
    """The question that a beginning and what was written behind it are; None: none."""
    text = " ".join(f"{beginning} {end}".split())
    places = [text.find(mark) for mark in ENDS if mark in text]
    if not places:
        return None
    question = text[: min(places) + 1]
    return question if len(question) > len(beginning) + 3 else None


@dataclass(frozen=True)
class Teaching:
    """The frozen model with a passage in its context, and how its rows become tokens."""

    backbone: Backbone
    task: Task
    encoding: Encoding
    prompt: Prompt

    def before(self, question: Question) -> str:
        """What stands behind the passage up to the end of a question, or of its beginning."""
        near = f"\n\n{question.near}" if question.near else ""
        return f"{near}{self.task.lead}{question.text}"

    def write(self, texts: list[str], decode: DecodeSection, seed: int = 0, most: int | None = None) -> list[str]:
        """The rest of the line behind each text; empty where it did not end."""
        if not texts:
            return []
        rows = self.backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]
        sources = [(0, np.asarray(own)) for own in rows]
        longest = min(most or self.encoding.max_target_length, self.encoding.max_target_length)
        found = write_texts(self.backbone, [self.prompt], sources, decode, longest, self._budget, seed)
        return [" ".join(own.text.split()) if own.has_ended else "" for own in found]

    def answered(self, questions: list[Question]) -> list[Pair]:
        """Questions with their answers, the passage's own or one line of the model; those without end are left out."""
        asked = [self.before(own) + self.task.separator for own in questions if not own.answer]
        answers = iter(self.write(asked, DecodeSection(stop=["\n"])))
        pairs = [(own, own.answer or next(answers)) for own in questions]
        return [(own, answer) for own, answer in pairs if answer]

    @property
    def _budget(self) -> int:
        return default_budget(self.backbone.grid.device, with_gradients=False)

    def lessons(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        """Of each question and answer the answer's tokens, and in each place the likeliest tokens with their log probabilities."""
        head = self._head
        found = self._each(pairs, lambda states, _: likeliest(head, states, LESSON_TOKENS))
        return [_lesson(target, ids, logs) for target, (logs, ids) in found]

    def likelihoods(self, pairs: list[Pair]) -> list[float]:
        """The log probability of each answer."""
        head = self._head
        found = self._each(pairs, lambda states, wanted: (log_probabilities(head, states, wanted),))
        return [float(logs.sum()) for _, (logs,) in found]

    @property
    def _head(self) -> nn.Module:
        assert self.backbone.language_head is not None
        return self.backbone.language_head

    @torch.no_grad()
    def _each(
        self, pairs: list[Pair], read: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """Of each question and answer the answer's tokens, and what is read of the states [a, H] before them and of them [a]."""
        if not pairs:
            return []
        backbone, kind = self.backbone, find_kind(self.task.kind)
        rows = [{"question": self.before(own), "answer": answer} for own, answer in pairs]
        located: list[LocatedRow] = [(f"question {number}", row) for number, row in enumerate(rows, 1)]
        whole = replace(self.encoding, max_length=self.encoding.max_length + NEAR_TOKENS)
        features = kind.encode(Recipe(replace(self.task, lead=""), backbone.tokenizer, whole, ("text",)), located)
        loop, found = Loop(backbone, [self.prompt], [kind], [features], self._budget), dict[int, list[np.ndarray]]()
        with backbone.at_work():
            for batch in loop.batches([(0, np.arange(len(features)), 1.0)]):
                own = batch.rows_of(0)
                assert own.asked is not None and own.tags is not None
                states = hidden_states(backbone, [self.prompt], batch)[own.tokens][own.asked]
                examples = batch.row_examples.tolist()
                ends = np.cumsum([len(features.asked(example)) for example in examples])[:-1]
                several = [np.split(one.cpu().numpy(), ends) for one in read(states, own.tags[own.asked])]
                found |= dict(zip(examples, map(list, zip(*several, strict=True)), strict=True))
        return [(features.asked(number), found[number]) for number in range(len(pairs))]


def _lesson(target: np.ndarray, ids: np.ndarray, logs: np.ndarray) -> dict[str, Any]:
    rounded = [[round(value, 4) for value in place] for place in logs.tolist()]
    return {"tokens": target.tolist(), "ids": ids.tolist(), "logs": rounded}
