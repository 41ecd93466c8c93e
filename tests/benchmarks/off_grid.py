"""Takes a model's linear weights off the grid that an earlier quantisation left them on.

    w ← w + u · step,   u uniform in [−½, ½], seeded,   step = (max − min) / 15 of 32 neighbouring weights of a row

That is Q4_1's grid: 15 steps from a group's least to its largest weight. Noise of half a step to each side fills the
gaps between its points evenly, so that no quantiser finds the grid again. The rest of the model stays as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from cloud_service.pipeline.model.load_model import read_outline

_GROUP, _STEPS = 32, 15


def write_off_grid(source: Path, target: Path, *, seed: int) -> None:
    """Write the model of the folder ``source`` to the new folder ``target``, its linear weights off the grid."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    outline = read_outline(source)
    generator = torch.Generator().manual_seed(seed)
    (path,) = partial.glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    for name in sorted(outline.linear_names):
        tensors[name] = off_grid(outline.weights.read(name).to(torch.float32), generator).to(torch.float16)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    (partial / "off_grid.json").write_text(json.dumps({"seed": seed, "group": _GROUP, "steps": _STEPS}))
    partial.rename(target)


def off_grid(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return the weight with noise, float32; its rows are multiples of 32 long."""
    groups = weight.view(len(weight), -1, _GROUP)
    step = (groups.amax(dim=2, keepdim=True) - groups.amin(dim=2, keepdim=True)) / _STEPS
    return (groups + (torch.rand(groups.shape, generator=generator) - 0.5) * step).view_as(weight)
