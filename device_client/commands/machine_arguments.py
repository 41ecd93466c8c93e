"""The options that ``tune``, ``eval``, ``generate`` and ``plan`` share: what of the machine may be used, and how."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from device_client.console import Console
from device_client.model.backends.names import BACKEND_NAMES
from device_client.settings import Settings

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

    import torch

    from device_client.model.backends.choose import BackendOptions


def add_machine_arguments(parser: argparse.ArgumentParser | _ArgumentGroup) -> None:
    """Declare memory budget, device, compute format and backend."""
    parser.add_argument("--memory-budget", default="8GiB", metavar="SIZE", help="what may be used (default: 8GiB)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: CUDA where there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"),
        help="compute format (default: float16 on CUDA, else float32); on a CPU with AMX bfloat16 is fastest, but "
        "for tiny models; it rounds most",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=BACKEND_NAMES, default="auto",
        help="what decodes the weights: native (compiled for this CPU once), triton (CUDA) or reference (plain torch); "
        "results depend on it in bfloat16 only (default: the fastest that works here)",
    )  # fmt: skip


def compute_dtype(arguments: argparse.Namespace) -> torch.dtype | None:
    """Return the compute format that was asked for, or None for the device's own."""
    import torch

    found: torch.dtype | None = getattr(torch, arguments.dtype) if arguments.dtype else None
    return found


def backend_options(arguments: argparse.Namespace, console: Console, settings: Settings) -> BackendOptions:
    """Return which backend was asked for; what it has to say goes to the console."""
    from device_client.model.backends.choose import BackendOptions

    def announce(text: str) -> None:
        console.say(text[:1].upper() + text[1:])

    return BackendOptions(arguments.backend, settings.backends, announce)
