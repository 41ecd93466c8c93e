"""θ in a safetensors file, with what an engine keeps beside it and a checksum over all of it.

    tensors     "theta" float32 (k,), and the engine's own
    metadata    what the run says of θ; steps_done; checked_by and checksum

The format itself checks its header, not the values: a flipped bit in a value would be another value. The checksum is
the CRC-32 of the metadata and of each tensor's name, type, shape and bytes, in the order of names. Files of earlier
releases have none; of one with a part of it nothing is used. Knows nothing about runs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from device_client.tuning.sealed import CHECKED_BY, CHECKSUM, METHOD
from shared.errors import IntegrityError

_THETA, _STEPS = "theta", "steps_done"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a run continues from.

    Attributes:
        theta: float32 (k,).
        steps_done: Steps behind it.
        state: What the engine of the steps keeps beside θ, by name.
        labels: What the file says of θ.
    """

    theta: Tensor
    steps_done: int
    state: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def theta_bytes(theta: Tensor, steps_done: int, state: Mapping[str, Tensor] | None, labels: Mapping[str, str]) -> bytes:
    """Return the content of a file; the same values always give the same bytes."""
    tensors = {key: value.cpu() for key, value in (state or {}).items()}
    tensors[_THETA] = theta.detach().to("cpu", torch.float32).contiguous()
    metadata = dict(labels) | {_STEPS: str(steps_done)}
    seal = {CHECKED_BY: METHOD, CHECKSUM: str(_checksum(tensors, metadata))}
    return _with_sorted_header(save(tensors, metadata=metadata | seal))


def read_theta_file(path: Path) -> Snapshot:
    """Return what a file holds.

    Raises:
        IntegrityError: The file is damaged or holds something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        seal = metadata.pop(CHECKED_BY, None), metadata.pop(CHECKSUM, None)
        is_whole = seal in ((None, None), (METHOD, str(_checksum(tensors, metadata))))
        theta, steps_done = tensors.pop(_THETA), int(metadata.pop(_STEPS))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise IntegrityError(f"{path} is damaged", next_step="run the same tune command again") from error
    if not is_whole:
        raise IntegrityError(
            f"{path} is damaged: its values are not those that were written",
            next_step="run the same tune command again",
        )
    if theta.dtype != torch.float32 or theta.dim() != 1 or not bool(torch.isfinite(theta).all()):
        raise IntegrityError(f"{path} does not hold finite float32 values", next_step="tune again")
    return Snapshot(theta, steps_done, tensors, metadata)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes(), found)
    return found


def _with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with its header in order: the library writes metadata in any, each time another."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]
