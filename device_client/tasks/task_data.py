"""The rows of one run: read, split, rendered and turned into tokens.

    --data FILE     training rows; validation rows from --validation FILE, or held out of the training rows by seed
    --task NAME     a named task's training rows, some of them held out for validation; its official validation rows as
                    test rows (Appendix C.4: 1,000 / 500 / up to 1,000; CB and COPA 100 for validation)

Reads files; knows nothing about models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device_client.tasks.prompts import ControlTokens, Prompts, Tokenizer, count_spelling_rows, mark_control_tokens
from shared.errors import InvalidRequest
from shared.tasks.conversations import ChatRenderer
from shared.tasks.datasets import Record, digest_of_rows, draw_rows, hold_out, read_records
from shared.tasks.examples import Example
from shared.tasks.named_tasks import PromptStyle, named_task, prompt_style
from shared.tasks.rendering import NamedTaskRenderer, RowRenderer, UserRowRenderer
from shared.tasks.templates import DEFAULT_TEMPLATE, LabelTemplate, has_answer, label_of, label_template, row_kind


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
        control_tokens: What a control token is that a row spells.
        judged_tokens: Most tokens of the model's own answers, where something judges those: rows may then lack theirs.
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
    control_tokens: ControlTokens = "text"
    judged_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """The rows of one run as they were read.

    Attributes:
        training: Rows to learn from.
        validation: Rows to choose by.
        test: Rows to report on.
        whole_file: All rows of the training file: their labels are what there is to choose from, whatever was drawn.
    """

    training: list[Record]
    validation: list[Record]
    test: list[Record] = field(default_factory=list)
    whole_file: list[Record] = field(default_factory=list)

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
        prompts: What made them, and makes other rows and questions in the same way.
        digests: The content's digest of each part.
        warnings: What a person should know of the rows before anything is learnt of them.
    """

    training: list[Example]
    validation: list[Example]
    test: list[Example]
    prompts: Prompts
    digests: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def load_task_data(options: DataOptions, tokenizer: Tokenizer, model_type: str) -> TaskData:
    """Return the rows of one run in tokens.

    Raises:
        InvalidRequest: Not exactly one of ``data`` and ``task`` is given, or the task is unknown.
        DataError: A file or row is unusable, or a label does not occur in the training rows.
    """
    records = read_task_records(options)
    prompts = make_prompts(options, records.whole_file, tokenizer, model_type)
    training, validation, test = (
        make_examples(options, prompts, part) for part in (records.training, records.validation, records.test)
    )
    warnings = [*row_warnings(records.whole_file, prompts), *cut_warnings([*training, *validation, *test])]
    return TaskData(training, validation, test, prompts, records.digests, tuple(warnings))


def make_examples(options: DataOptions, prompts: Prompts, records: Sequence[Record]) -> list[Example]:
    """Return rows in tokens.

    Raises:
        DataError: A row is unusable, or lacks an answer that nothing else judges.
    """
    if options.judged_tokens is None:
        return prompts.examples(records)
    return prompts.judged(records, options.judged_tokens)


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
        is_labelled = options.task is None and row_kind(everything[0]) == "labelled"
        training, validation = hold_out(
            everything, _held_out_share(options, len(everything)), options.seed,
            strata=[_stratum(options, record) for record in everything] if is_labelled else None,
        )  # fmt: skip
    has_test = options.test is not None or options.task is not None
    test = read_part(options, "test") if has_test else []
    return Records(
        draw_rows(training, options.train_rows, options.seed),
        draw_rows(validation, options.validation_rows, options.seed),
        draw_rows(test, options.test_rows, options.seed),
        everything,
    )


def _stratum(options: DataOptions, record: Record) -> str:
    """Return the label that a row is held out by; rows that may lack theirs are one class of their own."""
    return "" if options.judged_tokens is not None and not has_answer(record) else label_of(record)


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


def make_prompts(options: DataOptions, records: Sequence[Record], tokenizer: Tokenizer, model_type: str) -> Prompts:
    """Return what turns the rows of a run into tokens.

    Args:
        options: How rows become prompts.
        records: The rows whose labels are to choose from.
        tokenizer: The model's.
        model_type: The model's family.

    Raises:
        DataError: A row has no usable label.
    """
    marked = mark_control_tokens(records, tokenizer, options.control_tokens)
    renderer = _make_renderer(options, marked, tokenizer, model_type)
    return Prompts(tokenizer, renderer, options.max_tokens, options.control_tokens)


def _make_renderer(options: DataOptions, records: Sequence[Record], chat: ChatRenderer, model_type: str) -> RowRenderer:
    if options.task is not None:
        return NamedTaskRenderer(named_task(options.task).name, options.prompt_style or prompt_style(model_type))
    kind = row_kind(records[0])
    if kind != "labelled":
        return UserRowRenderer(chat, None, kind)
    if options.judged_tokens is None:
        return UserRowRenderer(chat, label_template(records, options.template, options.label_words))
    answered = [record for record in records if has_answer(record)]
    if options.label_words is None and len(set(map(label_of, answered))) < 2:
        return UserRowRenderer(chat, LabelTemplate(options.template, {}))
    return UserRowRenderer(chat, label_template(answered, options.template, options.label_words))


def row_warnings(records: Sequence[Record], prompts: Prompts) -> list[str]:
    """Return what a person should know of rows as they are in the file: labels alike, control tokens spelt."""
    warnings = []
    if isinstance(prompts.renderer, UserRowRenderer) and prompts.renderer.labels is not None:
        spellings: dict[str, set[str]] = defaultdict(set)
        for label in map(label_of, filter(has_answer, records)):
            spellings[" ".join(label.casefold().split())].add(label)
        alike = [" = ".join(map(repr, sorted(labels))) for labels in spellings.values() if len(labels) > 1]
        if alike:
            warnings.append(
                f"Labels that differ by case or blanks alone are different answers: {'; '.join(sorted(alike))}. "
                "Next: write them alike if they mean the same"
            )
        if not spellings and prompts.renderer.labels.template == DEFAULT_TEMPLATE:
            warnings.append(
                "No row has a label, and each text is asked for one: by the default template. Next: --template in your "
                "own words; or rename the field text to prompt, which is asked as it stands"
            )
    spelling = count_spelling_rows(records, prompts.tokenizer) if prompts.control_tokens == "text" else 0
    if spelling:
        warnings.append(
            f"{spelling} of {len(records)} rows spell control tokens of the model, which are read as text. "
            "Next: --control-tokens tokens if the rows are written in the model's own template"
        )
    return warnings


def cut_warnings(examples: Sequence[Example]) -> list[str]:
    """Return how many examples lost a part because they are longer than the longest sequence."""
    prompts = sum(example.truncated_tokens > 0 for example in examples)
    answers = sum(example.lost_answer_tokens > 0 for example in examples)
    warnings = []
    if prompts:
        warnings.append(
            f"{prompts} of {len(examples)} prompts are longer than the longest sequence: cut at their beginning. "
            "Next: a larger --max-tokens, as far as the model's context goes, or shorter rows"
        )
    if answers:
        warnings.append(
            f"{answers} of {len(examples)} answers are longer than the longest sequence: they lose their end, and so "
            "where to stop. Next: a larger --max-tokens, as far as the model's context goes, or shorter answers"
        )
    return warnings
