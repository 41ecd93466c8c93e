"""Renders conversations without a template, for tests that look at rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class PlainChat:
    """Writes a conversation as ``role|content;``."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        text = "".join(f"{message['role']}|{message['content']};" for message in messages)
        return text + ("assistant|" if add_generation_prompt else "")
