"""The gradient at the sensitive places against the dense gradient, and what it holds meanwhile."""

from __future__ import annotations

import pytest
import torch
from live_bytes import LiveBytes

from device_client.model.gradient.bounds import PLACES_AT_ONCE, TOKENS_AT_ONCE
from device_client.model.gradient.sparse_places import add_at_places


def drawn(tokens: int, rows: int, columns: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    outputs, inputs = (torch.randn(tokens, width, generator=generator) for width in (rows, columns))
    places = torch.randperm(rows * columns, generator=generator)[:count].sort().values
    return outputs, inputs, places


@pytest.mark.parametrize("count", [0, 1, 7, 12_000], ids=str)
@pytest.mark.parametrize("tokens", [1, TOKENS_AT_ONCE, TOKENS_AT_ONCE + 1], ids=str)
def test_places_hold_what_the_dense_gradient_holds_there(tokens: int, count: int) -> None:
    outputs, inputs, places = drawn(tokens, 130, 101, count)
    total = torch.ones(count)

    add_at_places(total, outputs, inputs, places.int())

    dense = outputs.double().T @ inputs.double()
    expected = 1 + dense.flatten()[places]
    # sums of up to 129 products of size one in float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)


def test_products_of_sixteen_bit_inputs_are_added_in_float32() -> None:
    outputs, inputs = (torch.full((4096, 1), value).half() for value in (1.0, 0.25))
    total = torch.zeros(1)

    add_at_places(total, outputs, inputs, torch.zeros(1, dtype=torch.int64))

    assert total.item() == 1024  # float16 would stop at 512: there 0.25 is half of the spacing


def test_what_is_held_does_not_grow_with_places_times_tokens() -> None:
    tokens, count = 8 * TOKENS_AT_ONCE, 4 * PLACES_AT_ONCE
    outputs, inputs, places = drawn(tokens, 256, 256, count)
    total = torch.zeros(count)
    live = LiveBytes()
    with live:
        add_at_places(total, outputs, inputs, places)
    portions = 4 * TOKENS_AT_ONCE * PLACES_AT_ONCE * 4
    turned = 2 * 256 * TOKENS_AT_ONCE * 4
    assert live.peak <= portions + turned + 4 * count * 8  # rows and columns of the places, int64
    assert portions < count * tokens * 4  # what one matrix of all products would be
