"""``zo-device apply``: put a shared fine-tune onto the bundle that it was made from, as a run of this device.

Accepted is what this device has signed itself, what is signed by a publisher whose bundles it accepts, and what is
signed by a key that was named once with --trusted-key.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.console import Console
from device_client.interrupts import sigterm_as_interrupt
from device_client.settings import Settings
from device_client.store import bundle_references, client_version, make_home, resolve_reference
from shared.errors import Conflict, InvalidRequest, SignerUnknown

if TYPE_CHECKING:
    from device_client.sharing.artifact import SharedFineTune

NAME = "apply"
HELP = "put a shared fine-tune onto the same bundle, as a new run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the fine-tune, its bundle and whose is accepted."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder or tar file that zo-device share wrote")
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="its bundle (default: found in the store by its digest)"
    )
    parser.add_argument("--trusted-key", metavar="ed25519:…", help="accept this signer, from now on")
    parser.add_argument("--name", metavar="NAME", help="the run's id here (default: its own, with the signer's key)")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Verify, apply, and return what the run is.

    Raises:
        NotFound: There is no fine-tune, or its bundle is not in the store.
        Conflict: It belongs to another bundle than the one that was named.
        IntegrityError: It is damaged, forged, or signed by a key that nobody named.
    """
    from device_client.model.backends.choose import BackendOptions
    from device_client.sharing.applying import already_applied, apply_fine_tune
    from device_client.sharing.archive import unpacked
    from device_client.sharing.artifact import read_fine_tune
    from device_client.sharing.documents import RUN_NAME
    from shared.bundle.read import read_bundle

    with sigterm_as_interrupt(), unpacked(arguments.source) as folder:
        fine_tune = read_fine_tune(folder)
        document = fine_tune.document
        _check_signer(fine_tune, arguments, settings)
        reference = _reference(fine_tune, arguments.bundle, settings)
        name = arguments.name or f"{document.name}-from-{fine_tune.signer.removeprefix('ed25519:')[:8]}"
        target = settings.runs / name
        if not re.fullmatch(RUN_NAME, name):
            raise InvalidRequest(f"--name {name!r}", needed="letters, digits, '.', '_' and '-'", param="name")
        described = {
            "run": name,
            "path": str(target),
            "reference": reference,
            "bundle": document.bundle,
            "signer": fine_tune.signer,
            "digest": fine_tune.digest,
            "as": document.content,
        }
        if already_applied(target, fine_tune):
            console.say(f"{name} is here already")
            return described | {"was_applied": True}
        if target.exists():
            raise InvalidRequest(
                f"a run {name} is here already", needed="another name", next_step=f"{arguments.typed} --name NAME"
            )
        bundle = read_bundle(settings.store, document.bundle, client_version=client_version())
        if document.content == "journal":
            console.say(f"Making the values of {document.steps_done} steps again …")
        backend = BackendOptions("auto", settings.backends, console.say, None)
        apply_fine_tune(fine_tune, bundle, target, backend)
        _remember_signer(fine_tune.signer, arguments, settings)
    console.say(f"Run {name}: {document.value_count:,} values, signed by {fine_tune.signer}")
    console.say(f"Next: zo-device generate {reference} PROMPT --run {name}")
    return described | {"was_applied": False}


def _check_signer(fine_tune: SharedFineTune, arguments: argparse.Namespace, settings: Settings) -> None:
    """Accept or refuse a signer.

    Raises:
        SignerUnknown: Nobody has named the signer, or another one was named.
        InvalidRequest: The named key is malformed.
    """
    from device_client.download.trusted_keys import TrustedKeys, check_fingerprint
    from device_client.sharing.own_key import own_fingerprint

    memory, signer = TrustedKeys(settings.trusted_keys).memory(), fine_tune.signer
    named = check_fingerprint(arguments.trusted_key) if arguments.trusted_key else None
    if named is not None and named != signer:
        raise SignerUnknown(
            f"{arguments.source} is signed by {signer}", needed=named, next_step="ask who shared it for the right key"
        )
    known = {memory.newest_key(key) for key in memory.pins.values()} | {settings.trusted_key}
    if named is None and signer not in known and signer != own_fingerprint(settings.signing_key):
        raise SignerUnknown(
            f"{arguments.source} is signed by {signer}, a key that this device does not know",
            needed="a signer that you trust: compare the key with whoever shared it, by another way",
            next_step=f"{arguments.typed} --trusted-key {signer}",
            param="trusted_key",
        )


def _remember_signer(signer: str, arguments: argparse.Namespace, settings: Settings) -> None:
    """Accept a signer that was named from now on."""
    from device_client.download.pull import sole_writer
    from device_client.download.trusted_keys import TrustedKeys

    if arguments.trusted_key:
        make_home(settings)
        with sole_writer(settings.store):
            TrustedKeys(settings.trusted_keys).pin(f"fine-tunes/{signer}", signer)


def _reference(fine_tune: SharedFineTune, named: str | None, settings: Settings) -> str:
    """Return what the store calls the fine-tune's bundle.

    Raises:
        NotFound: It is not in the store.
        Conflict: Another bundle was named.
    """
    from device_client.export.subject import bundle_is_absent

    digest = fine_tune.document.bundle
    if named is not None:
        reference, manifest = resolve_reference(settings.store, named)
        if manifest.digest != digest:
            raise Conflict(
                f"{reference} is {manifest.digest}",
                needed=f"{digest}: the values of a fine-tune mean something in the bundle that it was made from alone",
                next_step=f"pull that bundle: zo-device pull {reference.rpartition(':')[0]}@{digest}",
            )
        return reference
    held = [name for name, found in bundle_references(settings.store).items() if found.digest == digest]
    if not held:
        raise bundle_is_absent(f"{fine_tune.document.name} belongs to bundle {digest}")
    return held[0]
