"""torch's 4-bit layer against the weight that its rounding stands for."""

from __future__ import annotations

import pytest
import torch
from peers.int4pack import GROUP_SIZE, Int4PackLinear, pack_linears
from peers.seven_b_shapes import plain_model, seven_b_config
from torch import Tensor, nn

SHAPES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    return layer


def test_weights_on_sixteen_levels_of_a_group_are_kept() -> None:
    codes = torch.randint(0, 16, (32, 2 * GROUP_SIZE), generator=torch.Generator().manual_seed(0))
    codes[:, ::GROUP_SIZE], codes[:, 1::GROUP_SIZE] = 0, 15  # so that each group spans all levels
    weight = codes.float() / 8 - 0.5  # exact in bfloat16, as the scale 1/8 and the zero 1/2 are
    inputs = torch.eye(2 * GROUP_SIZE, dtype=torch.bfloat16)
    assert torch.equal(Int4PackLinear(layer_of(weight))(inputs).float(), weight.T)


@pytest.mark.parametrize("tokens", [1, 5])
def test_other_weights_are_off_by_half_a_level_at_most(tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(48, 3 * GROUP_SIZE, generator=generator).to(torch.bfloat16)
    inputs = torch.eye(3 * GROUP_SIZE, dtype=torch.bfloat16)[:tokens]
    level = (weight.view(48, 3, -1).amax(2) - weight.view(48, 3, -1).amin(2)).float().max() / 15
    error = (Int4PackLinear(layer_of(weight))(inputs).float() - weight.T[:tokens].float()).abs().max()
    # half a level, and scale, zero and result each rounded to bfloat16, 2⁻⁹ of values up to 4
    assert error <= level / 2 + 3 * 4 * 2**-8


def test_leading_dimensions_are_kept() -> None:
    outputs = Int4PackLinear(layer_of(torch.randn(32, GROUP_SIZE)))(torch.zeros(2, 3, GROUP_SIZE, dtype=torch.bfloat16))
    assert outputs.shape == (2, 3, 32)
    assert not outputs.any()


def test_every_linear_layer_of_the_decoder_is_replaced_and_the_head_is_not() -> None:
    config = seven_b_config(blocks=2, vocabulary=512) | SHAPES
    network = pack_linears(plain_model(config, dtype=torch.bfloat16, device="cpu"))
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(Int4PackLinear) == 14
    assert kinds.count(nn.Linear) == 1
    assert isinstance(network.get_output_embeddings(), nn.Linear)  # type: ignore[operator]
