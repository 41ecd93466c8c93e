"""Parameter names become blocks and projections, for every family's names."""

from __future__ import annotations

import pytest

from cloud_service.pipeline.report.block_grid import block_grid, place_of, short_name


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.self_attn.q_proj.weight", (7, "q")),
        ("model.layers.12.mlp.down_proj.weight", (12, "down")),
        ("model.decoder.layers.0.self_attn.out_proj.weight", (0, "out")),
        ("model.decoder.layers.3.fc1.weight", (3, "fc1")),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_place_of_a_weight(name: str, place: tuple[int, str] | None) -> None:
    assert place_of(name) == place


def test_columns_stand_in_the_order_of_computation_and_rows_by_number() -> None:
    figures = {
        "model.decoder.layers.10.fc2.weight": 5.0,
        "model.decoder.layers.2.self_attn.k_proj.weight": 1.0,
        "model.decoder.layers.2.self_attn.q_proj.weight": 2.0,
        "model.decoder.layers.10.self_attn.q_proj.weight": 3.0,
    }
    grid = block_grid(figures)
    assert grid.projections == ("q", "k", "fc2")
    assert grid.rows == ((2, (2.0, 1.0, None)), (10, (3.0, None, 5.0)))
    assert grid.column("q") == (2.0, 3.0)
    assert grid.largest == 5.0


def test_a_grid_of_nothing_is_empty() -> None:
    assert block_grid({}).largest == 0.0
    assert block_grid({}).shade(1.0) == 0.0


def test_shades_end_at_the_largest_figure() -> None:
    grid = block_grid({"a.0.q_proj.weight": 0.0, "a.1.q_proj.weight": 1.0, "a.2.q_proj.weight": 3.0})
    assert [grid.shade(value) for value in (0.0, 1.0, 3.0)] == [0.0, pytest.approx(1 / 3), 1.0]
    # log(1 + 1) is half of log(1 + 3).
    assert [grid.shade(value, is_logarithmic=True) for value in (0.0, 1.0, 3.0)] == [0.0, pytest.approx(0.5), 1.0]


def test_a_weight_outside_the_blocks_keeps_its_name() -> None:
    assert short_name("model.layers.4.mlp.gate_proj.weight") == "4 · gate"
    assert short_name("lm_head.weight") == "lm_head.weight"
