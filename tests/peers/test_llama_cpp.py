"""Which type llama.cpp gives a tensor of a Llama in Q4_K_M."""

from __future__ import annotations

import pytest
from peers.llama_cpp import Kind, q4_k_m_kind


@pytest.mark.parametrize(
    ("name", "columns", "block", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 4096, 0, Kind.Q4_K),
        ("model.layers.3.self_attn.v_proj.weight", 4096, 3, Kind.Q6_K),  # the first eighth of 32 blocks
        ("model.layers.4.self_attn.v_proj.weight", 4096, 4, Kind.Q4_K),
        ("model.layers.6.mlp.down_proj.weight", 11008, 6, Kind.Q6_K),  # every third block between
        ("model.layers.27.mlp.down_proj.weight", 11008, 27, Kind.Q6_K),
        ("model.layers.26.mlp.down_proj.weight", 11008, 26, Kind.Q4_K),
        ("model.layers.28.mlp.down_proj.weight", 11008, 28, Kind.Q6_K),  # the last eighth
        ("model.layers.28.mlp.up_proj.weight", 4096, 28, Kind.Q4_K),
        ("model.layers.0.self_attn.v_proj.weight", 576, 0, Kind.Q8_0),  # 576 is no multiple of 256
        ("model.layers.0.self_attn.q_proj.weight", 576, 0, Kind.Q5_0),
    ],
)
def test_the_type_follows_the_tensor_its_block_and_its_row_length(
    name: str, columns: int, block: int, kind: Kind
) -> None:
    assert q4_k_m_kind(name, columns, block, 32) is kind
