"""The whole product on one machine: prepare a model in the "cloud", pull it to the "device", personalise it there.

    1. pretrain   a tiny Llama on text from ``grammar.py``, about a minute      (or --model: yours)
    2. serve      zo-cloud serve, a real process on 127.0.0.1
    3. prepare    POST /prepare-model, progress from GET /v1/jobs/{id}
    4. pull       zo-device pull, verified and signed
    5. tune       zo-device tune on the messages of ``messages.py``              (or --data: yours)

Everything lies in demo-output/; the last step prints one table, writes it to demo-output/result.json, and says what to
type next. The test rows are used for nothing but the two accuracies, and the first of them for that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from grammar import document
from messages import write_splits
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shared.api import BundleList, BundleSummary, Job, PrepareRequest
from shared.perturbation import random_generator

BIN = Path(sys.executable).parent
DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "demo-output"
TEMPLATE, LABEL_WORDS = "{text} It was {label}", "negative=terrible,positive=great"
DOCUMENTS, HELD_OUT_DOCUMENTS = 20_000, 400
CORPUS, MESSAGES = 0, 1


def main() -> int:
    """Run the demo and return its exit status."""
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    output: Path = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        model, text = own_model(arguments) if arguments.model else pretrained_model(output, arguments.seed, console)
        data = own_data(arguments.data, output, arguments.seed) if arguments.data else demo_data(output, arguments.seed)
        with zo_cloud(output, model, text, console) as client:
            bundle = prepare(client, prepare_request(model, text, arguments), console)
            (output / "report.html").write_bytes(get(client, bundle.report_url or "").content)
            pulled = pull(client, bundle, output, console)
        tuned = tune(bundle, data, output, arguments, console)
    except DemoFailed as error:
        console.print(f"[red]The demo stopped:[/] {error}")
        return 1
    show(bundle, pulled, tuned, output, time.monotonic() - started, console)
    prompt = "Once upon a time" if arguments.data else prompt_of_first_row(data["test"])
    console.print("Next, by hand:")
    for line in next_commands(bundle, output.absolute(), prompt):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    return 0


class DemoFailed(Exception):
    """A step did not succeed; the message says which and what it answered."""


def parse_arguments() -> argparse.Namespace:
    """Read the options; the Makefile passes MODEL, DATA and TEXT on as options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of your own model instead of the pretrained tiny one")
    parser.add_argument("--data", type=Path, help="your own labelled rows (JSONL) instead of the demo's messages")
    parser.add_argument("--text", default="c4", help="calibration text for --model: c4 (streamed), .jsonl or .txt")
    parser.add_argument("--steps", type=int, default=1500, help="ZO steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder, emptied first (default: demo-output)"
    )
    return parser.parse_args()


def own_model(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the user's model and text: the absolute path of what is a folder or file here, else what the hub has."""
    is_folder = Path(arguments.model).exists()
    model = str(Path(arguments.model).resolve()) if is_folder else f"hub:{arguments.model.removeprefix('hub:')}"
    text = str(Path(arguments.text).resolve()) if Path(arguments.text).exists() else arguments.text
    return model, text


def pretrained_model(output: Path, seed: int, console: Console) -> tuple[str, str]:
    """Pretrain the tiny model and write its text: held-out documents first, then the ones it saw."""
    from pretrain import STEPS, pretrain

    generator = random_generator(seed, CORPUS)
    corpus = [document(generator) for _ in range(HELD_OUT_DOCUMENTS + DOCUMENTS)]
    text = output / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in corpus))
    with bar(console) as progress:
        task = progress.add_task("1 pretrain a tiny Llama", total=STEPS)
        folder = output / "tiny-llama"
        loss = pretrain(
            folder, corpus[HELD_OUT_DOCUMENTS:], generator, lambda done: progress.update(task, completed=done)
        )
    console.print(f"  loss {loss:.3f} nats per token, saved as {folder.name}/ like any Hugging Face model")
    return str(folder), str(text)


def demo_data(output: Path, seed: int) -> dict[str, Path]:
    """Write the demo's messages: training, validation and test rows, which share no template."""
    folder = output / "messages"
    folder.mkdir()
    return write_splits(folder, random_generator(seed, MESSAGES))


def own_data(path: Path, output: Path, seed: int) -> dict[str, Path]:
    """Split the user's rows 60 : 15 : 25 into training, validation and test rows."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if len(lines) < 20:
        raise DemoFailed(f"{path} has {len(lines)} rows; the demo needs at least 20 to split them")
    shuffled = [lines[index] for index in random_generator(seed, MESSAGES).permutation(len(lines))]
    first, second = len(lines) * 60 // 100, len(lines) * 75 // 100
    parts = {"train": shuffled[:first], "validation": shuffled[first:second], "test": shuffled[second:]}
    folder = output / "messages"
    folder.mkdir()
    for split, rows in parts.items():
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return {split: folder / f"{split}.jsonl" for split in parts}


@contextlib.contextmanager
def zo_cloud(output: Path, model: str, text: str, console: Console) -> Iterator[httpx.Client]:
    """Run ``zo-cloud serve`` as a process of its own and yield a client that holds its key."""
    command = [str(BIN / "zo-cloud"), "serve", "--port", "0", "--data", str(output / "cloud")]
    for option, name in (("--model-root", model), ("--text-root", text)):
        if Path(name).exists():
            command += [option, str(Path(name).parent)]
    log, errors = output / "cloud.log", output / "cloud.err"
    with log.open("wb") as log_file, errors.open("wb") as error_file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=error_file)
    try:
        url = wait_for(process, log, r'"url": ?"(http[^"]+)"', errors)
        key = wait_for(process, errors, r"(zo_\S+)", errors)
        errors.write_text(errors.read_text().replace(key, "zo_…"))
        console.print(f"2 serve      zo-cloud serve listens on {url}")
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(process: subprocess.Popen[bytes], file: Path, pattern: str, errors: Path) -> str:
    """Return the first match of ``pattern`` that the process writes to ``file``."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if match := re.search(pattern, file.read_text()):
            return match[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise DemoFailed(f"zo-cloud serve did not start: {errors.read_text().strip()}")


def prepare_request(model: str, text: str, arguments: argparse.Namespace) -> PrepareRequest:
    """What the operator asks for: the paper's 0.1 %, 4 bits."""
    calibration: dict[str, Any] = {"text": text, "seed": arguments.seed}
    evaluation: dict[str, Any] = {}
    if not arguments.model:
        calibration |= {"sequences": 128, "tokens_per_sequence": 128}
        evaluation = {"documents": HELD_OUT_DOCUMENTS}
    return PrepareRequest.model_validate(
        {"model": model, "name": "demo/model", "calibration": calibration, "evaluation": evaluation}
    )


def prepare(client: httpx.Client, request: PrepareRequest, console: Console) -> BundleSummary:
    """POST the request, follow the job, and return the published bundle."""
    answer = client.post("/prepare-model", json=request.model_dump(mode="json"))
    if answer.status_code != httpx.codes.ACCEPTED:
        raise DemoFailed(f"POST /prepare-model answered {answer.status_code}: {answer.text}")
    location = answer.headers["location"]
    with bar(console) as progress:
        task = progress.add_task("3 prepare: queued", total=None)
        while not (job := Job.model_validate_json(get(client, location).content)).status.is_terminal:
            stage = job.stage.value if job.stage else job.status.value
            progress.update(
                task, description=f"3 prepare: {stage}", total=job.progress.total or None, completed=job.progress.done
            )
            time.sleep(0.3)
    if job.result is None:
        raise DemoFailed(f"the job {job.status}: {job.error.message if job.error else 'no reason given'}")
    console.print(
        f"  published {job.result.name}:{job.result.tag}, {job.result.size_bytes:,} bytes, {job.result.digest[:19]}…"
    )
    listed = BundleList.model_validate_json(get(client, "/v1/bundles").content).bundles
    return next(bundle for bundle in listed if bundle.digest == job.result.digest)


def get(client: httpx.Client, path: str) -> httpx.Response:
    """GET a path that must exist."""
    answer = client.get(path)
    if answer.status_code != httpx.codes.OK:
        raise DemoFailed(f"GET {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer


def pull(client: httpx.Client, bundle: BundleSummary, output: Path, console: Console) -> dict[str, Any]:
    """Fetch the bundle as a device would."""
    key = client.headers["Authorization"].removeprefix("Bearer ")
    console.print(f"4 pull       zo-device pull {bundle.name}:{bundle.tag}")
    reference = f"{client.base_url}/{bundle.name}:{bundle.tag}".replace("//" + bundle.name, "/" + bundle.name)
    return zo_device(output, ["pull", reference], {"ZO_DEVICE_SERVER": str(client.base_url), "ZO_DEVICE_API_KEY": key})


def tune(
    bundle: BundleSummary, data: dict[str, Path], output: Path, arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Personalise the bundle with forward passes only; no network from here on."""
    console.print(f"5 tune       zo-device tune, {arguments.steps} steps of two forward passes, --offline")
    files = ["--data", data["train"], "--validation", data["validation"], "--test", data["test"]]
    wording = [] if arguments.data else ["--template", TEMPLATE, "--label-words", LABEL_WORDS]
    run = ["--steps", arguments.steps, "--seed", arguments.seed, "--output", output / "run", "--offline"]
    return zo_device(output, ["tune", f"{bundle.name}:{bundle.tag}", *map(str, [*files, *wording, *run])], {})


def zo_device(output: Path, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run ``zo-device … --json`` with its progress shown, and return its JSON object."""
    surroundings = {**os.environ, "ZO_DEVICE_HOME": str(output / "device"), **environment}
    result = subprocess.run(
        [str(BIN / "zo-device"), *command, "--json"], stdout=subprocess.PIPE, env=surroundings, check=False
    )
    if result.returncode:
        raise DemoFailed(f"zo-device {command[0]} ended with {result.returncode}")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def show(
    bundle: BundleSummary, pulled: dict[str, Any], tuned: dict[str, Any], output: Path, seconds: float, console: Console
) -> None:
    """Print the table and keep it as JSON."""
    test, resources = tuned["result"]["test"], tuned["resources"]
    figures = {
        "test_rows": test["bundle"]["rows"],
        "accuracy_before": test["bundle"]["accuracy"],
        "accuracy_after": test["best"]["accuracy"],
        "loss_before": test["bundle"]["loss"],
        "loss_after": test["best"]["loss"],
        "perplexity_16bit": bundle.perplexity_16bit,
        "perplexity_bundle": bundle.perplexity_bundle,
        "bundle_bytes": bundle.size_bytes,
        "fp16_bytes": 2 * bundle.parameter_count,
        "bundle_bytes_over_fp16": bundle.size_bytes / (2 * bundle.parameter_count),
        "pulled_bytes": pulled["fetched_bytes"],
        "sensitive_values": bundle.sensitive_count,
        "steps": tuned["result"]["steps_done"],
        "seconds_per_step": resources["seconds_per_step"],
        "peak_memory_bytes": resources["peak_memory_bytes"],
        "memory_budget_bytes": resources["memory_budget_bytes"],
        "seconds": seconds,
    }
    (output / "result.json").write_text(json.dumps(figures, indent=1) + "\n")
    table = Table("", "before", "after", title="zo-device demo", title_justify="left")
    table.add_row(
        f"accuracy on {figures['test_rows']} test rows",
        percent(figures["accuracy_before"]),
        percent(figures["accuracy_after"]),
    )
    table.add_row("loss on them, nats", f"{figures['loss_before']:.4f}", f"{figures['loss_after']:.4f}")
    table.add_section()
    table.add_row("", "16 bit", "bundle")
    table.add_row("perplexity, held-out text", number(bundle.perplexity_16bit), number(bundle.perplexity_bundle))
    table.add_row(
        "bytes", f"{figures['fp16_bytes']:,}", f"{bundle.size_bytes:,} ({figures['bundle_bytes_over_fp16']:.0%})"
    )
    table.add_section()
    table.add_row("values tuned", "", f"{bundle.sensitive_count:,} of {bundle.parameter_count:,}")
    table.add_row("seconds per step", "", f"{figures['seconds_per_step']:.3f}")
    peak, budget = figures["peak_memory_bytes"] / 2**20, figures["memory_budget_bytes"] / 2**20
    table.add_row("peak memory of tune", "", f"{peak:,.0f} of {budget:,.0f} MiB")
    table.add_row("seconds in all", "", f"{seconds:.0f}")
    Console(highlight=False).print(table)
    console.print(f"Report page  {output / 'report.html'}")
    console.print(f"Loss curve   {output / 'run' / 'loss.svg'}")


def prompt_of_first_row(path: Path) -> str:
    """Return the demo's question about the first message of a file."""
    text = json.loads(path.read_text().partition("\n")[0])["text"]
    return TEMPLATE.partition("{label}")[0].rstrip().format(text=text)


def next_commands(bundle: BundleSummary, output: Path, prompt: str) -> list[str]:
    """Return what to type in a shell to ask the tuned model, and to see the run."""
    zo_device, run = str(BIN / "zo-device"), str(output / "run")
    return [
        f"export ZO_DEVICE_HOME={shlex.quote(str(output / 'device'))}",
        shlex.join([zo_device, "generate", f"{bundle.name}:{bundle.tag}", prompt, "--run", run]),
        shlex.join([zo_device, "runs", run]),
    ]


def percent(share: float | None) -> str:
    """A share as a percentage; rows without labels have no accuracy."""
    return "–" if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """A figure with three decimals, or a dash where it was not measured."""
    return "–" if value is None else f"{value:.3f}"


def bar(console: Console) -> Progress:
    """A progress bar for one step."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


if __name__ == "__main__":
    sys.exit(main())
