"""Which backend computes, and up to how many tokens its fused product does: the fastest that works here.

    CPU     native (compiled on first use), reference
    CUDA    triton, reference

Every candidate is measured once (``calibrate``) and the outcome is kept in a file, so that the next load measures
nothing. In bfloat16 on a CPU with a matrix unit native is taken whatever was measured: it decodes within its products,
and a run that began so must not depend on a measurement. It is taken, too, where products in bfloat16 are asked for.
Else what is tuned does not depend on the choice: all backends decode to the same bits.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from device_client.devices import dtype_name
from device_client.model.backends.backend import LinearBackend
from device_client.model.backends.calibrate import METHOD, Calibration, calibrate
from device_client.model.backends.names import CANDIDATES, BackendName, Products
from device_client.model.backends.native.amx import has_matrix_unit
from device_client.model.backends.native.build import BuildFailed
from device_client.model.backends.native.cpu import cpu_description
from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.out_of_memory import is_out_of_memory
from shared.bundle.config import QuantizedEntry
from shared.durable_files import write_atomically
from shared.errors import DiskError, ResourceError

_CALIBRATIONS = "calibrations.json"


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """Which backend is wanted, and where what it needs is kept.

    Attributes:
        name: ``auto`` takes the fastest; another name takes that one or fails.
        folder: Compiled kernels and calibrations; needed by ``auto`` and ``native``.
        announce: Is told of a compilation, and why a backend cannot be used.
        products: What makes the products of many tokens; None takes a CPU's matrix unit in bfloat16, else the library.
    """

    name: BackendName = "reference"
    folder: Path | None = None
    announce: Callable[[str], None] = lambda _: None
    products: Products | None = None


REFERENCE = BackendOptions()
"""Plain torch: asks nothing of the machine and keeps nothing."""


@dataclass(frozen=True, slots=True)
class ChosenBackend:
    """What computes.

    Attributes:
        backend: Decodes and multiplies.
        fused_up_to_tokens: Passes of so many tokens are faster with its fused product; 0 where none is.
    """

    backend: LinearBackend
    fused_up_to_tokens: int


class BackendUnavailable(Exception):
    """A backend cannot be used on this machine; the text says why."""


def choose_backend(
    options: BackendOptions,
    entries: Sequence[QuantizedEntry],
    dtype: torch.dtype,
    device: torch.device,
    *,
    shapes: Sequence[tuple[int, int]] | None = None,
) -> ChosenBackend:
    """Return the backend that was asked for, or the fastest.

    Args:
        options: Which one.
        entries: The quantised weights that it will compute with.
        dtype: Compute dtype.
        device: Where the codes lie.
        shapes: (out_features, in_features) of all that it will decode at once; None takes those of the entries.

    Raises:
        ResourceError: The backend that was named does not work here, or not with the products that were.
    """
    if options.products == "bfloat16":
        options = _for_bfloat16_products(options, dtype, device)
    making = _Making(options, entries, dtype, device, shapes or [entry.shape for entry in entries])
    if options.name == "reference":
        return ChosenBackend(making.make("reference"), 0)
    measured = making.calibrations(CANDIDATES[device.type] if options.name == "auto" else (options.name,))
    is_decided = _wants_matrix_unit(options, dtype, device)
    fastest = min(
        measured, key=lambda name: (not (is_decided and name == "native"), measured[name][1].dequantize_seconds)
    )
    backend, calibration = measured.pop(fastest)
    measured.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the buffers of those that were not chosen must not stay
    return ChosenBackend(backend, calibration.fused_up_to_tokens)


def _for_bfloat16_products(options: BackendOptions, dtype: torch.dtype, device: torch.device) -> BackendOptions:
    """Return the options with the one backend that makes them.

    Raises:
        ResourceError: It was another one that was named, or another format or device.
    """
    if device.type != "cpu" or dtype != torch.float32 or options.name not in ("auto", "native"):
        found = f"on {device.type}, in {dtype_name(dtype)}, with backend {options.name!r}"
        raise ResourceError(
            f"products in bfloat16 {found}",
            needed="a CPU, --dtype float32 and --backend native",
            next_step="--backend native and no --dtype, or leave --products out",
        )
    return replace(options, name="native")


@dataclass(frozen=True, slots=True)
class _Making:
    options: BackendOptions
    entries: Sequence[QuantizedEntry]
    dtype: torch.dtype
    device: torch.device
    shapes: Sequence[tuple[int, int]]

    def calibrations(self, wanted: Sequence[BackendName]) -> dict[BackendName, tuple[LinearBackend, Calibration]]:
        """Return each backend that works here, and what is known of it.

        Raises:
            ResourceError: The backend that was named does not.
        """
        found: dict[BackendName, tuple[LinearBackend, Calibration]] = {}
        for name in wanted:
            try:
                backend = self.make(name)
                found[name] = (backend, self._calibration(backend))
            except BackendUnavailable as error:
                if self.options.name != "auto":
                    raise self._refusal(name, error) from error
                self.options.announce(f"backend {name!r} cannot be used: {error}")
        return found

    def make(self, name: BackendName) -> LinearBackend:
        """Return the backend of that name.

        Raises:
            BackendUnavailable: It does not work here.
        """
        if name == "native":
            return _native(self.shapes, self.options, self.dtype, self.device)
        if name == "triton":
            return _triton(self.shapes, self.dtype, self.device)
        return ReferenceBackend(self.shapes, self.dtype, self.device)

    def _calibration(self, backend: LinearBackend) -> Calibration:
        """Return what was measured here before, or measure now and keep it.

        Raises:
            BackendUnavailable: It fails at its first use.
        """
        largest = max(self.entries, key=lambda entry: entry.element_count)
        key = _key(backend.name, largest, self.dtype, self.device)
        kept = _read(self.options.folder)
        if key in kept:
            return Calibration(**kept[key])
        try:
            found = calibrate(backend, largest, self.dtype, self.device)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            if is_out_of_memory(error):
                raise
            raise BackendUnavailable(f"its first use fails: {error}") from error
        self._keep(kept | {key: asdict(found)})
        return found

    def _keep(self, calibrations: dict[str, Any]) -> None:
        folder = self.options.folder
        if folder is None:
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / _CALIBRATIONS, json.dumps(calibrations, indent=1).encode())
        except (OSError, DiskError) as error:
            self.options.announce(f"what was measured of the backends cannot be kept: {error}")

    def _refusal(self, name: str, error: BackendUnavailable) -> ResourceError:
        return ResourceError(
            f"backend {name!r} cannot be used: {error}",
            needed=f"one that works on {self.device.type}: {', '.join(CANDIDATES[self.device.type])}",
            next_step="--backend auto",
        )


def _native(
    shapes: Sequence[tuple[int, int]], options: BackendOptions, dtype: torch.dtype, device: torch.device
) -> LinearBackend:
    from device_client.model.backends.native.amx.backend import AmxBackend, may_use_matrix_unit
    from device_client.model.backends.native.backend import NativeBackend
    from device_client.model.backends.native.bfloat16 import Bfloat16Backend
    from device_client.model.backends.native.library import load_kernels

    if device.type != "cpu":
        raise BackendUnavailable(f"it is for a CPU, not for {device.type}")
    try:
        library = load_kernels(options.folder, options.announce)
    except BuildFailed as error:
        raise BackendUnavailable(str(error)) from error
    if _wants_matrix_unit(options, dtype, device) and may_use_matrix_unit(library):
        return AmxBackend(library, shapes)
    if options.products == "bfloat16":
        return Bfloat16Backend(library, shapes)
    return NativeBackend(library, shapes, dtype)


def _wants_matrix_unit(options: BackendOptions, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the native backend is taken for its products on a matrix unit."""
    may_be = options.products in (None, "matrix unit") and dtype == torch.bfloat16 and device.type == "cpu"
    return may_be and has_matrix_unit()


def _triton(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> LinearBackend:
    from device_client.model.backends.triton import why_unavailable

    reason = why_unavailable(device)
    if reason is not None:
        raise BackendUnavailable(reason)
    from device_client.model.backends.triton.backend import TritonBackend

    return TritonBackend(shapes, dtype, device)


def _key(name: str, entry: QuantizedEntry, dtype: torch.dtype, device: torch.device) -> str:
    """Return everything that a measurement depends on."""
    on_cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if on_cuda else cpu_description("model name")
    method = f"method {METHOD}"
    form = f"{entry.shape[0]}x{entry.shape[1]} {entry.bits} bits {entry.codebook} g{entry.group_size}"
    return f"{name}, {form}, {dtype}, {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {method}"


def _read(folder: Path | None) -> dict[str, Any]:
    """Return all kept calibrations; a file that is damaged or of another version counts as none."""
    path = None if folder is None else folder / _CALIBRATIONS
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        return {key: fields for key, fields in found.items() if _is_calibration(fields)}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_calibration(fields: object) -> bool:
    return (
        isinstance(fields, dict)
        and fields.keys() == {"dequantize_seconds", "fused_up_to_tokens"}
        and type(fields["fused_up_to_tokens"]) is int
        and isinstance(fields["dequantize_seconds"], (int, float))
    )
