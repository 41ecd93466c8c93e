"""The options that ``tune``, ``eval``, ``generate`` and ``plan`` share: what of the machine may be used, and how."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from device_client.console import Console
from device_client.devices import DTYPE_BYTES, dtype_named
from device_client.model.backends.names import BACKEND_NAMES
from device_client.settings import Settings
from shared.byte_sizes import parse_bytes

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

    from device_client.model.open import Machine


def add_machine_arguments(parser: argparse.ArgumentParser | _ArgumentGroup) -> None:
    """Declare memory budget, device, compute format and backend."""
    parser.add_argument("--memory-budget", default="8GiB", metavar="SIZE", help="what may be used (default: 8GiB)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: CUDA where there is one)")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPE_BYTES),
        help="compute format (default: float16 on CUDA, else float32); on a CPU with AMX bfloat16 is fastest, but "
        "for tiny models; it rounds most",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=BACKEND_NAMES, default="auto",
        help="what decodes the weights: native (compiled for this CPU once), triton (CUDA) or reference (plain torch); "
        "results depend on it in bfloat16 only (default: the fastest that works here)",
    )  # fmt: skip
    parser.add_argument(
        "--products", choices=("library", "bfloat16"),
        help="on a CPU, how many tokens are multiplied: bfloat16 rounds inputs and weights, but never the sensitive "
        "values, and takes about two thirds of the time where the CPU has instructions for it, see doctor (default: "
        "the library in the compute format, or the matrix unit)",
    )  # fmt: skip


def machine(arguments: argparse.Namespace, console: Console, settings: Settings) -> Machine:
    """Return what of the machine may be used; what the backends have to say goes to the console.

    Raises:
        InvalidRequest: The memory budget is no size.
    """
    from device_client.model.backends.choose import BackendOptions
    from device_client.model.open import Machine

    def announce(text: str) -> None:
        console.say(text[:1].upper() + text[1:])

    return Machine(
        device=arguments.device,
        compute_dtype=dtype_named(arguments.dtype) if arguments.dtype else None,
        memory_budget_bytes=parse_bytes(arguments.memory_budget),
        micro_batch_rows=getattr(arguments, "micro_batch", None),
        backend=BackendOptions(arguments.backend, settings.backends, announce, arguments.products),
    )
