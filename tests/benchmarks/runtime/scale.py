"""What is measured where: shapes, batches and effort for a CPU, for a GPU, and for both in seconds with tiny shapes.

On a CPU a few blocks stand for the model: all have the same shapes, and there are enough of them that no weight is
still in a cache when it is used again. A GPU runs all 32 blocks and the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peers.seven_b_shapes import seven_b_config
from runtime.stopwatch import Effort

Plan = Literal["cpu", "cuda"]
ShapesName = Literal["7b", "tiny"]
Trainer = Literal["zo", "mezo", "lora", "lora_checkpointed", "qlora", "qlora_checkpointed"]
TINY_SHAPES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
GIB = 1 << 30
NORMAL_EFFORT = Effort()
_QUICK = Effort(seconds=10.0, most_rounds=15)
_SLOW = Effort(seconds=60.0, least_rounds=3, most_rounds=5)
_TINY_EFFORT = Effort(seconds=0.0, least_rounds=2, most_rounds=2)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length.

    Attributes:
        rows: Sequences.
        columns: Tokens of each.
        points: θ's side by side in what the headline is taken from; where 2 may be, the other way stands beside.
        effort: How often its step is measured.
    """

    rows: int
    columns: int
    points: int = 2
    effort: Effort = NORMAL_EFFORT

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass at one point."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Scale:
    """Everything that is measured, in numbers.

    Attributes:
        plan: Whose keys and batches these are.
        shapes: Fields of the model's configuration that are not Llama-2-7B's.
        vocabulary: Words.
        dtype: What the 16-bit peers compute in, and the product beside them.
        steps: Batches of a step against two bare forwards.
        step_blocks: Blocks of the models that make them.
        float32_steps: Batches of a step in float32, the product's default on a CPU; empty elsewhere.
        float32_blocks: Blocks of their models.
        decode_blocks: Blocks of the models that generate.
        cached_tokens: Tokens before the one that is timed.
        new_tokens: Tokens of a text.
        mezo_steps: Batches of a step against MeZO's.
        mezo_blocks: Blocks of their models.
        peaks: Trainers whose peak memory is measured, and on which batch, each in a process of its own.
        peak_blocks: Blocks of those models.
        layer_shape: (out_features, in_features) of the single layer.
        layer_tokens: How many tokens it multiplies.
        cold_bytes: Weights are cycled through so many bytes.
        effort: How often everything but a step is measured.
    """

    plan: Plan
    shapes: dict[str, int]
    vocabulary: int
    dtype: torch.dtype
    steps: tuple[Batch, ...]
    step_blocks: int
    float32_steps: tuple[Batch, ...]
    float32_blocks: int
    decode_blocks: int
    cached_tokens: int
    new_tokens: int
    mezo_steps: tuple[Batch, ...]
    mezo_blocks: int
    peaks: tuple[tuple[Trainer, Batch], ...]
    peak_blocks: int
    layer_shape: tuple[int, int] = (4096, 4096)
    layer_tokens: tuple[int, ...] = (1, 2, 4, 8, 16)
    cold_bytes: int = GIB
    effort: Effort = NORMAL_EFFORT

    def config(self, blocks: int) -> dict[str, Any]:
        """Return the configuration of a model with so many blocks."""
        return seven_b_config(blocks=blocks, vocabulary=self.vocabulary) | self.shapes


CPU = Scale(
    plan="cpu",
    shapes={},
    vocabulary=512,
    dtype=torch.bfloat16,
    steps=(Batch(1, 16), Batch(4, 16), Batch(16, 16), Batch(16, 128, points=1, effort=_SLOW)),
    step_blocks=4,
    float32_steps=(Batch(1, 16), Batch(4, 16), Batch(16, 16, effort=_SLOW)),
    float32_blocks=2,
    decode_blocks=8,
    cached_tokens=64,
    new_tokens=24,
    mezo_steps=(Batch(16, 16, effort=_SLOW),),
    mezo_blocks=2,
    peaks=(("zo", Batch(16, 16)), ("mezo", Batch(16, 16)), ("lora", Batch(16, 16)), ("qlora", Batch(16, 16))),
    peak_blocks=2,
    effort=_QUICK,
)
"""Measured in about ten minutes on two cores, with at most 9 GiB of memory."""

CUDA = Scale(
    plan="cuda",
    shapes={},
    vocabulary=32000,
    dtype=torch.float16,
    steps=(Batch(16, 32, effort=_QUICK), Batch(16, 512, points=1, effort=_QUICK)),
    step_blocks=32,
    float32_steps=(),
    float32_blocks=0,
    decode_blocks=32,
    cached_tokens=64,
    new_tokens=128,
    mezo_steps=(Batch(16, 32, effort=_QUICK), Batch(16, 512, points=1, effort=_QUICK)),
    mezo_blocks=32,
    peaks=(
        ("zo", Batch(16, 32)),
        ("mezo", Batch(16, 32)),
        ("lora", Batch(16, 32)),
        ("qlora", Batch(16, 32)),
        ("zo", Batch(16, 512, points=1)),
        ("mezo", Batch(16, 512)),
        ("lora_checkpointed", Batch(16, 512)),
        ("qlora_checkpointed", Batch(16, 512)),
    ),
    peak_blocks=32,
    effort=_QUICK,
)
"""Llama-2-7B as a whole. 16 × 512 tokens are not paired: it would gain 1 % and cost the activations of 8,192."""


def scale_for(name: ShapesName, plan: Plan) -> Scale:
    """Return what is measured; with tiny shapes it is the same, smaller, so that it runs on any CPU in seconds."""
    full = CPU if plan == "cpu" else CUDA
    return full if name == "7b" else _tiny(full)


def _tiny(full: Scale) -> Scale:
    def few_rounds(batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        return tuple(replace(batch, effort=_TINY_EFFORT) for batch in batches)

    return replace(
        full,
        shapes=TINY_SHAPES,
        vocabulary=512,
        dtype=torch.bfloat16,
        steps=few_rounds(full.steps),
        step_blocks=1,
        float32_steps=few_rounds(full.float32_steps),
        float32_blocks=1,
        decode_blocks=2,
        cached_tokens=8,
        new_tokens=4,
        mezo_steps=few_rounds(full.mezo_steps),
        mezo_blocks=1,
        peaks=full.peaks[-4:],
        peak_blocks=1,
        layer_shape=(128, 256),
        cold_bytes=1 << 18,
        effort=_TINY_EFFORT,
    )
