"""The compiled kernels, ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_client.model.backends.native.build import BuildFailed, built_library
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.out_of_memory import is_out_of_memory


def load_kernels(folder: Path | None, announce: Callable[[str], None]) -> KernelLibrary:
    """Return the compiled kernels, compiling them where that has not happened yet.

    Args:
        folder: Where compiled kernels are kept.
        announce: Is told before a compilation begins.

    Raises:
        BuildFailed: They cannot be compiled or loaded here.
    """
    if folder is None:
        raise BuildFailed("there is no folder for the compiled kernels")
    try:
        return KernelLibrary(built_library(folder, announce))
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise BuildFailed(str(error)) from error
