"""A model of Llama-2-7B's size through the whole product on this machine, every process under a hard memory limit.

    python tests/benchmarks/seven_b_whole.py --work FOLDER                 all of it: hours, and 72 GB of disk
    python tests/benchmarks/seven_b_whole.py --work FOLDER --layers 2      two blocks of the true width: some minutes
    python tests/benchmarks/seven_b_whole.py --work FOLDER --shape tiny    the same steps in half a minute

1. ``checkpoint``: random float16 weights in several files, a tokenizer trained on this project's pages, a text.
2. ``prepare``: ``zo-cloud prepare`` on 2 sequences of 64 tokens within 20 GiB (``--max-host-bytes``, and as a hard
   limit). The quantiser is ``rtn`` at 4 bits with groups of 128, without compensation: the fastest there is, and its
   bundle has the bytes of every other one with such groups. One document is evaluated, so that losses are measured.
   The whole network is read block by block; a shorter one only where ``--prepare-budget`` does not hold it.
3. ``pull``: ``zo-device pull`` from ``zo-cloud serve``, digests and signature verified.
4. ``tune``: ``zo-device tune``, 2 steps of 16 rows of 32 tokens, on a CPU under a hard limit of 8 GiB.
5. ``generate``: ``zo-device generate``, 8 tokens, under the same limit.

The hard limit is the address space (RLIMIT_AS) of the process and of each of its children, where more than memory
counts against it; or with ``--limit cgroup`` what is resident of all of them together, as on a machine of that size.
Each stage that ended is remembered in FOLDER/state.json, and a preparation has checkpoints of its own: the same command
continues. FOLDER is left as it is; delete it yourself. Writes ``results/seven_b_whole.json``, or
``seven_b_<layers or shape>.json``; only the whole run records the headlines ``seven_b.*``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from recording import RESULTS, record_headlines, write_result  # noqa: E402
from served_shelf import serving_shelf  # noqa: E402
from seven_b.checkpoint import LLAMA_2_7B, write_checkpoint, write_texts  # noqa: E402
from seven_b.limited import LIMITS, run_limited  # noqa: E402
from shelf import make_shelf  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from shared.bundle.layout import ImageLayout, manifest_descriptor  # noqa: E402
from shared.byte_sizes import format_bytes, parse_bytes  # noqa: E402
from shared.durable_files import write_atomically  # noqa: E402

GIB = 1 << 30
NAME = "seven-b"
SEQUENCES, CALIBRATION_TOKENS = 2, 64
QUANTIZER = ("--quantizer", "rtn", "--bits", "4", "--group-size", "128", "--compensation", "none")
STEPS, ROWS, ROW_TOKENS, HELD_OUT_ROWS = 2, 16, 32, 4
NEW_TOKENS = 8
TINY: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
"""``--shape tiny``: what to change of the configuration."""

CLOUD = (sys.executable, "-m", "cloud_service.cli")
DEVICE = (sys.executable, "-m", "device_client.cli")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is done, and where.

    Attributes:
        work: The folder.
        config: Of the model.
        prepare_limit: Bytes of memory that the preparation may have.
        prepare_budget: Bytes that it plans for.
        device_limit: Bytes of memory for each command of the device.
        limit_kind: What of a process is limited, a key of ``LIMITS``.
        backend: Of the device.
    """

    work: Path
    config: dict[str, Any]
    prepare_limit: int
    prepare_budget: int
    device_limit: int
    limit_kind: str
    backend: str = "auto"

    @property
    def service(self) -> Path:
        """The service's folder; the bundle is prepared into its store."""
        return self.work / "service"

    @property
    def home(self) -> Path:
        """The device's folder."""
        return self.work / "home"


def main() -> None:
    """Do what is not done yet, write the result, and record the headlines of a whole run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; continue in the same one")
    parser.add_argument("--shape", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--layers", type=int, help="decoder blocks (the shape's)")
    parser.add_argument("--prepare-limit", type=parse_bytes, default=20 * GIB, help="20GiB")
    parser.add_argument("--prepare-budget", type=parse_bytes, help="what the preparation plans for (its limit)")
    parser.add_argument("--device-limit", type=parse_bytes, default=8 * GIB, help="8GiB")
    parser.add_argument("--limit", choices=sorted(LIMITS), default="address-space")
    parser.add_argument("--backend", default="auto", help="of the device (auto)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = LLAMA_2_7B | (TINY if arguments.shape == "tiny" else {})
    config |= {"num_hidden_layers": arguments.layers or config["num_hidden_layers"]}
    setting = Setting(
        work=arguments.work,
        config=config,
        prepare_limit=arguments.prepare_limit,
        prepare_budget=arguments.prepare_budget or arguments.prepare_limit,
        device_limit=arguments.device_limit,
        limit_kind=arguments.limit,
        backend=arguments.backend,
    )
    result = measure(setting, print)
    is_whole = config == LLAMA_2_7B
    name = "whole" if is_whole else f"{arguments.layers}_layers" if arguments.layers else arguments.shape
    path = write_result(f"seven_b_{name}", result, arguments.results)
    if is_whole:
        record_headlines(path, headlines(result))
    print(path.read_text())


def measure(setting: Setting, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of all stages; those that an earlier call finished are not run again."""
    setting.work.mkdir(parents=True, exist_ok=True)
    state_file = setting.work / "state.json"
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
    if state.setdefault("config", setting.config) != setting.config:
        raise SystemExit(f"{setting.work} was begun with another model: name another folder")
    for stage in (checkpoint, prepare, pull, tune, generate):
        name = stage.__name__
        if name not in state:
            tell(f"{name} begins; {format_bytes(shutil.disk_usage(setting.work).free)} of disk are free")
            began = time.monotonic()
            state[name] = {"wall_seconds": 0.0} | stage(setting)
            state[name]["wall_seconds"] = time.monotonic() - began
            write_atomically(state_file, json.dumps(state, indent=1).encode())
        tell(f"{name}: {json.dumps(state[name])}")
    return state


def checkpoint(setting: Setting) -> dict[str, Any]:
    """Make the checkpoint, the calibration text and the rows."""
    folder = setting.work / "model"
    write_checkpoint(folder, setting.config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_texts(setting.work, tokenizer, rows=ROWS + HELD_OUT_ROWS, tokens=ROW_TOKENS)
    return {"bytes": folder_bytes(folder)}


def prepare(setting: Setting) -> dict[str, Any]:
    """Prepare the bundle, straight into the service's store."""
    store = setting.service / "store"
    store.parent.mkdir(exist_ok=True)
    command = [
        *CLOUD, "prepare", setting.work / "model", "--output", store, "--name", NAME, "--json", "--offline",
        "--signing-key", setting.work / "signing-key.pem", "--device", "cpu",
        "--calibration-text", setting.work / "text.jsonl", "--sequences", str(SEQUENCES),
        "--tokens", str(CALIBRATION_TOKENS), "--evaluation-documents", "1", *QUANTIZER,
        "--max-host-bytes", str(setting.prepare_budget),
    ]  # fmt: skip
    figures, made = run_limited(
        command, setting.work / "prepare.log", limit_bytes=setting.prepare_limit, limit_kind=setting.limit_kind
    )
    run, report = (json.loads((store / name).read_text()) for name in ("run.json", "report.json"))
    return figures.to_json() | {
        "planned_bytes": run["host"]["planned"],
        "is_streamed": "read block by block" in (setting.work / "prepare.log").read_text(),
        "quantizer": " ".join(QUANTIZER),
        "digest": made["digest"],
        "bundle_bytes": made["size_bytes"],
        "perplexity": report["perplexity"],
        "stages": {
            stage["stage"]: stage["host"] | {"seconds": stage["seconds"], "planned_seconds": stage["predicted_seconds"]}
            for stage in run["stages"]
        },
    }


def pull(setting: Setting) -> dict[str, Any]:
    """Publish the bundle and pull it from a running service."""
    shelf = make_shelf(setting.service)
    digest = json.loads((setting.work / "prepare.json").read_text())["digest"]
    layout = ImageLayout(setting.service / "store")
    shelf.publish(NAME, "latest", manifest_descriptor(layout.read_blob(digest, max_bytes=1 << 22)))
    setting.home.mkdir(exist_ok=True)
    with serving_shelf(setting.service) as served:
        figures, pulled = run_limited(
            [*DEVICE, "pull", NAME, "--server", f"http://{served.host}", "--json"],
            setting.work / "pull.log",
            limit_bytes=setting.device_limit,
            limit_kind=setting.limit_kind,
            environment=device_environment(setting) | {"ZO_DEVICE_API_KEY": served.key},
        )
    shelf.engine.dispose()
    return figures.to_json() | {"digest": pulled["digest"], "is_what_was_prepared": pulled["digest"] == digest}


def tune(setting: Setting) -> dict[str, Any]:
    """Plan and take two steps."""
    _, plan = on_the_device(setting, "plan", NAME, "--rows", str(ROWS), "--length", str(ROW_TOKENS))
    figures, tuned = on_the_device(
        setting, "tune", NAME, "--data", setting.work / "rows.jsonl", "--steps", str(STEPS), "--batch", str(ROWS),
        "--max-tokens", str(ROW_TOKENS), "--validation-rows", str(HELD_OUT_ROWS), "--validate-every", str(STEPS),
        "--output", setting.work / "run",
    )  # fmt: skip
    return figures | {"plan": plan, "result": tuned["result"], "seconds_per_step": seconds_per_step(tuned)}


def generate(setting: Setting) -> dict[str, Any]:
    """Continue a prompt with the tuned values."""
    figures, generated = on_the_device(
        setting, "generate", NAME, "The bundle", "--max-new-tokens", str(NEW_TOKENS), "--run", setting.work / "run"
    )
    return figures | {"answer": generated}


def on_the_device(setting: Setting, name: str, *arguments: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command of the device under its limit; return its figures and its answer."""
    budget = ("--memory-budget", str(setting.device_limit), "--device", "cpu", "--backend", setting.backend, "--json")
    figures, answer = run_limited(
        [*DEVICE, name, *arguments, *budget],
        setting.work / f"{name}.log",
        limit_bytes=setting.device_limit,
        limit_kind=setting.limit_kind,
        environment=device_environment(setting),
    )
    return figures.to_json(), answer


def device_environment(setting: Setting) -> dict[str, str]:
    """Return the variables that give the device a folder of its own."""
    return {"ZO_DEVICE_HOME": str(setting.home)}


def seconds_per_step(tuned: dict[str, Any]) -> float:
    """Return the seconds of a step, as the tuning itself measured them."""
    return float(tuned["resources"]["seconds_per_step"])


def folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def headlines(result: dict[str, Any]) -> dict[str, tuple[float | int | bool, str]]:
    """Return the headline figures."""
    return {
        "seven_b.prepare_peak_gib": (result["prepare"]["peak_bytes"] / GIB, "GiB"),
        "seven_b.tune_peak_gib": (result["tune"]["peak_bytes"] / GIB, "GiB"),
        "seven_b.bundle_gib": (result["prepare"]["bundle_bytes"] / GIB, "GiB"),
        "seven_b.seconds_per_step": (result["tune"]["seconds_per_step"], "s"),
    }


if __name__ == "__main__":
    main()
