"""What a run has decided is not asked for again: an option that contradicts it is refused, one that agrees is idle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from shared.errors import InvalidRequest


def check_options_of_run(arguments: argparse.Namespace, config: Mapping[str, Any], name: str) -> None:
    """Refuse options that say something else than the run does.

    Args:
        arguments: Of ``eval``.
        config: The run's configuration.
        name: The run's name.

    Raises:
        InvalidRequest: An option contradicts the run.
    """
    from shared.tasks.named_tasks import named_task
    from shared.tasks.templates import parse_label_words

    rendering = config["rendering"]
    words = dict(rendering["label_words"]) if "label_words" in rendering else None
    task = named_task(arguments.task).name if arguments.task else None
    asked_words = parse_label_words(arguments.label_words) if arguments.label_words else None
    loss = None if arguments.loss == "auto" else arguments.loss
    decided = {
        "--task": (task, rendering.get("task")),
        "--prompt-style": (arguments.prompt_style, rendering.get("prompt_style")),
        "--template": (arguments.template, rendering.get("template")),
        "--label-words": (asked_words, words),
        "--max-tokens": (arguments.max_tokens, config["max_tokens"]),
        "--control-tokens": (arguments.control_tokens, config.get("control_tokens", "tokens")),
        "--loss": (loss, config["settings"]["objective"]),
        "--objective": (arguments.objective, config["settings"].get("metric", "loss")),
        "--checker": (arguments.checker, config["settings"].get("checker")),
        "--answer-tokens": (arguments.answer_tokens, config["settings"].get("answer_tokens")),
    }
    for option, (asked, of_run) in decided.items():
        if asked is not None and asked != of_run:
            raise InvalidRequest(
                f"{option} {_shown(asked)}, but the run {name} was tuned with {_shown(of_run)}",
                needed="what the run was tuned with: its values were chosen for that",
                next_step=f"leave {option} out, or leave --run out to measure the bundle's own values",
                param=option,
            )


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{label}={word}" for label, word in value.items())
    return "none" if value is None else str(value)
