"""The shape of what a model is asked to compute. Knows nothing about bytes."""

from __future__ import annotations

from dataclasses import dataclass

from device_client.planning.methods import MethodName
from device_client.planning.tuned_blocks import ALL_BLOCKS

PAIRED_UP_TO_TOKENS = {"cpu": 256, "cuda": 4096}
"""Device type → tokens of one point's micro-batch up to which several points run side by side. Above, decoding is
little of a pass, and more points' activations no longer fit the caches: on a CPU, two points of 512 tokens took 8 %
longer than one after the other."""

GROWTH_TOKENS = 64
"""For how many tokens more there is room where keys and values that grow are moved."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape of one forward pass, and of the step that it belongs to.

    Attributes:
        rows: Sequences side by side, the micro-batch.
        columns: Tokens of the longest sequence.
        answers_per_row: Positions of each row whose logits are wanted.
        cached_columns: Tokens of each row whose keys and values are kept in every block; 0 but for generation.
        points: θ's that go through the network side by side; each runs all rows.
        queries: Directions of a tuning step; 0 where nothing is tuned, or where its gradient is exact.
        blocks: Which decoder blocks are tuned; see ``tuned_blocks``.
        method: What is tuned of them; see ``methods``.
        entering_tokens: Tokens whose hidden states below the tuned blocks are held for all passes of a step.
        kept_tokens: Tokens whose hidden states below the tuned blocks are kept between steps.
        is_differentiated: Whether the pass has an exact gradient, and the step moments of it.
    """

    rows: int
    columns: int
    answers_per_row: int = 1
    cached_columns: int = 0
    points: int = 1
    queries: int = 1
    blocks: str = ALL_BLOCKS
    method: MethodName = "sparse"
    entering_tokens: int = 0
    kept_tokens: int = 0
    is_differentiated: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.answers_per_row, self.points) < 1:
            raise ValueError(f"{self}: rows, columns, answers_per_row and points must be at least 1")
        if min(self.cached_columns, self.queries, self.entering_tokens, self.kept_tokens) < 0:
            raise ValueError(f"{self}: cached columns, queries and kept tokens must not be negative")

    @property
    def tokens(self) -> int:
        """Tokens that one point computes."""
        return self.rows * self.columns

    @property
    def answers(self) -> int:
        """Positions of one point whose logits are wanted."""
        return self.rows * self.answers_per_row
