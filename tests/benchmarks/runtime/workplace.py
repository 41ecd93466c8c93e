"""Where it is measured: a device, a folder for bundles and compiled kernels, and the models made there.

Bundles and compiled kernels are found again in the folder; models are made anew for each part and freed after it.
"""

from __future__ import annotations

import gc
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from peers.seven_b_shapes import plain_model, shaped_bundle
from runtime.scale import Scale
from torch import nn

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.names import BackendName
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.tuning.perturbations import Drawing, drawing_of
from shared.bundle.read import Bundle


@dataclass(frozen=True, slots=True)
class Workplace:
    """Makes models.

    Attributes:
        scale: Shapes and batches.
        device: Where they compute.
        folder: Bundles, compiled kernels, calibrations.
        backend: Of packed models; ``native`` or ``triton`` unless asked otherwise.
        memory_budget_bytes: Cap of a packed model's process, only where peaks are measured.
    """

    scale: Scale
    device: torch.device
    folder: Path
    backend: BackendName
    memory_budget_bytes: int | None = None

    def bundle(self, blocks: int, sparsity: float = 0.001) -> Bundle:
        """Return the bundle of so many blocks, made where it is missing."""
        return shaped_bundle(self.folder / "bundles", self.scale.config(blocks), sparsity=sparsity)

    def options(self, name: BackendName | None = None) -> BackendOptions:
        """Return the options of a backend: the workplace's own where none is named."""
        return BackendOptions(name or self.backend, self.folder / "kernels", tell)

    def packed(
        self,
        blocks: int,
        *,
        dtype: torch.dtype | None = None,
        backend: BackendName | None = None,
        sparsity: float = 0.001,
    ) -> SparseModel:
        """Return a packed model, in the scale's 16-bit dtype where none is named."""
        return load_model(
            self.bundle(blocks, sparsity),
            device=str(self.device),
            compute_dtype=dtype or self.scale.dtype,
            memory_budget_bytes=self.memory_budget_bytes,
            backend=self.options(backend),
        )

    def drawing(self) -> Drawing:
        """Return what draws z, as the product does with the workplace's backend."""
        return drawing_of("gaussian", self.options())

    def plain(self, blocks: int, dtype: torch.dtype | None = None) -> nn.Module:
        """Return a plain model of the same shapes."""
        return plain_model(self.scale.config(blocks), dtype=dtype or self.scale.dtype, device=str(self.device))

    def clean_up(self) -> None:
        """Free what models have left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def tell(text: str) -> None:
    """Say what is being done, where it does not disturb results on standard output."""
    print(text, file=sys.stderr, flush=True)


def device_key(device: torch.device) -> str:
    """Return a short name for keys and files: ``cpu``, or such as ``h100``."""
    if device.type == "cpu":
        return "cpu"
    words = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")
    known = re.search(r"(gh200|h200|h100|a100|b200|l40s|l40|l4|a10g|a10|t4|v100|orin\w*|rtx_\w+)", words)
    return known[1] if known else words
