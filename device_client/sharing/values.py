"""θ in 16 bits: as the difference to what the bundle has, or as it is where the bundle has nothing like it.

    sparse          d = float16(θ − v),  θ' = v + d       v: the bundle's own values, float32
    lora, prefix    d = float16(θ),      θ' = d

Rounding costs up to 2^-11 of a difference, which is itself a small part of a value. Costs two bytes a value.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from device_client.planning.methods import TunedPart
from device_client.tuning.replay import starting_values
from shared.bundle.read import Bundle
from shared.bundle.tensor_header import read_header, read_tensor
from shared.errors import TensorMismatch, UnsupportedModel, ValuesNotFinite

_TENSOR = "theta"


def pack_values(theta: Tensor, bundle: Bundle, part: TunedPart) -> bytes:
    """Return the safetensors file of θ.

    Raises:
        UnsupportedModel: A difference is beyond float16.
    """
    packed = (theta - _own_values(bundle, part)).half()
    if not bool(torch.isfinite(packed).all()):
        raise UnsupportedModel(
            "the run's values differ from the bundle's by more than float16 can say",
            needed="differences within ±65504",
            next_step="share the run's journal: --as journal",
        )
    content: bytes = save({_TENSOR: packed})
    return content


def unpack_values(path: Path, bundle: Bundle, part: TunedPart) -> Tensor:
    """Return θ, float32 (k,).

    Raises:
        IntegrityError: The file holds something else.
    """
    slots = read_header(path)
    slot = slots.get(_TENSOR)
    if len(slots) != 1 or slot is None or (slot.dtype, slot.shape) != ("F16", (part.value_count,)):
        raise TensorMismatch(
            f"a fine-tune with the tensors {', '.join(sorted(slots))[:200]}",
            needed=f"{_TENSOR}, float16 ({part.value_count},)",
        )
    packed = torch.from_numpy(read_tensor(path, slot))
    if not bool(torch.isfinite(packed).all()):
        raise ValuesNotFinite("a fine-tune with infinite or NaN values")
    return _own_values(bundle, part) + packed.float()


def _own_values(bundle: Bundle, part: TunedPart) -> Tensor:
    if part.method.is_beside_weights:
        return torch.zeros(part.value_count)
    return starting_values(bundle, part, seed=0)
