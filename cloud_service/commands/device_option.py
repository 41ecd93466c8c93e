"""The option ``--device``, the same for every command that plans or prepares."""

from __future__ import annotations

import argparse


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:0 (default: all CUDA devices, else the CPU)"
    )
