"""``zo-device export``: take a bundle, or a run's tuned model, elsewhere.

--to bundle   a copy of the bundle and what its publisher signed, for ``zo-device import`` on another machine
--to hf       a checkpoint of decoded weights that plain transformers loads, compared with the run
--to gguf     a file for llama.cpp and what is built on it
--to ollama   that file and a Modelfile for ``ollama create``
--to delta    the tuned values alone, in float32
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.console import Console
from device_client.download.copying import export_bundle
from device_client.export.whole_folder import check_absent, whole_folder
from device_client.settings import Settings
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from device_client.export.ollama import OllamaTemplate
    from device_client.export.subject import Subject
    from device_client.model.open import Machine

NAME = "export"
HELP = "take a bundle or a run's tuned model elsewhere: to transformers, llama.cpp, Ollama, or another machine"
FORMS = ("bundle", "hf", "gguf", "ollama", "delta")
_SMALL_FILES_BYTES = 64 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what, where to and in which form."""
    parser.add_argument("subject", metavar="WHAT", help="a run (its id or folder), or a bundle (name:tag)")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="new or empty; of --to bundle also an earlier export"
    )
    parser.add_argument(
        "--to", choices=FORMS,
        help="bundle: a copy for zo-device import (of a bundle, the default). hf: a checkpoint for "
        "transformers. gguf: a file for llama.cpp. ollama: "
        "that file and a Modelfile. delta: a run's values alone",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"),
        help="of hf: float16 loses least, bfloat16 has the range of float32, "
        "float32 loses nothing and takes twice the space (default: float16)",
    )  # fmt: skip
    parser.add_argument(
        "--outtype", choices=("f16", "q8_0"),
        help="of gguf and ollama: 16 bits, or 8 with a scale for each 32 weights (default: f16)",
    )  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="of hf: skip comparing it with the run")
    parser.add_argument("--memory-budget", default="8GiB", metavar="SIZE", help="of the comparison (default: 8GiB)")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Validate, write, compare, and return what was written.

    Raises:
        InvalidRequest: The folder holds other files, or a run is to be exported in no form or one that it has not.
    """
    from device_client.export.subject import find_subject

    subject = find_subject(settings, arguments.subject)
    form = _form(arguments, subject)
    described = {"reference": subject.reference, "digest": subject.bundle.digest, "to": form}
    if subject.tuned is not None:
        described["run"] = subject.tuned.directory.name
        console.say(
            "What is written follows from the rows that the run was tuned on: give it only to people who may know them"
        )
    _check_options(arguments, form)
    written = _WRITERS[form](subject, arguments, console, settings)
    return described | {"folder": str(arguments.folder)} | written


def _form(arguments: argparse.Namespace, subject: Subject) -> str:
    """Return the form that is asked for; of a bundle a copy where none is."""
    if subject.tuned is None:
        return arguments.to or "bundle"
    if arguments.to in (None, "bundle"):
        raise InvalidRequest(
            f"the run {subject.tuned.directory.name} with " + (f"--to {arguments.to}" if arguments.to else "no --to"),
            needed="the form that it shall have: " + ", ".join(f"--to {form}" for form in FORMS if form != "bundle"),
            next_step=f"{arguments.typed} --to hf (a small signed form for other devices: zo-device share)",
            param="to",
        )
    return str(arguments.to)


def _check_options(arguments: argparse.Namespace, form: str) -> None:
    """Refuse options that say nothing about the chosen form.

    Raises:
        InvalidRequest: There is one.
    """
    given = {
        "--dtype": (arguments.dtype is not None, ("hf",)),
        "--no-check": (arguments.no_check, ("hf",)),
        "--outtype": (arguments.outtype is not None, ("gguf", "ollama")),
    }
    for option, (is_given, forms) in given.items():
        if is_given and form not in forms:
            raise InvalidRequest(
                f"{option} with --to {form}",
                needed=f"it with --to {' or '.join(forms)} alone",
                param=option.lstrip("-"),
            )


def _copy_bundle(
    subject: Subject, arguments: argparse.Namespace, console: Console, _settings: Settings
) -> dict[str, Any]:
    folder: Path = arguments.folder
    if not (folder / "oci-layout").is_file():
        check_absent(folder)
    export_bundle(subject.bundle, subject.reference, folder, console)
    size_bytes = subject.bundle.manifest.size_bytes
    console.say(f"{subject.reference} is in {folder} ({format_bytes(size_bytes)}). There: zo-device import {folder}")
    return {"size_bytes": size_bytes}


def _write_checkpoint(
    subject: Subject, arguments: argparse.Namespace, console: Console, settings: Settings
) -> dict[str, Any]:
    from device_client.export.hugging_face import HuggingFaceFolder
    from device_client.export.self_check import check

    dtype = arguments.dtype or "float16"
    export = HuggingFaceFolder(subject, dtype)
    compared: dict[str, Any] = {}
    with whole_folder(arguments.folder, export.size_bytes, mode=_mode(subject)) as folder:
        with console.progress("Decoding", export.weight_bytes, "B") as bar:
            export.write(folder, bar.advance)
        if not arguments.no_check:
            console.say("Comparing it with the model here, by plain transformers …")
            compared = dataclasses.asdict(check(folder, subject, _machine(arguments, console, settings)))
        size_bytes = _size_of(folder)
    console.say(f"{subject.name} is in {arguments.folder} ({format_bytes(size_bytes)}), for transformers")
    if compared:
        console.say(
            f"Largest difference of a logit: {compared['max_logit_difference']:.2g}, of logits up to "
            f"{compared['largest_logit']:.3g}; the likeliest token is the same at "
            f"{compared['same_likeliest_tokens']} of {compared['positions']} positions"
        )
    return {"size_bytes": size_bytes, "dtype": dtype, **compared}


def _write_gguf(
    subject: Subject, arguments: argparse.Namespace, console: Console, _settings: Settings
) -> dict[str, Any]:
    from device_client.export.gguf_file import GgufFile

    template = None
    if arguments.to == "ollama":
        from device_client.export.ollama import modelfile, ollama_template

        template = ollama_template(subject)
    outtype = arguments.outtype or "f16"
    export = GgufFile(subject, outtype)
    name = f"{subject.name}-{outtype}.gguf"
    with whole_folder(arguments.folder, export.size_bytes, mode=_mode(subject)) as folder:
        with console.progress("Decoding", export.weight_bytes, "B") as bar:
            export.write(folder / name, bar.advance)
        if template is not None:
            text = modelfile(template, subject, name, export.context_length)
            (folder / "Modelfile").write_text(text, encoding="utf-8")
        size_bytes = _size_of(folder)
    console.say(f"{subject.name} is in {arguments.folder / name} ({format_bytes(size_bytes)}), for llama.cpp")
    if export.context_length < subject.bundle.config.tokenizer.context_length:
        console.say(
            f"Its context ends at {export.context_length} tokens: llama.cpp does not know this model's sliding window"
        )
    if template is not None:
        _say_how_to_create(template, subject, arguments.folder, console)
    context = export.context_length
    return {"size_bytes": size_bytes, "file": name, "outtype": outtype, "context_length": context}


def _say_how_to_create(template: OllamaTemplate, subject: Subject, folder: Path, console: Console) -> None:
    if template.is_chat and not template.takes_system:
        console.warn("this model takes no system message: Ollama would leave one out without a word")
    console.say(f"Next: ollama create {subject.name.lower()} -f {folder / 'Modelfile'}")


def _write_delta(
    subject: Subject, arguments: argparse.Namespace, console: Console, _settings: Settings
) -> dict[str, Any]:
    from device_client.export.delta import write_delta

    count = subject.needed_run().part.value_count
    with whole_folder(arguments.folder, 4 * count + _SMALL_FILES_BYTES, mode=_mode(subject)) as folder:
        write_delta(folder, subject)
        size_bytes = _size_of(folder)
    console.say(f"{count:,} values of {subject.name} are in {arguments.folder} ({format_bytes(size_bytes)})")
    return {"size_bytes": size_bytes, "values": count}


_WRITERS = {
    "bundle": _copy_bundle,
    "hf": _write_checkpoint,
    "gguf": _write_gguf,
    "ollama": _write_gguf,
    "delta": _write_delta,
}


def _mode(subject: Subject) -> int:
    """Return a folder's permissions: what was tuned on somebody's rows is for its owner alone."""
    return 0o777 if subject.tuned is None else 0o700


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _machine(arguments: argparse.Namespace, console: Console, settings: Settings) -> Machine:
    """Return the CPU in float32: the format whose differences are those of the export."""
    import torch

    from device_client.model.backends.choose import BackendOptions
    from device_client.model.open import Machine

    backend = BackendOptions("auto", settings.backends, console.say, None)
    budget = parse_bytes(arguments.memory_budget)
    return Machine(device="cpu", compute_dtype=torch.float32, memory_budget_bytes=budget, backend=backend)
