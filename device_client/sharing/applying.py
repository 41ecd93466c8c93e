"""Puts a shared fine-tune onto the bundle that it was made from, as a run of this device.

    config.json · best.safetensors · result.json · journal.bin        as a run that was tuned here
    origin.json                                                       who signed it, and as what

The run appears whole or not at all. Of a journal θ is made again, step by step; of values it is read. Nothing of the
person's rows is needed. Costs a replay for a journal. Knows nothing about signatures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_client.export.whole_folder import whole_folder
from device_client.model.backends.choose import BackendOptions
from device_client.planning.methods import TunedPart, tuned_part
from device_client.sharing.artifact import SharedFineTune
from device_client.sharing.documents import FineTune
from device_client.sharing.values import unpack_values
from device_client.tasks.prompts import prompts_of_run
from device_client.tuning.engines import journal_header
from device_client.tuning.journal import JournalHeader, read_journal
from device_client.tuning.replay import replay, starting_values
from device_client.tuning.run_directory import CONFIG, RunDirectory
from shared.bundle.read import Bundle
from shared.errors import IntegrityError, InvalidManifest, InvalidRequest, UnsupportedModel, UpgradeNeeded
from shared.model.tokenizer import BundleTokenizer

ORIGIN = "origin.json"
_ROOM_BYTES = 1 << 20


def already_applied(target: Path, fine_tune: SharedFineTune) -> bool:
    """Whether a run folder is that very fine-tune."""
    origin = RunDirectory(target).read_json(ORIGIN) or {}
    return origin.get("fine_tune") == fine_tune.digest


def apply_fine_tune(fine_tune: SharedFineTune, bundle: Bundle, target: Path, backend: BackendOptions) -> None:
    """Write the run.

    Args:
        fine_tune: Its signature was checked, and its key is trusted.
        bundle: The one that it belongs to.
        target: The run's folder; there is nothing yet.
        backend: What draws perturbations for a replay.

    Raises:
        IntegrityError: It does not fit the bundle, or its values or journal are not what they should be.
        UpgradeNeeded: Its journal draws perturbations in a way that this release does not know.
        DiskError: The disk is full or not writable.
    """
    document = fine_tune.document
    with _contradictions(document):
        part = tuned_part(bundle.config, document.settings.method, document.settings.blocks)
        settings = document.settings.as_settings()
        prompts_of_run(document.run_config(), BundleTokenizer.from_bundle(bundle))
    if part.value_count != document.value_count:
        raise InvalidManifest(
            f"a fine-tune of {document.value_count} values", needed=f"{part.value_count}, as many as the bundle has"
        )
    header = journal_header(settings, part, bundle.digest, document.settings_digest)
    labels = {"method": part.method.name} | {key: str(value) for key, value in part.method.recorded.items()}
    with whole_folder(target, 8 * part.value_count + _ROOM_BYTES, mode=0o700) as folder:
        run = RunDirectory(folder, labels)
        run.write_json(CONFIG, document.run_config())
        if document.content == "journal":
            _replay(fine_tune, bundle, part, header, run, backend)
        else:
            run.write_bytes("journal.bin", header.to_bytes())
            run.write_theta("best.safetensors", unpack_values(fine_tune.layer, bundle, part), document.best_step)
        run.write_json("result.json", _result(document, part))
        origin = {
            "fine_tune": fine_tune.digest,
            "signer": fine_tune.signer,
            "content": document.content,
            "name": document.name,
            "steps_done": document.steps_done,
        }
        run.write_json(ORIGIN, origin)


def _replay(
    fine_tune: SharedFineTune,
    bundle: Bundle,
    part: TunedPart,
    header: JournalHeader,
    run: RunDirectory,
    backend: BackendOptions,
) -> None:
    document = fine_tune.document
    content = fine_tune.layer.read_bytes()
    run.write_bytes("journal.bin", content)
    found, records = read_journal(run.journal)
    if found.stream != header.stream and found.distribution == header.distribution:
        raise UpgradeNeeded(
            f"its journal draws perturbations by {found.stream[:80]!r}",
            needed=f"{header.stream}, or another release of zo-device",
        )
    if found != header or len(records) != document.steps_done:
        raise IntegrityError("the journal is not that of the fine-tune beside it", next_step="ask who shared it")
    settings = document.settings.as_settings()
    outcome = replay(run, header, document.evaluations, settings, starting_values(bundle, part, settings.seed), backend)
    if outcome.best_step != document.best_step:
        raise IntegrityError(
            f"the journal's best values come after {outcome.best_step} steps",
            needed=f"{document.best_step}, as it says",
        )


def _result(document: FineTune, part: TunedPart) -> dict[str, Any]:
    figures = {
        name: {stage: found.as_evaluation().as_json() for stage, found in stages.items()}
        for name, stages in (("validation", document.validation), ("test", document.test))
        if stages
    }
    return {
        "best_step": document.best_step,
        # Of values no step is on record here, so that the result must not say that some were made.
        "steps_done": document.steps_done if document.content == "journal" else 0,
        "stopped_by": document.stopped_by,
        "method": part.method.name,
        "blocks": part.blocks.name,
        "tuned_values": part.value_count,
        **figures,
    }


@contextmanager
def _contradictions(document: FineTune) -> Iterator[None]:
    """Raise what the fine-tune's own settings are refused for as a fault of the fine-tune."""
    try:
        yield
    except (InvalidRequest, UnsupportedModel, KeyError) as error:
        found = error.found if isinstance(error, InvalidRequest) else f"{error} is missing"
        raise InvalidManifest(
            f"the fine-tune {document.name} says something that does not fit its bundle: {found}",
            next_step="ask who shared it",
        ) from error
