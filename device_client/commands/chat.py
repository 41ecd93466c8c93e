"""``zo-device chat``: talk to a bundle's model, as published or as a run tuned it, in the terminal.

What is said stays in memory: no history file, no log. Between two turns only what is new is read by the model. On a
terminal the answer streams to it; where lines come from a pipe, each is a turn of the user.

    /new            begin another conversation
    /system TEXT    begin another one, in which the system says TEXT first
    /help           show these commands
    Ctrl-C          stop the answer; where nothing is being answered, leave
    Ctrl-D          leave
"""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import TYPE_CHECKING, Any

from device_client.commands.machine_arguments import add_machine_arguments, machine
from device_client.commands.sampling_arguments import add_sampling_arguments, check_sampling
from device_client.console import Console
from device_client.settings import Settings
from device_client.store import resolve_bundle
from shared.errors import DataError, InvalidRequest
from shared.terminal_text import printable

if TYPE_CHECKING:
    from device_client.texts.conversation import Answered, Conversation

NAME = "chat"
HELP = "talk to the model in the terminal"
_COMMANDS = "/new begins another conversation, /system TEXT one with that system message; Ctrl-D leaves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare whom to talk to, and how it answers."""
    parser.add_argument("ref", metavar="REF", nargs="?", help="the bundle (default: the only one)")
    parser.add_argument("--run", metavar="RUN", help="talk to the values tuned by this run (its id or folder)")
    parser.add_argument("--system", metavar="TEXT", help="what the system says first")
    add_sampling_arguments(parser, most_tokens=512)
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Converse until the input ends, and return the conversation and its figures.

    Raises:
        InvalidRequest: An option is out of range, or the run's rows are not conversations and there is a system.
        DataError: The model's template refuses the messages.
    """
    from shared.model.tokenizer import BundleTokenizer

    _check_options(arguments)
    bundle = resolve_bundle(settings, arguments.ref)
    tokenizer = BundleTokenizer.from_bundle(bundle)
    tokenizer.expect_conversation()
    from device_client.model.open import open_for_text  # torch comes with it, while the template's process starts
    from device_client.texts.asking import prompts_for
    from device_client.texts.conversation import Conversation
    from device_client.tuning.run_directory import find_run
    from device_client.tuning.tuned_values import answer_as_tuned, part_of_run

    tuned = None if arguments.run is None else find_run(settings.runs, arguments.run, bundle)
    method = "sparse" if tuned is None else part_of_run(tuned, bundle.config).method.name
    console.say(f"Loading {bundle.config.source.id} …")
    model = open_for_text(bundle, machine(arguments, console, settings), method, tokenizer=tokenizer)
    if tuned is not None:
        answer_as_tuned(tuned, model)
    prompts = prompts_for(tokenizer, None if tuned is None else tuned.read_config())
    conversation = Conversation(model, prompts, system=arguments.system)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _edit_lines()
        whom = f"{bundle.config.source.id}{'' if tuned is None else f' as tuned by {tuned.name}'}"
        console.say(f"{whom}. {_COMMANDS}.")
    answers = _converse(arguments, console, conversation, is_terminal=is_terminal)
    return {
        "messages": list(conversation.messages),
        "answers": len(answers),
        "new_tokens": sum(answer.tokens for answer in answers),
        "seconds": sum(answer.seconds for answer in answers),
        "backend": model.backend_name,
        "peak_memory_bytes": model.memory.peak_bytes,
    }


def _converse(
    arguments: argparse.Namespace, console: Console, conversation: Conversation, *, is_terminal: bool
) -> list[Answered]:
    """Answer every line until the input ends."""
    answers: list[Answered] = []
    while True:
        try:
            line = _next_line("> " if is_terminal else "")
        except KeyboardInterrupt:
            line = None
        if line is None:
            if is_terminal:
                sys.stderr.write("\n")
            return answers
        command, _, rest = line.strip().partition(" ")
        if not command:
            continue
        try:
            if command in ("/new", "/system"):
                conversation.begin(system=rest.strip() or None if command == "/system" else arguments.system)
                console.say("A new conversation." if command == "/new" or rest else "No system message from now on.")
            elif command in ("/exit", "/quit"):
                return answers
            elif command.startswith("/"):
                console.say(f"{'Commands' if command == '/help' else f'{command} is not a command'}: {_COMMANDS}.")
            else:
                answers.append(_answer(arguments, console, conversation, line.strip(), is_terminal=is_terminal))
        except DataError as error:
            if not is_terminal:
                raise
            console.error(str(error))


def _answer(
    arguments: argparse.Namespace, console: Console, conversation: Conversation, text: str, *, is_terminal: bool
) -> Answered:
    """Ask, and stream the answer; Ctrl-C stops it, and what was said until then counts as said."""
    from device_client.texts.continuation import Sampling

    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
    )
    shown = sys.stderr if arguments.json else sys.stdout
    answer = conversation.ask(text, sampling, warn=console.warn)
    try:
        for piece in answer.pieces():
            shown.write(printable(piece))
            shown.flush()
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        answer.stop()
    shown.write("\n")
    shown.flush()
    done = answer.result()
    console.say(f"[{done.tokens} tokens, {done.tokens_per_second:.1f} a second{done.why}]")
    return done


def _next_line(prompt: str) -> str | None:
    """Return a line that a person typed, or None at the end of the input."""
    try:
        return input(prompt)
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise DataError("a line that is not UTF-8", needed="UTF-8 text", next_step="convert it by iconv") from error


def _edit_lines() -> None:
    """Let people edit a line and find earlier ones, in memory alone."""
    try:
        import readline  # noqa: F401 - input() uses it once it is imported
    except ImportError:  # Python was built without it: plain lines then
        return


def _check_options(arguments: argparse.Namespace) -> None:
    check_sampling(arguments, "zo-device chat -h")
    if arguments.system is not None and not arguments.system.strip():
        raise InvalidRequest("--system without text", needed="what the system says", next_step="leave --system out")
