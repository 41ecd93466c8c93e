"""The whole product on one machine: prepare a model in the "cloud", pull it to the "device", personalise it there.

    1. model      SmolLM2-135M-Instruct, downloaded once    (MODEL=tiny: a tiny Llama pretrained here; or yours)
    2. serve      zo-cloud serve, a real process on 127.0.0.1
    3. prepare    POST /prepare-model, progress from GET /v1/jobs/{id}
    4. pull       zo-device pull, verified and signed
    5. ask        zo-device eval on one row, whose label only its owner knows
    6. tune       zo-device tune on such rows                                        (DATA=FILE: yours)
    7. ask again  zo-device eval --run

Everything lies in demo-output/; the last step prints one table, writes it to demo-output/result.json, and says what to
type next. The test rows are used for nothing but the two accuracies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from device import Device
from outcome import closing_lines, outcome, table_of
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from service import get, prepare, zo_cloud
from setups import Cloud, Personal, household_rows, own_model, own_rows, smollm2_model, tiny_model, tiny_rows
from smollm2 import SMOLLM2, default_cache, fetch

from shared.api import BundleSummary, Job
from shared.errors import ZoError

DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "demo-output"
SMOLLM2_NAME, TINY_NAME = "smollm2", "tiny"


def main() -> int:
    """Run the demo and return its exit status."""
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False)
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    try:
        run(arguments, arguments.output.absolute(), Stages(console))
    except ZoError as error:
        console.print(f"[red]The demo stopped:[/] {error}", soft_wrap=True)
        return error.exit_code
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the options; the Makefile passes MODEL, DATA, TEXT and CACHE on as options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=SMOLLM2_NAME,
        help=f"{SMOLLM2_NAME}, {TINY_NAME}, or hub id or path of your own model (default: %(default)s)",
    )
    parser.add_argument("--data", type=Path, help="your own rows (JSONL) instead of the demo's")
    parser.add_argument("--text", default="c4", help="text to calibrate your own model on: c4, .jsonl or .txt")
    parser.add_argument("--steps", type=int, help="ZO steps (default: 200; tiny: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps SmolLM2 (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder, emptied first (default: demo-output)"
    )
    return parser.parse_args()


class Stages:
    """Says what happens, and keeps how long each stage took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, and say its seconds when it is over."""
        self.console.print(f"[bold]{len(self.seconds) + 1} {name:<10}[/] {escape(what)}", soft_wrap=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self.say(f"{self.seconds[name]:.1f} s")

    def say(self, line: str) -> None:
        """Print one line below the stage's first."""
        self.console.print(f"             {line}", markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str) -> Iterator[Progress]:
        """Show a bar with one task while something is done."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True) as progress:
            progress.add_task(what, total=None)
            yield progress


def run(arguments: argparse.Namespace, output: Path, stages: Stages) -> None:
    """Go through the stages and show what they came to."""
    personal = choose_rows(arguments, output)
    cloud = choose_model(arguments, output, stages)
    device = Device(home=output / "device", run=output / "run", question=output / "question.jsonl")
    with served(cloud, output, stages) as client:
        what = "POST /prepare-model: find the sensitive 0.1 %, squeeze all other weights to 4 bits"
        with stages.stage("prepare", what):
            bundle = prepared(client, cloud, output, stages)
        name = f"{bundle.name}:{bundle.tag}"
        with stages.stage("pull", f"zo-device pull {name}: resumable, every byte verified"):
            pulled = device.pull(client, name)
    before = asked(device, name, personal, stages, is_tuned=False)
    with stages.stage("tune", "zo-device tune --offline: two forward passes a step, no backward pass, no network"):
        tuned = device.tune(name, personal, arguments.seed)
    after = asked(device, name, personal, stages, is_tuned=True)
    figures = outcome(bundle, pulled, tuned, stages.seconds)
    figures |= {"question": personal.question, "right_answer_before": before, "right_answer_after": after}
    (output / "result.json").write_text(json.dumps(figures, indent=1) + "\n")
    Console(highlight=False).print(table_of(figures))
    for line in closing_lines(output, cloud, personal, device.next_commands(name, personal.files["test"])):
        stages.console.print(line, markup=False, soft_wrap=True)


def choose_model(arguments: argparse.Namespace, output: Path, stages: Stages) -> Cloud:
    """Return the model that was asked for, downloaded or pretrained where that is needed."""
    if arguments.model == TINY_NAME:
        what = "a tiny Llama, from nothing, on text from a small grammar"
        with stages.stage("pretrain", what), stages.bar("pretrain") as progress:

            def advance(done: int, of: int) -> None:
                progress.update(TaskID(0), completed=done, total=of)

            return tiny_model(output, arguments.seed, advance)
    if arguments.model == SMOLLM2_NAME:
        with stages.stage("model", f"{SMOLLM2.credit}; kept in {arguments.cache}"):
            return smollm2_model(fetch(SMOLLM2, arguments.cache), SMOLLM2, arguments.seed)
    return own_model(arguments.model, arguments.text, arguments.seed)


def choose_rows(arguments: argparse.Namespace, output: Path) -> Personal:
    """Return the rows that the model is tuned on: the user's, the tiny model's or the household's."""
    if arguments.data:
        return own_rows(arguments.data, output, arguments.seed, arguments.steps)
    if arguments.model == TINY_NAME:
        return tiny_rows(output, arguments.seed, arguments.steps)
    return household_rows(arguments.steps)


def asked(device: Device, bundle: str, personal: Personal, stages: Stages, *, is_tuned: bool) -> float | None:
    """Ask the one question as a stage of its own, and return how likely its right answer was to the model."""
    if personal.question is None:
        return None
    text, label = personal.question["text"], personal.question["label"]
    with stages.stage("ask again" if is_tuned else "ask", f"the model about one test row: {text!r}"):
        found = device.probability(bundle, personal, is_tuned=is_tuned)
        stages.say(f"right is {label!r}, to which the {'tuned' if is_tuned else 'untuned'} model gives {found:.0%}")
    return found


@contextmanager
def served(cloud: Cloud, output: Path, stages: Stages) -> Iterator[httpx.Client]:
    """Start the service as a stage of its own, and stop it at the end."""
    with ExitStack() as stack:
        with stages.stage("serve", "zo-cloud serve, on 127.0.0.1 alone"):
            client = stack.enter_context(zo_cloud(output, cloud.model_root, cloud.text_root))
            stages.say(f"listens on {client.base_url}")
        yield client


def prepared(client: httpx.Client, cloud: Cloud, output: Path, stages: Stages) -> BundleSummary:
    """Have the bundle prepared with a bar for each stage of the job, and keep its report page."""
    with stages.bar("queued") as progress:

        def show(job: Job) -> None:
            stage = job.stage.value if job.stage else job.status.value
            progress.update(TaskID(0), description=stage, total=job.progress.total or None, completed=job.progress.done)

        bundle = prepare(client, cloud.request, show)
    stages.say(f"published {bundle.name}:{bundle.tag}, {bundle.size_bytes:,} bytes, {bundle.digest[:19]}…")
    (output / "report.html").write_bytes(get(client, bundle.report_url or "").content)
    return bundle


if __name__ == "__main__":
    sys.exit(main())
