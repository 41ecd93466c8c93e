"""``zo-device doctor``: is this machine able to run a bundle, and if not, what is in the way?"""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.model.backends.native.amx import has_matrix_unit
from device_client.model.backends.native.cpu import has_bfloat16, vector_unit
from device_client.settings import Settings
from device_client.store import DISTRIBUTION
from shared.byte_sizes import format_bytes
from shared.durable_files import free_bytes

NAME = "doctor"
HELP = "check Python, libraries, devices, disk and permissions"
PACKAGES = ("shared", "cloud_service", "device_client")
MINIMUM_FREE_BYTES = 5 * 1024**3
_OLD_GPUS = (
    "CUDA devices of compute capability below 7.0, such as the GTX 1080 Ti and Jetson TX2 of the paper's Table 3, "
    "are outside today's CUDA stack: use the CPU there, or a torch of that time."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the doctor looks at everything."""


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:  # noqa: ARG001
    """Examine, show, and return findings; ``problems`` makes the exit code 1."""
    versions = {name: _version(name) for name in (DISTRIBUTION, "torch", "transformers", "safetensors", "numpy")}
    devices, device_remarks = _devices() if versions["torch"] else ([], [])
    backends = _backends(devices)
    problems = [
        *(
            f"{name} is not installed; next: pip install '{DISTRIBUTION}[device]'"
            for name, v in versions.items()
            if not v
        ),
        *package_problems(_claims(), _origins(), _own_root()),
        *_home_problems(settings.home),
    ]
    remarks = [*device_remarks, *_disk_remarks(settings.home), _OLD_GPUS]
    rows = [
        ("Python", platform.python_version()),
        *((name, version or "not installed") for name, version in versions.items()),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"),
        *(("device", f"{device['name']}, {format_bytes(device['memory_bytes'])}") for device in devices),
        *((f"backend {name}", reason or "ready") for name, reason in backends.items()),
        ("vector unit", vector_unit() or "none that kernels are written for: texts come slowly"),
        ("matrix unit", "AMX: --dtype bfloat16 is fastest, but for tiny models" if has_matrix_unit() else "none"),
        ("bfloat16", "--products bfloat16 tunes in about two thirds of the time" if has_bfloat16() else "none"),
        ("home", str(settings.home)),
        ("free disk", format_bytes(free_bytes(settings.home))),
    ]
    console.table("zo-device doctor", ("", ""), rows)
    for remark in remarks:
        console.say(f"Note: {remark}")
    for problem in problems:
        console.warn(problem)
    console.say("Problems were found, see above." if problems else "No problems found.")
    return {
        "python": platform.python_version(),
        "versions": versions,
        "devices": devices,
        "backends": backends,
        "vector_unit": vector_unit(),
        "has_matrix_unit": has_matrix_unit(),
        "has_bfloat16": has_bfloat16(),
        "home": str(settings.home),
        "free_disk_bytes": free_bytes(settings.home),
        "remarks": remarks,
        "problems": problems,
        "exit_code": 1 if problems else 0,
    }


def package_problems(claims: dict[str, list[str]], origins: dict[str, Path | None], own_root: Path) -> list[str]:
    """Return what is wrong with where our packages come from; their names are generic, and pip overwrites silently.

    Args:
        claims: Package name → distributions that say they contain it.
        origins: Package name → the folder that Python would import, or None.
        own_root: The folder that this program runs from.
    """
    problems = []
    for package, origin in origins.items():
        if origin is None or origin.parent != own_root:
            problems.append(f"package {package} comes from {origin}, not from {own_root}; reinstall {DISTRIBUTION}")
        for other in sorted({name for name in claims.get(package, []) if name.lower() != DISTRIBUTION}):
            problems.append(f"distribution {other} claims the package {package}; next: pip uninstall {other}")
    return problems


def _claims() -> dict[str, list[str]]:
    return {name: list(owners) for name, owners in metadata.packages_distributions().items() if name in PACKAGES}


def _origins() -> dict[str, Path | None]:
    specs = {package: util.find_spec(package) for package in PACKAGES}
    return {name: Path(spec.origin).parent if spec and spec.origin else None for name, spec in specs.items()}


def _own_root() -> Path:
    return Path(__file__).parents[2]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[list[dict[str, Any]], list[str]]:
    """Return the devices with their memory, and remarks on those that torch cannot use."""
    import torch

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices: list[dict[str, Any]] = [{"name": "cpu", "memory_bytes": memory_bytes}]
    remarks = [] if torch.cuda.is_available() else ["torch sees no CUDA device; the CPU is used."]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        devices.append({"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability})
        if properties.major < 7:
            remarks.append(f"{properties.name} has compute capability {capability}. {_OLD_GPUS}")
    return devices, remarks


def _backends(devices: list[dict[str, Any]]) -> dict[str, str | None]:
    """Return each backend faster than plain torch that this machine's devices could use, with what is in its way."""
    found = {}
    if devices:
        found["native"] = _trouble_with_native()
    if len(devices) > 1:
        import torch

        from device_client.model.backends.triton import why_unavailable

        found["triton"] = why_unavailable(torch.device("cuda"))
    return found


def _trouble_with_native() -> str | None:
    from device_client.model.backends.native.build import BuildFailed, find_compiler

    try:
        find_compiler()
    except BuildFailed as error:
        return f"{error}; the CPU decodes with plain torch, several times slower; next: apt install g++"
    return None


def _home_problems(home: Path) -> list[str]:
    existing = home
    while not os.access(existing, os.F_OK):
        existing = existing.parent
    if not existing.is_dir():
        return [f"{existing} is no folder; next: move that file away, or set ZO_DEVICE_HOME"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{existing} is not writable; next: change its permissions, or set ZO_DEVICE_HOME"]
    if existing == home and home.stat().st_mode & 0o022:
        return [f"{home} can be changed by other users; next: chmod go-w {home}"]
    return []


def _disk_remarks(home: Path) -> list[str]:
    free = free_bytes(home)
    if free >= MINIMUM_FREE_BYTES:
        return []
    return [f"only {format_bytes(free)} are free at {home}; a 7B bundle needs about {format_bytes(MINIMUM_FREE_BYTES)}"]
