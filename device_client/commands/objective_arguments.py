"""The options that ``tune``, ``eval``, ``data check`` and ``plan`` share: what is lowered or raised, and measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from device_client.commands.task_arguments import positive, seconds
from device_client.tuning.settings import ANSWER_TOKENS, Metric
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from device_client.tasks.checker import CheckerCommand
    from device_client.tasks.scoring import Objective


class AskedObjective(NamedTuple):
    """What is to be lowered or raised.

    Attributes:
        loss: Which loss, or None for the one that fits the rows.
        metric: What is raised instead of lowering it; None lowers it.
        answer_tokens: Most tokens that the model writes; None where it writes nothing.
        checker: What judges the answers.
    """

    loss: Objective | None
    metric: Metric | None
    answer_tokens: int | None
    checker: CheckerCommand | None = None

    @property
    def judged_tokens(self) -> int | None:
        """Most tokens of an answer where the checker alone judges it: rows may then lack theirs."""
        return None if self.checker is None else self.answer_tokens


def add_objective_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare which objective."""
    parser.add_argument(
        "--objective", choices=("loss", "accuracy", "f1", "exact-match"),
        help="lower the loss; or raise the share of rows whose right candidate scores highest, or what the model's "
        "own answer shares with the row's: words (f1), or all of them (exact-match) (default: loss)",
    )  # fmt: skip
    parser.add_argument(
        "--loss", choices=("auto", "candidates", "vocabulary"), default="auto",
        help="over the candidate answers, or over the whole vocabulary (default: candidates where there are some)",
    )  # fmt: skip
    parser.add_argument(
        "--answer-tokens", type=positive, metavar="N",
        help=f"most tokens of the model's own answers (default: {ANSWER_TOKENS})",
    )  # fmt: skip
    parser.add_argument(
        "--checker", metavar="COMMAND",
        help="raise what this command says of the model's own answers instead; rows need none. For each it reads a "
        'line {"prompt", "answer", "row"} and prints a number, higher is better, on a line of its own, flushed',
    )  # fmt: skip
    parser.add_argument(
        "--checker-timeout", type=seconds, default=30.0, metavar="30s", help="for each answer (default: 30s)"
    )
    parser.add_argument(
        "--checker-may-connect", action="store_true", help="leave the network to the checker: it sees your rows"
    )


def asked_objective(arguments: argparse.Namespace) -> AskedObjective:
    """Return what was asked for.

    Raises:
        InvalidRequest: Options contradict each other, or there is no such command.
    """
    from device_client.tasks.checker import checker_command

    loss = None if arguments.loss == "auto" else arguments.loss
    metric: Metric | None = None if arguments.objective in (None, "loss") else arguments.objective
    if arguments.checker is not None:
        if arguments.objective is not None:
            raise InvalidRequest(
                f"--objective {arguments.objective} with --checker",
                needed="one of them: what the checker says is the objective",
                next_step="leave --objective out",
                param="objective",
            )
        command = checker_command(arguments.checker)
        return AskedObjective(loss, "checker", arguments.answer_tokens or ANSWER_TOKENS, command)
    if metric in ("f1", "exact-match"):
        return AskedObjective(loss, metric, arguments.answer_tokens or ANSWER_TOKENS)
    if arguments.answer_tokens is not None:
        raise InvalidRequest(
            f"--answer-tokens {arguments.answer_tokens} with an objective for which the model writes nothing",
            needed="--objective f1 or exact-match, or --checker",
            next_step="leave --answer-tokens out",
            param="answer_tokens",
        )
    return AskedObjective(loss, metric, None)
