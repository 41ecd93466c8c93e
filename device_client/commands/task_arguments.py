"""The options that ``tune``, ``eval`` and ``data check`` share: which rows, and how they become prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_client.tasks.task_data import DataOptions

DEFAULT_VALIDATION_SHARE = 0.2


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which rows are read and how they become prompts."""
    group = parser.add_argument_group("rows")
    group.add_argument("--data", type=Path, metavar="FILE", help="rows as JSONL, CSV or TSV")
    group.add_argument("--task", metavar="NAME", help="one of SST-2, RTE, CB, BoolQ, WSC, WiC, COPA")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the named tasks' folders")
    group.add_argument(
        "--prompt-style", choices=("llama", "mistral", "opt"), help="column of the paper's Table 6 (default: by model)"
    )
    group.add_argument("--template", help='of labelled rows, such as "{text} It was {label}"')
    group.add_argument("--label-words", metavar="LABEL=WORD,…", help="words that stand for the labels")
    group.add_argument("--max-tokens", type=positive, metavar="N", help="longest sequence (default: the model's)")
    group.add_argument(
        "--control-tokens", choices=("text", "tokens"),
        help="how control tokens are read that rows spell, such as </s> (default: text; tokens for rows that are "
        "written in the model's own template)",
    )  # fmt: skip


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the rows are split and how many are used."""
    group = parser.add_argument_group("splits")
    group.add_argument("--validation", type=Path, metavar="FILE", help="rows that the best values are chosen by")
    group.add_argument(
        "--validation-share", type=share, metavar="0…1",
        help=f"share of the rows held out where there is no --validation (default: {DEFAULT_VALIDATION_SHARE}; named "
        "tasks: as many as --validation-rows, at most half)",
    )  # fmt: skip
    group.add_argument("--test", type=Path, metavar="FILE", help="rows that are only reported on")
    group.add_argument("--train-rows", type=positive, metavar="N", help="draw so many (named tasks: 1000)")
    group.add_argument("--validation-rows", type=positive, metavar="N", help="draw so many (named: 500; CB, COPA: 100)")
    group.add_argument("--test-rows", type=positive, metavar="N", help="draw so many (named tasks: 1000)")


def data_options(arguments: argparse.Namespace, *, seed: int) -> DataOptions:
    """Return the options given.

    A named task draws as many rows as Appendix C.4 does, as far as its files allow: 1,000 for training, 500 others for
    validation (CB and COPA 100; at most half of all), up to 1,000 for the test.

    Raises:
        InvalidRequest: The label words are malformed, or there is no such task.
    """
    from device_client.tasks.task_data import DataOptions
    from shared.tasks.named_tasks import named_task
    from shared.tasks.templates import DEFAULT_TEMPLATE, parse_label_words

    task = named_task(arguments.task) if arguments.task else None
    return DataOptions(
        data=arguments.data,
        task=arguments.task,
        data_dir=arguments.data_dir,
        prompt_style=arguments.prompt_style,
        template=arguments.template or DEFAULT_TEMPLATE,
        label_words=parse_label_words(arguments.label_words) if arguments.label_words else None,
        validation=arguments.validation,
        validation_share=arguments.validation_share or (None if task else DEFAULT_VALIDATION_SHARE),
        test=arguments.test,
        train_rows=arguments.train_rows or (1000 if task else None),
        validation_rows=arguments.validation_rows or (task.validation_rows if task else None),
        test_rows=arguments.test_rows or (1000 if task else None),
        seed=seed,
        max_tokens=arguments.max_tokens,
        control_tokens=arguments.control_tokens or "text",
    )


def positive(text: str) -> int:
    """Return a whole number ≥ 1.

    Raises:
        argparse.ArgumentTypeError: It is none; the parser adds the name of the option.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; needed: a whole number from 1 on")
    return int(text)


def share(text: str) -> float:
    """Return a number between 0 and 1.

    Raises:
        argparse.ArgumentTypeError: It is none; the parser adds the name of the option.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; needed: a number between 0 and 1, such as 0.2")
    return value


def positive_number(text: str) -> float:
    """Return a finite number > 0.

    Raises:
        argparse.ArgumentTypeError: It is none; the parser adds the name of the option.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; needed: a number above 0")
    return value


def seconds(text: str) -> float:
    """Return the seconds that ``90``, ``90s``, ``10m`` or ``2h`` name.

    Raises:
        argparse.ArgumentTypeError: It is no duration; the parser adds the name of the option.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    scale = units.get(text[-1:].lower())
    try:
        value = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; needed: a number with s, m or h, such as 10m")
    return value
