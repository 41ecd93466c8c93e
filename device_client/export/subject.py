"""What is taken elsewhere: a bundle as it was published, or with the values that a run tuned.

A name may be that of a run (its id or folder) or of a bundle (``name:tag``). A run leads to its own bundle, which must
be in the store and is validated like any other. Costs one pass over the bundle's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_client.store import bundle_references, client_version, resolve_reference
from shared.bundle.read import Bundle, read_bundle
from shared.errors import InvalidRequest, NotFound, ZoError

if TYPE_CHECKING:
    from torch import Tensor

    from device_client.planning.methods import TunedPart
    from device_client.settings import Settings
    from device_client.tuning.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class TunedRun:
    """A run whose best values are known.

    Attributes:
        directory: Its folder.
        config: What the run is.
        part: What of the bundle it tuned.
        theta: Its best values, float32 (k,).
    """

    directory: RunDirectory
    config: dict[str, Any]
    part: TunedPart
    theta: Tensor

    @property
    def result(self) -> dict[str, Any]:
        """What the run came to; empty while it is not finished."""
        return self.directory.read_json("result.json") or {}


@dataclass(frozen=True, slots=True)
class Subject:
    """A bundle, and the run that tuned it where there is one.

    Attributes:
        bundle: Validated.
        reference: What the store calls it.
        tuned: None takes the bundle as it was published.
    """

    bundle: Bundle
    reference: str
    tuned: TunedRun | None

    @property
    def name(self) -> str:
        """What people call it: the run's name, or the last part of the bundle's."""
        if self.tuned is not None:
            return self.tuned.directory.name
        return self.reference.rpartition(":")[0].rpartition("/")[2]

    def needed_run(self) -> TunedRun:
        """Return the run.

        Raises:
            InvalidRequest: It is a bundle that nobody tuned.
        """
        if self.tuned is None:
            raise InvalidRequest(
                f"the bundle {self.reference}, which nobody tuned",
                needed="a run: a bundle has no values of its own to take elsewhere",
                next_step="name a run (zo-device runs), or export the bundle with --to hf",
            )
        return self.tuned


def find_subject(settings: Settings, name: str) -> Subject:
    """Return what a name means.

    Args:
        settings: Where bundles and runs lie.
        name: A run's id or folder, or a bundle's reference.

    Raises:
        NotFound: There is neither, the run's bundle is not here, or the run has no values yet.
        InvalidRequest: It is the name of a run and of a bundle.
        IntegrityError: The bundle or the run is damaged.
    """
    run = _run_named(settings, name)
    try:
        reference = resolve_reference(settings.store, name)[0]
    except NotFound:
        reference = ""
    if run is not None and reference:
        raise InvalidRequest(
            f"{name!r} is a run and a bundle",
            needed="one of the two",
            next_step=f"{run.path} for the run, or {reference} for the bundle",
        )
    if run is not None:
        return _tuned_subject(settings, run)
    if not reference:
        known = ", ".join(sorted(bundle_references(settings.store))) or "none"
        raise NotFound(
            f"no run and no bundle {name!r} in {settings.home}",
            needed=f"a run's id or folder, or a bundle, one of: {known}",
            next_step="zo-device runs, or zo-device list",
        )
    manifest = settings.store.resolve(reference)
    return Subject(read_bundle(settings.store, manifest.digest, client_version=client_version()), reference, None)


def _run_named(settings: Settings, name: str) -> RunDirectory | None:
    from device_client.tuning.run_directory import CONFIG, RunDirectory

    for folder in (settings.runs / name, Path(name)):
        if not folder.is_dir():
            continue
        run = RunDirectory(folder.resolve())
        if "bundle_digest" in (run.read_json(CONFIG) or {}):
            return run
    return None


def _tuned_subject(settings: Settings, run: RunDirectory) -> Subject:
    from device_client.tuning.run_directory import load_theta
    from device_client.tuning.tuned_values import part_of_run

    config = run.read_config()
    digest = str(config["bundle_digest"])
    held = [name for name, found in bundle_references(settings.store).items() if found.digest == digest]
    if not held:
        raise bundle_is_absent(f"run {run.name} was made from bundle {digest}")
    bundle = read_bundle(settings.store, digest, client_version=client_version())
    part = part_of_run(run, bundle.config)
    theta = load_theta(run.path, sensitive_count=part.value_count, method=part.method.name)
    return Subject(bundle, held[0], TunedRun(run, config, part, theta))


def bundle_is_absent(found: str) -> ZoError:
    """Return the error of something that belongs to a bundle which the store does not have."""
    return NotFound(
        f"{found}, which is not in the store",
        needed="that very bundle",
        next_step="zo-device pull NAME@sha256:… with that digest, or zo-device import FOLDER",
    )
