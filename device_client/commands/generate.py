"""``zo-device generate``: continue a prompt with a bundle's model, as published or as tuned by a run.

PROMPT                     the text as it stands; control tokens that it spells are tokens
PROMPT --run RUN           asked as the run's rows ask: a chat run's user, a labelled row's text, a prompt
--messages FILE, --system  a conversation, by the model's chat template
PROMPT --run RUN --raw     the text as it stands, to the tuned values
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.sampling_arguments import add_sampling_arguments, check_sampling
from device_client.console import Console
from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.errors import DataError, InvalidRequest
from shared.perturbation import random_generator
from shared.strict_json import parse_json
from shared.terminal_text import printable

if TYPE_CHECKING:
    from device_client.model.sparse_model import SparseModel
    from device_client.tasks.prompts import Question
    from device_client.tuning.run_directory import RunDirectory
    from shared.bundle.read import Bundle
    from shared.model.tokenizer import BundleTokenizer

NAME = "generate"
HELP = "continue a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``generate``."""
    parser.add_argument("ref", metavar="REF", help="the bundle")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue, or to answer (see --run)")
    parser.add_argument(
        "--run", metavar="RUN", help="use the values tuned by this run (its id or folder), and ask as its rows ask"
    )
    parser.add_argument("--raw", action="store_true", help="take PROMPT as it stands, whatever the run's rows are")
    parser.add_argument("--system", metavar="TEXT", help="what the system says before PROMPT, which the user says")
    parser.add_argument(
        "--messages", type=Path, metavar="FILE", help='a conversation as JSON: [{"role", "content"}, …] or {"messages"}'
    )
    add_sampling_arguments(parser, most_tokens=128)
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Stream the continuation (to stdout; with ``--json`` to nowhere) and return text and figures.

    Raises:
        InvalidRequest: An option is out of range, or contradicts another one or the run.
        DataError: The conversation is malformed, or the model's template does not render it.
    """
    from shared.model.tokenizer import BundleTokenizer

    _check_options(arguments)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    conversation = _read_messages(arguments.messages) if arguments.messages else None
    bundle = resolve_bundle(settings, arguments.ref)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    if not arguments.raw and (arguments.run or arguments.messages or arguments.system):
        tokenizer.expect_conversation()
    from device_client.devices import dtype_name  # torch comes with it: a second, while the template's process starts
    from device_client.tuning.run_directory import find_run

    tuned = None if arguments.run is None else find_run(settings.runs, arguments.run, bundle)
    question = _question(arguments, tokenizer, tuned, conversation)
    if question.lost_tokens:
        console.warn(f"the prompt is too long: its first {question.lost_tokens} tokens are left out")
    prompt_ids = question.ids
    model = _load(arguments, console, settings, bundle, tokenizer, tuned)
    ids: list[int] = []
    begin = time.monotonic()
    for piece in model.tokenizer.decode_stream(_remember(ids, _tokens(model, prompt_ids, arguments, seed))):
        if not arguments.json:
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
    seconds = time.monotonic() - begin
    if not arguments.json:
        sys.stdout.write("\n")
    console.say(f"{len(ids)} tokens in {seconds:.1f} s" + (f", seed {seed}" if arguments.temperature > 0 else ""))
    return {
        "text": model.tokenizer.decode(ids),
        "backend": model.backend_name,
        "compute_dtype": dtype_name(model.compute_dtype),
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len(ids),
        "seconds": seconds,
        "tokens_per_second": len(ids) / seconds if seconds > 0 else None,
        "seed": seed if arguments.temperature > 0 else None,
        "peak_memory_bytes": model.memory.peak_bytes,
    }


def _question(
    arguments: argparse.Namespace,
    tokenizer: BundleTokenizer,
    tuned: RunDirectory | None,
    conversation: dict[str, Any] | None,
) -> Question:
    """Return the prompt in tokens: as it stands, as the run's rows ask, or as the model's chat template asks."""
    from device_client.tasks.prompts import Prompts, Question, prompts_of_run
    from shared.tasks.rendering import UserRowRenderer

    is_chat = conversation is not None or arguments.system is not None
    if arguments.raw or (tuned is None and not is_chat):
        return Question(tokenizer.encode_prompt(arguments.prompt), 0)
    if tuned is not None:
        prompts = prompts_of_run(tuned.read_config(), tokenizer)
    else:
        prompts = Prompts(tokenizer, UserRowRenderer(tokenizer, None, "messages"))
    if conversation is not None:
        return prompts.conversation(conversation)
    return prompts.question(arguments.prompt, system=arguments.system)


def _read_messages(path: Path) -> dict[str, Any]:
    """Return the conversation of a JSON file: messages, and tools where there are some."""
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", needed="a readable file") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}", needed='[{"role", "content"}, …] or {"messages": […]} as JSON') from error
    return found if isinstance(found, dict) else {"messages": found}


def _check_options(arguments: argparse.Namespace) -> None:
    _check_prompt(arguments)
    check_sampling(arguments, "zo-device generate -h")


def _check_prompt(arguments: argparse.Namespace) -> None:
    given = [
        name
        for name, is_given in (
            ("PROMPT", arguments.prompt is not None),
            ("--messages", arguments.messages is not None),
            ("--system", arguments.system is not None),
            ("--raw", arguments.raw),
        )
        if is_given
    ]
    if given not in (["PROMPT"], ["--messages"], ["PROMPT", "--system"], ["PROMPT", "--raw"]):
        raise InvalidRequest(
            " and ".join(given) or "neither PROMPT nor --messages",
            needed="PROMPT, alone or with --system or --raw; or --messages",
            next_step="zo-device generate -h",
        )


def _load(
    arguments: argparse.Namespace,
    console: Console,
    settings: Settings,
    bundle: Bundle,
    tokenizer: BundleTokenizer,
    tuned: RunDirectory | None,
) -> SparseModel:
    from device_client.model.open import open_for_text
    from device_client.tuning.tuned_values import answer_as_tuned, part_of_run

    console.say(f"Loading {arguments.ref} …")
    method = "sparse" if tuned is None else part_of_run(tuned, bundle.config).method.name
    model = open_for_text(bundle, machine(arguments, console, settings), method, tokenizer=tokenizer)
    if tuned is not None:
        answer_as_tuned(tuned, model)
    return model


def _tokens(model: SparseModel, prompt_ids: list[int], arguments: argparse.Namespace, seed: int) -> Iterator[int]:
    return model.generate(
        prompt_ids,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        generator=random_generator(seed),
        stop_ids=model.tokenizer.eos_ids,
    )


def _remember(ids: list[int], tokens: Iterator[int]) -> Iterator[int]:
    for token in tokens:
        ids.append(token)
        yield token
