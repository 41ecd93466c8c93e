"""torch's own 4-bit linear layer on a CPU: the fastest uniform 4-bit decoder that comes with torch.

    w[r, c] = (code[r, c] − 8) · scale[r, c // 128] + zero[r, c // 128]

Weights are rounded to nearest between each group's least and largest value, activations are bfloat16, the only dtype
in which its kernel is fast. There are no sensitive values: this peer does less than what it is compared with.
Knows nothing about timing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP_SIZE = 128
_LEVELS, _MIDDLE = 15, 8
_INNER_TILES = 2


class Int4PackLinear(nn.Module):
    """A linear layer over torch's packed 4-bit weight.

    Args:
        layer: Without a bias, bfloat16; its in_features are a multiple of ``GROUP_SIZE``, its out_features of 16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        grouped = layer.weight.detach().float().view(self.out_features, -1, GROUP_SIZE)
        least, largest = grouped.aminmax(dim=2)
        scale = (largest - least) / _LEVELS
        codes = ((grouped - least[..., None]) / scale[..., None]).round().clamp(0, _LEVELS).to(torch.int32)
        zero = least + _MIDDLE * scale
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.flatten(1), _INNER_TILES)
        self.scales_and_zeros = torch.stack([scale.T, zero.T], dim=2).to(torch.bfloat16).contiguous()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return x Wᵀ, bfloat16 (…, out_features)."""
        outputs: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            inputs.reshape(-1, self.in_features), self.packed, GROUP_SIZE, self.scales_and_zeros
        )
        return outputs.view(*inputs.shape[:-1], self.out_features)


def pack_linears(network: nn.Module) -> nn.Module:
    """Replace every linear layer of a plain model's decoder, the head apart, and return the model."""
    decoder: nn.Module = network.get_decoder()  # type: ignore[operator]
    for path, layer in list(decoder.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(decoder.get_submodule(parent), name, Int4PackLinear(layer))
    return network
