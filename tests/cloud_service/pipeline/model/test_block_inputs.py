"""Running the decoder block by block, and the second moments of what enters its linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoint import build_checkpoint
from torch import Tensor, nn

from cloud_service.pipeline.model.block_inputs import capture
from cloud_service.pipeline.planning.family_shapes import FAMILY_SHAPES
from shared.architecture import FAMILIES
from shared.errors import UnsupportedModel

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2-window-in-the-second-block": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-window-in-the-first-block": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "opt": ("opt", {}),
    "opt-norm-after": ("opt", {"do_layer_norm_before": False}),
}


def sequences(count: int = 3, length: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(1)).to(torch.int32)


@dataclass(frozen=True)
class Model:
    network: Any
    blocks: list[Any]


def tiny_model(folder: Path, family: str = "llama", **changes: Any) -> Model:
    transformers.logging.disable_progress_bar()
    checkpoint = build_checkpoint(folder / family, family, **changes)
    network = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return Model(network, list(network.get_submodule(FAMILIES[family].decoder_blocks)))


def linear_modules(block: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def norm_and_head(model: Model, hidden: Tensor) -> Tensor:
    network = model.network
    decoder = getattr(network.model, "decoder", network.model)
    norm = decoder.final_layer_norm if hasattr(decoder, "final_layer_norm") else decoder.norm
    logits: Tensor = network.lm_head(hidden if norm is None else norm(hidden))
    return logits


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_block_after_block_gives_the_networks_own_logits_bit_for_bit(tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    model, tokens = tiny_model(tmp_path, family, **changes), [*sequences(), *sequences(2, 7)]
    own = [model.network(input_ids=sequence[None].long(), use_cache=False).logits for sequence in tokens]
    inputs = capture(model.network, model.blocks, tokens)
    for block in model.blocks:
        inputs.advance(block)
    for hidden, logits in zip(inputs.hidden, own, strict=True):
        assert torch.equal(norm_and_head(model, hidden), logits)
    assert inputs.next_block == len(model.blocks)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_block_after_block_gives_every_familys_own_hidden_states_bit_for_bit(tmp_path: Path, family: str) -> None:
    model, tokens = tiny_model(tmp_path, family), [*sequences(length=40), *sequences(2, 7)]
    own = [model.network.base_model(input_ids=tokens[None].long()).last_hidden_state for tokens in tokens]
    inputs = capture(model.network, model.blocks, tokens)
    for block in model.blocks:
        inputs.advance(block)
    norm = model.network.get_submodule(FAMILY_SHAPES[family].final_norm.name)
    for hidden, expected in zip(inputs.hidden, own, strict=True):
        assert torch.equal(norm(hidden), expected)


@torch.no_grad()
def test_a_window_reaches_only_the_blocks_that_have_one(tmp_path: Path) -> None:
    family, changes = CASES["qwen2-window-in-the-second-block"]
    windowed, plain = tiny_model(tmp_path / "a", family, **changes), tiny_model(tmp_path / "b", family)
    inputs = [capture(model.network, model.blocks, sequences()) for model in (windowed, plain)]
    for model, captured in zip((windowed, plain), inputs, strict=True):
        captured.advance(model.blocks[0])
    assert all(map(torch.equal, inputs[0].hidden, inputs[1].hidden))
    for model, captured in zip((windowed, plain), inputs, strict=True):
        captured.advance(model.blocks[1])
    assert not torch.equal(inputs[0].hidden[0], inputs[1].hidden[0])


def test_capturing_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    model, tokens = tiny_model(tmp_path), sequences()
    wrapped = model.blocks[1].forward
    model.blocks[1].forward = wrapped
    before = model.network(input_ids=tokens.long()).logits
    capture(model.network, model.blocks, tokens)
    assert torch.equal(model.network(input_ids=tokens.long()).logits, before)
    assert "forward" not in vars(model.blocks[0])
    assert vars(model.blocks[1])["forward"] is wrapped


@torch.no_grad()
def test_second_moments_are_means_over_all_tokens_of_what_enters_each_linear_module(tmp_path: Path) -> None:
    model, tokens = tiny_model(tmp_path), sequences()
    inputs = capture(model.network, model.blocks, tokens)
    block = model.blocks[0]
    moments = inputs.second_moments(block, linear_modules(block))

    normed = torch.cat([block.input_layernorm(hidden)[0] for hidden in inputs.hidden]).double()
    torch.testing.assert_close(moments["self_attn.q_proj"].double(), normed.T @ normed / 36, rtol=1e-5, atol=1e-6)

    after_attention = []
    for hidden in inputs.hidden:
        attended, _ = block.self_attn(block.input_layernorm(hidden), **inputs.arguments[1, 12][0][1])
        after_attention.append(block.post_attention_layernorm(hidden + attended)[0])
    entering = torch.cat(after_attention)
    torch.testing.assert_close(moments["mlp.up_proj"], entering.T @ entering / 36, rtol=1e-4, atol=1e-5)
    inner = block.mlp.act_fn(block.mlp.gate_proj(entering)) * block.mlp.up_proj(entering)
    torch.testing.assert_close(moments["mlp.down_proj"], inner.T @ inner / 36, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "shared"),
    [
        ("llama", [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]]),
        ("opt", [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]]),
    ],
)
def test_modules_that_read_the_same_tensor_share_one_matrix(
    tmp_path: Path, family: str, shared: list[list[str]]
) -> None:
    model = tiny_model(tmp_path, family)
    inputs = capture(model.network, model.blocks, sequences())
    moments = inputs.second_moments(model.blocks[0], linear_modules(model.blocks[0]))
    groups = [sorted(n for n, other in moments.items() if other is tensor) for tensor in moments.values()]
    assert {tuple(group) for group in groups if len(group) > 1} == {tuple(sorted(group)) for group in shared}


def test_second_moments_are_measured_behind_the_changed_blocks(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    plain, behind_zeros = (capture(model.network, model.blocks, sequences()) for _ in range(2))
    plain.advance(model.blocks[0])
    for name, parameter in model.blocks[0].named_parameters():
        if "proj" in name:
            parameter.data.zero_()  # what is left of the block is the residual connection
    entering = [hidden.clone() for hidden in behind_zeros.hidden]
    behind_zeros.advance(model.blocks[0])
    assert all(map(torch.equal, behind_zeros.hidden, entering))
    first, second = (
        inputs.second_moments(model.blocks[1], linear_modules(model.blocks[1])) for inputs in (plain, behind_zeros)
    )
    assert not torch.allclose(first["self_attn.q_proj"], second["self_attn.q_proj"])


def test_a_module_that_the_block_does_not_call_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    inputs = capture(model.network, model.blocks, sequences())
    with pytest.raises(UnsupportedModel, match=r"module spare\n.*\n.*compensation none"):
        inputs.second_moments(model.blocks[0], {"spare": nn.Linear(32, 32)})
