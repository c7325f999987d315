"""OpenAI's protocol for completions of texts and of chats, in which a prompt is called a model.

https://platform.openai.com/docs/api-reference/completions and /chat. What would change the answer and is not done here is refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prompt_tuning.forward.write import Text
from prompt_tuning.messages import show
from prompt_tuning.serve.limits import Refusal
from prompt_tuning.serve.stream import Events, event
from prompt_tuning.settings.decode import DecodeSection


def _no(value: bool) -> bool:
    if value:
        raise ValueError("input should be false")
    return value


_several = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
"""One text stands for a list of it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream says beside its text."""

    include_usage: bool = False


class Asked(_Strict):
    """What requests of both kinds have. Settings that are not given are those that the prompt was trained with."""

    model: str
    max_tokens: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Annotated[list[str], _several] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None
    n: int = Field(1, ge=1, le=1)
    presence_penalty: float = Field(0, ge=0, le=0)
    frequency_penalty: float = Field(0, ge=0, le=0)
    logit_bias: dict[str, float] = Field({}, max_length=0)

    def settings(self, decode: DecodeSection) -> dict[str, Any]:
        """What it changes of a prompt's own ``decode``. Temperature 0 takes the likeliest token."""
        changes: dict[str, Any] = {}
        if self.max_tokens is not None:
            changes["max_new_tokens"] = self.max_tokens
        if self.stop is not None:
            changes["stop"] = self.stop
        if self.temperature == 0:
            changes |= {"sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0}
        elif self.temperature is not None or self.top_p is not None:
            temperature = decode.temperature if self.temperature is None else self.temperature
            top_p = decode.top_p if self.top_p is None else self.top_p
            changes |= {"sample": True, "num_beams": 1, "temperature": temperature, "top_p": top_p}
        return changes

    @property
    def sources(self) -> list[Any]:
        """Behind what is written, one or more."""
        raise NotImplementedError

    def answer(self, written: Sequence[tuple[int, Text]]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(i, text.text, _reason(text)) for i, (_, text) in enumerate(written)]
        return {**self._head(), "choices": choices, "usage": _usage(written)}

    def events(self) -> Events:
        """How its stream is told."""
        return _Chunks(self)

    def _head(self, is_piece: bool = False) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, index: int, text: str, reason: str | None, is_piece: bool = False) -> dict[str, Any]:
        raise NotImplementedError


class Completion(Asked):
    """Texts that are continued."""

    prompt: Annotated[list[str], Field(min_length=1), _several]
    best_of: int = Field(1, ge=1, le=1)
    echo: Annotated[bool, AfterValidator(_no)] = False

    @property
    def sources(self) -> list[Any]:
        """The texts."""
        return self.prompt

    def _head(self, is_piece: bool = False) -> dict[str, Any]:
        return _named("cmpl", "text_completion", self.model)

    def _choice(self, index: int, text: str, reason: str | None, is_piece: bool = False) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


class Part(_Strict):
    """A piece of a message; there are no others than texts here."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """What somebody has said."""

    role: str
    content: str | list[Part]
    name: str | None = None


class Conversation(Asked):
    """Messages, of which the last is answered."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, gt=0)

    @property
    def sources(self) -> list[Any]:
        """The one conversation."""
        return [[{"role": own.role, "content": _plain(own.content)} for own in self.messages]]

    def settings(self, decode: DecodeSection) -> dict[str, Any]:
        """As of every request; the newer name of ``max_tokens`` goes before the older."""
        newer = self.max_completion_tokens
        return {**super().settings(decode), **({} if newer is None else {"max_new_tokens": newer})}

    def _head(self, is_piece: bool = False) -> dict[str, Any]:
        return _named("chatcmpl", f"chat.completion{'.chunk' if is_piece else ''}", self.model)

    def _choice(self, index: int, text: str, reason: str | None, is_piece: bool = False) -> dict[str, Any]:
        said = {"role": "assistant", "content": text}
        return {"index": index, "delta" if is_piece else "message": said, "logprobs": None, "finish_reason": reason}


def _plain(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


AskedKind = TypeVar("AskedKind", bound=Asked)


def read_asked(kind: type[AskedKind], body: dict[str, Any]) -> AskedKind:
    """A body as a request; null is what is not given. Raises :class:`Refusal`."""
    try:
        return kind.model_validate({key: value for key, value in body.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key, value = ".".join(map(str, first["loc"])), first["input"]
        if first["type"] == "missing":
            raise Refusal(400, f"no `{key}` in the body") from None
        if first["type"] == "extra_forbidden":
            raise Refusal(400, f"`{key[:100]}` is not done here; leave it out") from None
        why = first["msg"].removeprefix("Value error, ")
        raise Refusal(400, f"`{key}` is {show(value)}: {why[0].lower()}{why[1:]}") from None


def model_card(name: str) -> dict[str, Any]:
    """A prompt as a model of the protocol."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "promptfleet"}


class _Chunks(Events):
    def __init__(self, asked: Asked) -> None:
        self._asked, self._head = asked, asked._head(is_piece=True)

    def piece(self, text: str) -> bytes:
        return event({**self._head, "choices": [self._asked._choice(0, text, None, is_piece=True)]})

    def end(self, num_source: int, text: Text) -> bytes:
        told = event({**self._head, "choices": [self._asked._choice(0, "", _reason(text), is_piece=True)]})
        if self._asked.stream_options.include_usage:
            told += event({**self._head, "choices": [], "usage": _usage([(num_source, text)])})
        return told + b"data: [DONE]\n\n"

    def error(self, sentence: str) -> bytes:
        return event({"error": {"message": sentence, "type": "server_error", "param": None, "code": None}})


def _named(short: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{short}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _reason(text: Text) -> str:
    return "stop" if text.has_ended else "length"


def _usage(written: Sequence[tuple[int, Text]]) -> dict[str, int]:
    sources, texts = sum(count for count, _ in written), sum(text.num_tokens for _, text in written)
    return {"prompt_tokens": sources, "completion_tokens": texts, "total_tokens": sources + texts}
