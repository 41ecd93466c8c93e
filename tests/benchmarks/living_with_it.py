"""What a person waits for: the first token of a chat, a swap from run to run, and OpenAI's client on a server.

    chat.seconds_to_first_token        from starting ``zo-device chat`` to the first character of the answer
    chat.peak_mib                      the most memory of that process, the template's beside it not counted
    generate.seconds_to_first_token    the same of ``zo-device generate`` with a plain prompt
    serve.swap_ms                      from one run's values to another's, until the next pass may begin
    serve.openai_client_calls_passed   of the calls in ``CALLS``, by the ``openai`` package, how many came out right

HOME is a folder of zo-device with one bundle and at least one run of it; answers are greedy. Every process is started
anew, with files in the page cache; figures are medians. Takes a minute.
Run: python tests/benchmarks/living_with_it.py --home HOME
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import openai  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

REPEATS = 7
SWAPS = 40
QUESTION = "What is the capital of France?"
SAID: list[Any] = [{"role": "user", "content": QUESTION}]
PROGRAM = [sys.executable, "-m", "device_client.cli"]


def main() -> None:
    """Measure, write the result, record the headlines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="a home of zo-device with one bundle and its runs")
    home = parser.parse_args().home.resolve()
    os.environ["ZO_DEVICE_HOME"] = str(home)
    chats = [first_character(["chat"], QUESTION + "\n") for _ in range(REPEATS)]
    texts = [first_character(["generate", bundle_name(home), "The capital of France is"], "") for _ in range(REPEATS)]
    swaps = swap_milliseconds(home)
    calls = client_calls(home)
    result = {
        "chat": {"seconds": [each[0] for each in chats], "peak_mib": [each[1] for each in chats]},
        "generate": {"seconds": [each[0] for each in texts], "peak_mib": [each[1] for each in texts]},
        "swap_milliseconds": swaps,
        "openai_client": {"version": openai.__version__, "calls": calls},
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }
    path = write_result("living_with_it", result)
    record_headlines(
        path,
        {
            "chat.seconds_to_first_token": (round(statistics.median(result["chat"]["seconds"]), 2), "s"),
            "chat.peak_mib": (round(statistics.median(result["chat"]["peak_mib"])), "MiB"),
            "generate.seconds_to_first_token": (round(statistics.median(result["generate"]["seconds"]), 2), "s"),
            "serve.swap_ms": (round(statistics.median(swaps), 2), "ms"),
            "serve.openai_client_calls_passed": (sum(calls.values()), f"of {len(calls)} calls"),
        },
    )
    sys.stdout.write(path.read_text())


def bundle_name(home: Path) -> str:
    """Return the one bundle of a home."""
    from device_client.store import resolve_reference
    from shared.bundle.layout import ImageLayout

    return resolve_reference(ImageLayout(home / "bundles"), None)[0]


def first_character(words: list[str], typed: str) -> tuple[float, float]:
    """Return the seconds until a command prints something, and its peak memory in MiB."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*PROGRAM, *words, "--max-new-tokens", "8", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(typed.encode())
    process.stdin.close()
    process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    process.stdout.close()
    return seconds, used.ru_maxrss / 1024


def swap_milliseconds(home: Path) -> list[float]:
    """Return how long each swap between the bundle and its runs takes."""
    from device_client.model.open import Machine, open_for_text
    from device_client.serving.models import ServedModels
    from device_client.settings import Settings
    from device_client.store import resolve_bundle
    from device_client.tuning.run_directory import RunDirectory

    settings = Settings.from_environment(os.environ)
    bundle = resolve_bundle(settings, None)
    model = open_for_text(bundle, Machine(device="cpu"))
    models = ServedModels(model, "bundle", 0, [RunDirectory(path) for path in sorted((home / "runs").iterdir())])
    names = [served.name for served in models.all]
    found = []
    for number in range(SWAPS):
        begin = time.perf_counter()
        models.swap_in(names[number % len(names)])
        found.append(1000 * (time.perf_counter() - begin))
    return found


def client_calls(home: Path) -> dict[str, bool]:
    """Return which calls of OpenAI's own client came out right on a server of the home."""
    process = subprocess.Popen([*PROGRAM, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while (found := re.search(r"at (http://\S+/v1);", said)) is None:
        said += process.stderr.readline()
    try:
        with openai.OpenAI(base_url=found.group(1), api_key="none", max_retries=0) as client:
            bundle, run = (model.id for model in list(client.models.list())[:2])
            return {name: outcome(call, client, bundle, run) for name, call in CALLS.items()}
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


Call = Callable[[openai.OpenAI, str, str], bool]


def outcome(call: Call, client: openai.OpenAI, bundle: str, run: str) -> bool:
    """Return whether a call came out right."""
    try:
        return call(client, bundle, run)
    except openai.APIError as error:
        sys.stderr.write(f"{error}\n")
        return False


def asked(model: str, **more: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": model, "messages": SAID, "max_tokens": 12, "temperature": 0} | more


def refused(client: openai.OpenAI, status: int, **request: Any) -> bool:
    """Return whether a chat request is refused with that status, as the client's own error."""
    try:
        client.chat.completions.create(**request)
    except openai.APIStatusError as error:
        return error.status_code == status
    return False


CALLS: dict[str, Call] = {
    "models.list": lambda client, bundle, run: {bundle, run} <= {model.id for model in client.models.list()},
    "models.retrieve": lambda client, bundle, _: client.models.retrieve(bundle).id == bundle,
    "chat": lambda client, bundle, _: "Paris" in str(
        client.chat.completions.create(**asked(bundle)).choices[0].message.content
    ),
    "chat of a run": lambda client, _, run: bool(client.chat.completions.create(**asked(run)).choices),
    "chat, streamed": lambda client, bundle, _: "Paris" in "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked(bundle, stream=True))
    ),
    "chat, streamed with usage": lambda client, bundle, _: [
        chunk.usage.total_tokens > 0
        for chunk in client.chat.completions.create(
            **asked(bundle, stream=True, stream_options={"include_usage": True})
        )
        if chunk.usage
    ] == [True],
    "chat, the stream helper": lambda client, bundle, _: _streamed_by_the_helper(client, bundle),
    "chat with a system": lambda client, bundle, _: bool(
        client.chat.completions.create(
            **asked(bundle, messages=[{"role": "system", "content": "Be brief."}, *SAID])
        ).usage
    ),
    "chat, content in parts": lambda client, bundle, _: "Paris" in str(
        client.chat.completions.create(
            **asked(bundle, messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}])
        ).choices[0].message.content
    ),
    "chat, stop": lambda client, bundle, _: client.chat.completions.create(**asked(bundle, stop="Paris")).choices[0]
    .finish_reason == "stop",
    "chat, max_completion_tokens": lambda client, bundle, _: client.chat.completions.create(
        model=bundle, messages=SAID, max_completion_tokens=2, temperature=0
    ).choices[0].finish_reason == "length",
    "chat, n and seed": lambda client, bundle, _: _is_repeated(client, asked(bundle, n=3, seed=7, temperature=1.2)),
    "chat, top_p": lambda client, bundle, _: bool(
        client.chat.completions.create(**asked(bundle, top_p=0.5, temperature=0.8)).choices
    ),
    "chat, logprobs": lambda client, bundle, _: len(
        client.chat.completions.create(**asked(bundle, logprobs=True, top_logprobs=5)).choices[0]
        .logprobs.content[0].top_logprobs  # type: ignore[union-attr, index]
    ) == 5,
    "completion": lambda client, bundle, _: "Paris" in client.completions.create(
        model=bundle, prompt="The capital of France is", max_tokens=4, temperature=0
    ).choices[0].text,
    "completion, streamed": lambda client, bundle, _: "Paris" in "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model=bundle, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
        )
    ),
    "completion, several prompts": lambda client, bundle, _: len(
        client.completions.create(model=bundle, prompt=["a", "b", "c"], max_tokens=2).choices
    ) == 3,
    "completion, logprobs": lambda client, bundle, _: len(
        client.completions.create(model=bundle, prompt="a", max_tokens=2, logprobs=3).choices[0].logprobs.tokens  # type: ignore[union-attr, arg-type]
    ) == 2,
    "an unknown model": lambda client, *_: refused(client, 404, **asked("nobody")),
    "a temperature out of range": lambda client, bundle, _: refused(client, 400, **asked(bundle, temperature=9)),
    "a field that is not served": lambda client, bundle, _: refused(client, 400, **asked(bundle, presence_penalty=1)),
    "a prompt beyond the context": lambda client, bundle, _: refused(
        client, 400, **asked(bundle, messages=[{"role": "user", "content": "word " * 9000}])
    ),
}  # fmt: skip


def _is_repeated(client: openai.OpenAI, request: dict[str, Any]) -> bool:
    first, again = (
        [choice.message.content for choice in client.chat.completions.create(**request).choices] for _ in range(2)
    )
    return first == again and len(set(first)) > 1


def _streamed_by_the_helper(client: openai.OpenAI, bundle: str) -> bool:
    with client.chat.completions.stream(**asked(bundle)) as stream:
        return "Paris" in str(stream.get_final_completion().choices[0].message.content)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
