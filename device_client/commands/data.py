"""``zo-device data check``: what a file of rows will look like to the model, before anything is tuned."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from device_client.commands.objective_arguments import AskedObjective, add_objective_arguments, asked_objective
from device_client.commands.task_arguments import add_row_arguments, add_split_arguments, data_options
from device_client.console import Console
from device_client.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.model.tokenizer import BundleTokenizer
    from shared.tasks.examples import Example

NAME = "data"
HELP = "check rows before tuning: data check --data FILE"
ROW_EXAMPLES = """\
files are UTF-8, or UTF-16 with a byte order mark. An assistant's message with "weight": 0 (or "train": false,
"loss": false, "masked": true) is context and not an answer.

rows of a .jsonl file, one per line and all of one kind:
  {"text": "the soup was cold", "label": "negative"}
  {"prompt": "Capital of France? ", "completion": "Paris"}
  {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]}
rows of a .csv or .tsv file come after a line of names:
  text,label
  the soup was cold,negative
With --checker COMMAND rows may lack their label or completion or the assistant's last turn.
"""
SHOWN_ROWS = 3
SHOWN_PROMPT = 1000
"""Characters of a prompt that are shown."""
SHOWN_ANSWER = 100
"""Tokens of an answer that are shown."""
HISTOGRAM_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments, and show the rows that are accepted."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = ROW_EXAMPLES
    parser.add_argument("action", choices=("check",), help="check: read, render and count; nothing is written")
    parser.add_argument("reference", nargs="?", metavar="REF", help="bundle whose tokenizer counts (default: the only)")
    add_row_arguments(parser)
    add_split_arguments(parser)
    add_objective_arguments(parser.add_argument_group("objective"))
    parser.add_argument("--seed", type=int, default=0, help="of the split and the draws (default: 0)")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Read, split, render and count the rows, and show three of them.

    Rows are shown to the person at the console only; the returned object holds counts. No checker is started.

    Raises:
        InvalidRequest: Options contradict each other, or there is no such checker.
        DataError: A file or row is unusable, or not for this objective.
    """
    from device_client.store import resolve_bundle
    from device_client.tasks.gradable import goal_warnings
    from device_client.tasks.scoring import settled_objective
    from device_client.tasks.task_data import load_task_data
    from shared.model.tokenizer import BundleTokenizer
    from shared.tasks.datasets import read_layout

    asked = asked_objective(arguments)
    bundle = resolve_bundle(settings, arguments.reference)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    options = replace(data_options(arguments, seed=arguments.seed), judged_tokens=asked.judged_tokens)
    data = load_task_data(options, tokenizer, str(bundle.config.architecture["model_type"]))
    parts = {"training": data.training, "validation": data.validation, "test": data.test}
    everything = [example for examples in parts.values() for example in examples]
    objective = settled_objective(everything, asked.loss, asked.metric)
    warnings = [*data.warnings, *goal_warnings(everything, asked.metric, asked.answer_tokens, tokenizer)]
    summary = {name: summarise(examples, asked, tokenizer) for name, examples in parts.items() if examples}
    columns = ("rows", "count", "median tokens", "longest", "cut prompts", "cut answers", "answers")
    names = answer_names(data.training, tokenizer)
    for path in (options.data, options.validation, options.test):
        layout = read_layout(path) if path else None
        if path and layout:
            console.say(f"{path.name}: {layout}")
    console.table("Rows", columns, [(name, *_cells(counts, names)) for name, counts in summary.items()])
    console.say(goal_line(summary, asked))
    for warning in warnings:
        console.warn(warning)
    if names and len(summary["training"]["answers"]) == 1:
        console.warn("all training rows have the same answer: nothing can be learnt from them but to give it")
    console.table("Tokens of the training rows", ("up to", "rows"), list(histogram(data.training).items()))
    for number, example in enumerate(data.training[:SHOWN_ROWS], start=1):
        console.say(f"Row {number} ({example.place}), scored tokens in ⟦ ⟧: {marked(example, tokenizer)}")
    return {
        "rows": summary,
        "token_histogram": histogram(data.training),
        "objective": objective,
        "metric": asked.metric,
        "answer_tokens": asked.answer_tokens,
        "warnings": warnings,
        **data.prompts.as_config(),
    }


def summarise(examples: Sequence[Example], asked: AskedObjective, tokenizer: BundleTokenizer) -> dict[str, Any]:
    """Return counts over the examples, and what the objective can say of them."""
    from device_client.tasks.gradable import gradable

    found = gradable(examples, asked.metric, asked.answer_tokens, tokenizer)
    lengths = sorted(example.token_count for example in examples)
    return {
        "count": len(examples),
        "median_tokens": lengths[len(lengths) // 2],
        "longest_tokens": lengths[-1],
        "truncated_rows": sum(example.truncated_tokens > 0 for example in examples),
        "cut_answers": sum(example.lost_answer_tokens > 0 for example in examples),
        "with_answer": sum(example.has_answer for example in examples),
        "gradable": found.rows,
        "longer_answers": found.longer_answers,
        "answers": dict(sorted(Counter(str(e.right) for e in examples if not e.is_free).items())),
    }


def goal_line(summary: dict[str, dict[str, Any]], asked: AskedObjective) -> str:
    """Return how many of the rows the objective can grade, as a sentence."""
    graded = ", ".join(f"{counts['gradable']} of {counts['count']} {name} rows" for name, counts in summary.items())
    line = f"Objective {asked.metric or 'loss'}: can grade {graded}"
    if asked.answer_tokens is None:
        return f"{line}."
    answers, longer = (sum(counts[key] for counts in summary.values()) for key in ("with_answer", "longer_answers"))
    of_rows = (
        f"{longer} of the rows' {answers} own answers are longer" if answers else "the rows have none of their own"
    )
    return f"{line}; the model writes answers of up to {asked.answer_tokens} tokens, {of_rows}."


def answer_names(examples: Sequence[Example], tokenizer: BundleTokenizer) -> dict[str, str]:
    """Return the answers' words by number where all rows choose between the same ones, else nothing."""
    choices = {example.candidates for example in examples if not example.is_free}
    if len(choices) != 1:
        return {}
    return {str(number): tokenizer.decode(list(answer)).strip() for number, answer in enumerate(choices.pop())}


def _cells(counts: dict[str, Any], names: dict[str, str]) -> tuple[object, ...]:
    answers = ", ".join(f"{names.get(number, number)}: {count}" for number, count in counts["answers"].items())
    answers = answers or ("free text" if counts["with_answer"] else "none")
    keys = ("count", "median_tokens", "longest_tokens", "truncated_rows", "cut_answers")
    return *(counts[key] for key in keys), answers


def histogram(examples: Sequence[Example]) -> dict[str, int]:
    """Return how many examples have at most so many tokens (and more than the edge before)."""
    edges = [*HISTOGRAM_EDGES, 1 << 62]
    counts = Counter(next(edge for edge in edges if example.token_count <= edge) for example in examples)
    return {str(edge) if edge < 1 << 62 else "more": counts[edge] for edge in edges if counts[edge]}


def marked(example: Example, tokenizer: BundleTokenizer) -> str:
    """Return the example's tokens as text, control tokens included; each scored one of the answer in double brackets.

    A long prompt or answer is shown by its ends; a row without an answer is its prompt.
    """
    answer = example.candidates[example.right] if example.has_answer else ()
    prompt = tokenizer.decode(example.prompt, with_control_tokens=True)
    if len(prompt) > SHOWN_PROMPT:
        prompt = f"{prompt[: SHOWN_PROMPT // 2]} … {prompt[-SHOWN_PROMPT // 2 :]}"
    # A token's own text may lack the space before it, or be a part of a letter: it is what the whole text grows by.
    grown = [
        tokenizer.decode([*example.prompt[-1:], *answer[:end]], with_control_tokens=True)
        for end in range(len(answer) + 1)
    ]
    pieces = [f"⟦{after[len(before) :]}⟧" for before, after in pairwise(grown)]
    if len(pieces) > SHOWN_ANSWER:
        left_out = len(pieces) - SHOWN_ANSWER
        half = SHOWN_ANSWER // 2
        pieces = [*pieces[:half], f" … {left_out} more … ", *pieces[-half:]]
    return prompt + "".join(pieces)
