"""How a conversation or a text becomes a prompt: as a run's rows ask, or as the model's chat template does.

    a bundle, or a run of conversations    the chat template
    a run of other rows                    its rows' form around what the user says; only one question, no conversation

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_client.tasks.prompts import Prompts, Question, prompts_of_run
from shared.errors import InvalidRequest
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.rendering import UserRowRenderer


def ask_conversation(prompts: Prompts, messages: Sequence[Mapping[str, Any]]) -> Question:
    """Return the prompt of a conversation.

    Args:
        prompts: How the model's rows become tokens.
        messages: ``{"role", "content"}`` in order; the last one is the user's.

    Raises:
        InvalidRequest: The rows are not conversations, and there is more than one question.
        DataError: The messages are malformed, or the template does not render them.
    """
    if prompts.renderer.kind == "messages":
        return prompts.conversation({"messages": [dict(message) for message in messages]})
    content = messages[0].get("content") if len(messages) == 1 and messages[0].get("role") == "user" else None
    if not isinstance(content, str):
        raise InvalidRequest(
            f"{len(messages)} messages for values that were tuned on {prompts.renderer.kind} rows",
            needed="one message of the user, as text: each row was a question of its own",
            next_step="ask each question alone, or use a run that was tuned on conversations",
            param="messages",
        )
    return prompts.question(content)


def prompts_for(tokenizer: BundleTokenizer, config: Mapping[str, Any] | None) -> Prompts:
    """Return how questions become tokens.

    Args:
        tokenizer: The bundle's.
        config: A run's configuration; None asks by the model's chat template.
    """
    if config is not None:
        return prompts_of_run(config, tokenizer)
    return Prompts(tokenizer, UserRowRenderer(tokenizer, None, "messages"))
