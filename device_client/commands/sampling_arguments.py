"""The options of ``generate`` and ``chat`` that say how tokens are chosen."""

from __future__ import annotations

import argparse

from shared.errors import InvalidRequest


def add_sampling_arguments(parser: argparse.ArgumentParser, most_tokens: int) -> None:
    """Declare how many tokens, and how they are chosen."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=most_tokens, metavar="N", help=f"at most so many tokens ({most_tokens})"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest P (1)")
    parser.add_argument("--seed", type=int, metavar="S", help="repeat a sample (drawn anew)")


def check_sampling(arguments: argparse.Namespace, next_step: str) -> None:
    """Refuse numbers out of range.

    Raises:
        InvalidRequest: One is.
    """
    wrong = [
        fault
        for fault, is_wrong in (
            (f"--max-new-tokens {arguments.max_new_tokens}", arguments.max_new_tokens < 1),
            (f"--temperature {arguments.temperature}", not 0 <= arguments.temperature < float("inf")),
            (f"--top-p {arguments.top_p}", not 0 < arguments.top_p <= 1),
            (f"--seed {arguments.seed}", arguments.seed is not None and not 0 <= arguments.seed < 1 << 64),
        )
        if is_wrong
    ]
    if wrong:
        raise InvalidRequest(wrong[0], needed="N ≥ 1, T ≥ 0, 0 < P ≤ 1, 0 ≤ S < 2^64", next_step=next_step)
