"""The rows of one run: read, split, rendered and turned into tokens.

    --data FILE     training rows; validation rows from --validation FILE, or held out of the training rows by seed
    --task NAME     a named task's training rows, some of them held out for validation; its official validation rows as
                    test rows (Appendix C.4: 1,000 / 500 / up to 1,000; CB and COPA 100 for validation)

Reads files; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.errors import InvalidRequest
from shared.tasks.conversations import ChatRenderer
from shared.tasks.datasets import Record, digest_of_rows, draw_rows, hold_out, read_records
from shared.tasks.examples import Example, TextEncoder, encode_rows
from shared.tasks.named_tasks import PromptStyle, named_task, prompt_style
from shared.tasks.rendering import NamedTaskRenderer, RowRenderer, UserRowRenderer
from shared.tasks.templates import DEFAULT_TEMPLATE, label_template, row_kind


class Tokenizer(TextEncoder, ChatRenderer, Protocol):
    """Encodes text and renders conversations."""


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which rows, and how they become prompts.

    Attributes:
        data: File of training rows; or else ``task`` is given.
        task: Name of one of the paper's tasks.
        data_dir: Folder of the named tasks' folders.
        prompt_style: Column of Table 6; None follows the model's family.
        template: Of labelled rows.
        label_words: Label → word; None takes the labels as they are.
        validation: File of validation rows.
        validation_share: Share of the training rows held out where there is no such file; None holds out
            ``validation_rows`` of them, or half where that would leave fewer for training.
        test: File of test rows.
        train_rows: At most so many training rows, drawn by ``seed``; None takes all.
        validation_rows: The same for validation rows.
        test_rows: The same for test rows.
        seed: Of the draws.
        max_tokens: Longest sequence; None means the model's context.
    """

    data: Path | None = None
    task: str | None = None
    data_dir: Path | None = None
    prompt_style: PromptStyle | None = None
    template: str = DEFAULT_TEMPLATE
    label_words: Mapping[str, str] | None = None
    validation: Path | None = None
    validation_share: float | None = 0.2
    test: Path | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    seed: int = 0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of one run as they were read."""

    training: list[Record]
    validation: list[Record]
    test: list[Record] = field(default_factory=list)

    @property
    def digests(self) -> dict[str, str]:
        """The content's digest of each part."""
        return {
            "training": digest_of_rows(self.training),
            "validation": digest_of_rows(self.validation),
            "test": digest_of_rows(self.test),
        }


@dataclass(frozen=True, slots=True)
class TaskData:
    """The rows of one run in tokens.

    Attributes:
        training: Examples to learn from.
        validation: Examples to choose by.
        test: Examples to report on; may be empty.
        renderer: What rendered them.
        digests: The content's digest of each part.
    """

    training: list[Example]
    validation: list[Example]
    test: list[Example]
    renderer: RowRenderer
    digests: Mapping[str, str]


def load_task_data(options: DataOptions, tokenizer: Tokenizer, model_type: str) -> TaskData:
    """Return the rows of one run in tokens.

    Raises:
        InvalidRequest: Not exactly one of ``data`` and ``task`` is given, or the task is unknown.
        DataError: A file or row is unusable, or a label does not occur in the training rows.
    """
    records = read_task_records(options)
    renderer = make_renderer(options, records.training, tokenizer, model_type)

    def encode(part: Sequence[Record]) -> list[Example]:
        return encode_rows(renderer.render(part), tokenizer, max_tokens=options.max_tokens) if part else []

    return TaskData(
        encode(records.training), encode(records.validation), encode(records.test), renderer, records.digests
    )


def read_task_records(options: DataOptions) -> Records:
    """Return the rows of one run as they are in the files.

    Raises:
        InvalidRequest: Not exactly one of ``data`` and ``task`` is given, or the task is unknown.
        DataError: A file is unusable.
    """
    check_source(options)
    everything = read_part(options, "train")
    if options.validation is not None:
        training, validation = everything, read_records(options.validation)
    else:
        training, validation = hold_out(everything, _held_out_share(options, len(everything)), options.seed)
    has_test = options.test is not None or options.task is not None
    test = read_part(options, "test") if has_test else []
    return Records(
        draw_rows(training, options.train_rows, options.seed),
        draw_rows(validation, options.validation_rows, options.seed),
        draw_rows(test, options.test_rows, options.seed),
    )


def _held_out_share(options: DataOptions, row_count: int) -> float:
    if options.validation_share is not None:
        return options.validation_share
    half = row_count // 2
    return min(options.validation_rows or half, half) / row_count


def check_source(options: DataOptions) -> None:
    """Refuse anything but exactly one source of rows.

    Raises:
        InvalidRequest: Both or none of ``data`` and ``task`` are given.
    """
    if (options.data is None) == (options.task is None):
        raise InvalidRequest(
            "--data and --task" if options.data else "neither --data nor --task",
            needed="exactly one of them",
            next_step="--data FILE for your own rows, --task NAME --data-dir DIR for one of the paper's tasks",
        )


def read_part(options: DataOptions, part: str) -> list[Record]:
    """Return the training or test rows of a file or of a named task.

    Raises:
        InvalidRequest: The task is unknown, or the named task has no folder.
        DataError: A file is missing or unusable.
    """
    own = options.data if part == "train" else options.test
    if own is not None:
        return read_records(own)
    if options.task is None or options.data_dir is None:
        raise InvalidRequest(f"--task {options.task}", needed="the folder of its rows", next_step="--data-dir DIR")
    return named_task(options.task).records(options.data_dir, "train" if part == "train" else "test")


def make_renderer(options: DataOptions, training: Sequence[Record], chat: ChatRenderer, model_type: str) -> RowRenderer:
    """Return what renders the rows of a run that learns from these training rows.

    Raises:
        DataError: A training row has no usable label.
    """
    if options.task is not None:
        return NamedTaskRenderer(named_task(options.task).name, options.prompt_style or prompt_style(model_type))
    if row_kind(training[0]) != "labelled":
        return UserRowRenderer(chat, None)
    return UserRowRenderer(chat, label_template(training, options.template, options.label_words))
