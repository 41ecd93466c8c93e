"""The requests of OpenAI's interface that are served, and its errors.

A field that would change the answer and that nothing here computes is refused by name unless it has the value that
changes nothing; fields that only say something to OpenAI's own service are taken and unused. Field names, defaults and
the form of errors are those of OpenAI's public reference. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from shared.errors import InvalidRequest

MOST_CHOICES = 16
_Stop = Annotated[StrictStr, Field(min_length=1, max_length=1000)]
_NEUTRAL: dict[str, Sequence[object]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
"""Fields that change the answer, and the values of them that do not; null never does."""

_WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier",
        "prompt_cache_retention", "reasoning_effort", "verbosity",
    }
)  # fmt: skip
"""Fields that are taken and unused: they say something to OpenAI's own service, or steer models that reason."""


class ApiError(Exception):
    """An answer of OpenAI's interface that is an error.

    Args:
        status: HTTP status.
        message: For people.
        kind: ``invalid_request_error``, ``authentication_error``, ``server_error`` …
        code: For programs, or None.
        param: The field at fault, or None.
        headers: Besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """What a stream holds besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: StrictBool = False


class _TextRequest(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    n: StrictInt | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    seed: StrictInt | None = Field(default=None, ge=-(2**63), lt=2**63)

    @property
    def stops(self) -> list[str]:
        """The strings that end the text."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def check_other_fields(self) -> None:
        """Refuse fields that nothing here computes.

        Raises:
            InvalidRequest: There is one with a value that would change the answer, or one that is not known at all.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _WITHOUT_EFFECT or value is None or value in _NEUTRAL.get(name, ()):
                continue
            is_known = name in _NEUTRAL
            raise InvalidRequest(
                f"{name[:80]} is not supported here" if is_known else f"unknown field {name[:80]!r}",
                needed=" or ".join(map(repr, _NEUTRAL[name])) if _NEUTRAL.get(name) else "a request without it",
                next_step=f"leave {name[:80]} out",
                param=name[:80],
            )


class Message(BaseModel):
    """One message of a conversation; what else it has goes to the model's template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    content: StrictStr | list[dict[str, Any]] | None = None


class ChatRequest(_TextRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)

    @property
    def new_tokens(self) -> int | None:
        """At most so many new tokens; None leaves it to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """Of how many tokens probabilities are wanted; None wants none."""
        if not self.logprobs:
            if self.top_logprobs is not None:
                raise InvalidRequest("top_logprobs without logprobs", needed="logprobs: true", param="top_logprobs")
            return None
        return self.top_logprobs or 0


class CompletionRequest(_TextRequest):
    """``POST /v1/completions``."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    max_tokens: StrictInt | None = Field(default=None, ge=1)
    logprobs: StrictInt | None = Field(default=None, ge=0, le=5)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or in tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
