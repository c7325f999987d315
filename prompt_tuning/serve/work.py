"""What requests ask of the model, as jobs: predictions, texts, texts piece by piece, and other prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from model_parallel.memory import give_back
from prompt_tuning.forward.write import Source, Text, check_positions, text_of
from prompt_tuning.predict import Question
from prompt_tuning.serve.batcher import Job
from prompt_tuning.serve.bounds import Limits
from prompt_tuning.serve.limits import Refusal
from prompt_tuning.serve.store import Store
from prompt_tuning.serve.stream import Streamer
from prompt_tuning.settings.decode import DecodeSection, checked_settings

ROWS_BETWEEN = 1000
"""Memory is given back to the system after so many rows, as `predict` does."""
MOST_STOPS = 16
"""Texts at which writing ends, each looked for after every token."""
SETTINGS = set(DecodeSection.model_fields) - {"max_examples"}


class Work:
    """Makes jobs for the prompts of a store."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.store, self.model, self.limits = store, store.model, limits
        self._rows_since = 0

    def predict(self, name: str, rows: Sequence[dict[str, Any]]) -> Job:
        """What a prompt answers to rows. Raises :class:`Refusal`."""
        exported = self.store.find(name)
        located = [(f"row {i}", row) for i, row in enumerate(rows, 1)]

        def prepare() -> tuple[tuple[str, Question], int]:
            place = self.store.place(name)
            question = self.model.question(place, located)
            tokens, task = 0, self.model.tasks[place]
            if question.features is not None:
                behind = _most(exported.decode, exported.encoding.max_target_length) if task.is_written else 0
                rows_of_tokens = len(question.features.offsets) - 1
                tokens = len(question.features.tokens) + rows_of_tokens * (exported.prompt.length + behind)
            self._check_tokens(tokens)
            return (name, question), tokens

        # What is drawn depends on what is drawn beside it.
        return Job(self._answers, None if exported.decode.sample else "predict", prepare)

    def _answers(self, asked: list[tuple[str, Question]]) -> list[Any]:
        names, questions = [name for name, _ in asked], [question for _, question in asked]
        found = self.store.shelf.each(names, lambda some: self.model.answers([questions[i] for i in some]))
        self._rows_since += sum(len(own.counts) for own in questions)
        if self._rows_since >= ROWS_BETWEEN:
            self._rows_since = 0
            give_back()
        return found

    def generate(
        self,
        name: str,
        texts: Sequence[Any],
        settings: dict[str, Any],
        pieces: Callable[[str], None] | None = None,
        seed: int = 0,
    ) -> Job:
        """What is written behind texts: for each the tokens that it has itself, and a :class:`~prompt_tuning.forward.write.Text`.

        ``pieces`` is given the only one as it grows, in the model's thread; ``seed`` counts where tokens are drawn.

        Raises :class:`Refusal` and :class:`UserError`.
        """
        exported = self.store.find(name)
        if unknown := sorted(set(settings) - SETTINGS):
            raise Refusal(400, f"unknown setting {unknown[0][:128]!r}; there are {', '.join(sorted(SETTINGS))}")
        decode, length = checked_settings(exported.decode, settings), exported.encoding.max_target_length
        most = _most(decode, length)
        if most > self.limits.new_tokens:
            raise Refusal(400, f"max_new_tokens={most}; at most {self.limits.new_tokens} are written here")
        if len(decode.stop) > MOST_STOPS:
            raise Refusal(400, f"{len(decode.stop)} texts in `stop`; give {MOST_STOPS} at most")
        if pieces is not None and decode.num_beams > 1:
            raise Refusal(400, f"num_beams={decode.num_beams} does not go with `stream`; keep one of them")

        def prepare() -> tuple[tuple[str, list[Source]], int]:
            place = self.store.place(name)
            if not self.model.tasks[place].is_written:
                raise Refusal(
                    400, f"prompt {name!r} answers {self.model.tasks[place].kind} and writes no texts; use /predict"
                )
            sources = self.model.sources(place, texts)
            lengths = [len(tokens) for _, tokens in sources]
            check_positions(self.model.backbone, exported.prompt, max(lengths, default=0), most)
            tokens = decode.num_beams * sum(exported.prompt.length + own + most for own in lengths)
            self._check_tokens(tokens)
            return (name, sources), tokens

        def run(several: list[tuple[str, list[Source]]]) -> list[Any]:
            streamer = None
            if pieces is not None:
                streamer = Streamer(
                    partial(text_of, self.model.backbone.tokenizer, stop=decode.stop), decode.stop, pieces
                )

            def some(places: list[int]) -> list[list[tuple[int, Text]]]:
                own = [several[i][1] for i in places]
                every = [source for sources in own for source in sources]
                written = iter(self.model.written(every, decode, length, streamer=streamer, seed=seed))
                return [[(len(tokens), next(written)) for _, tokens in sources] for sources in own]

            return self.store.shelf.each([name for name, _ in several], some)

        is_alone = decode.sample or pieces is not None
        return Job(run, None if is_alone else ("generate", decode.model_dump_json(), length), prepare)

    def _check_tokens(self, tokens: int) -> None:
        if tokens > self.limits.tokens:
            raise Refusal(
                413,
                f"the request has {tokens} tokens, with prompts and what may be written;"
                f" send {self.limits.tokens} at most at once",
            )


def _most(decode: DecodeSection, length: int) -> int:
    return decode.max_new_tokens or length
