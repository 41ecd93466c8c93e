"""Decode one token at a time over buffers that never move, so that CUDA can replay the whole step as one graph.

A step of one token launches hundreds of small kernels; starting them from Python takes longer than running them. A CUDA
graph starts them at once. For that nothing in a step may depend on Python's state or allocate what outlives it: the
token, its position, keys and values lie in fixed buffers, and the mask is computed from the position.

    mask[c] = 0 where position − window < c ≤ position, −∞ elsewhere        c: column of the key buffers

Costs memory for ``capacity`` tokens of keys and values from the start, and attention over all of them. On a CPU the
same step runs eagerly. Only transformers' call conventions are used, not its caches: those count in Python.
Capturing and replaying were written without a GPU at hand; everything else is tested on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from device_client.model.decoding.attention import window_of

Step = Callable[[], Tensor]
"""Computes one step from buffers and returns the logits, in the same tensor each time where it is captured."""

CAPACITY_STEP = 64
_WARM_UP_STEPS = 3


def capacity_for(token_count: int) -> int:
    """Return the capacity for so many tokens: a multiple of 64, which attention kernels want of a mask."""
    return -(-token_count // CAPACITY_STEP) * CAPACITY_STEP


class StaticDecoding:
    """Decodes one text at a time; a new ``prefill`` begins another one in the same buffers.

    What is captured holds the addresses of all that the step reads, and how its layers computed: make another one where
    the model's sensitive values have moved, not where they were only overwritten.

    Args:
        decoder: A transformers decoder whose ``steps_are_alike``.
        head: Hidden states to logits.
        config: The decoder's transformers configuration.
        capacity: Tokens that a text may have, the prompt included.
        device: Where it computes.
        dtype: Compute dtype.
        capture: What makes a step replayable; None takes a CUDA graph on CUDA and nothing elsewhere.
    """

    def __init__(
        self,
        decoder: Any,
        head: Any,
        config: Any,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        capture: Callable[[Step], Step] | None = None,
    ) -> None:
        self._decoder = decoder
        self._head = head
        self._window = window_of(config)
        self._dtype = dtype
        self._capture = capture or (_as_cuda_graph if device.type == "cuda" else _as_it_is)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns = torch.arange(capacity, device=device)
        self._buffers = _KeyValueBuffers(capacity, self._position)
        self._step: Step | None = None
        self._length = 0

    @property
    def capacity(self) -> int:
        """Tokens that a text may have."""
        return self._columns.numel()

    @torch.no_grad()
    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Begin a text with a prompt and return the logits after it, float32 (vocabulary,).

        Raises:
            ValueError: The prompt is empty or exceeds the capacity.
        """
        if not 0 < len(token_ids) <= self.capacity:
            raise ValueError(f"a prompt of {len(token_ids)} tokens; needed 1 to {self.capacity}")
        self._length = len(token_ids)
        input_ids = torch.tensor([list(token_ids)], dtype=torch.int64, device=self._token.device)
        positions = self._columns[None, : self._length]
        with self._buffers.filling(self._length):
            return self._logits(input_ids, position_ids=positions, attention_mask=None)[0].clone()

    @torch.no_grad()
    def step(self, token_id: int) -> Tensor:
        """Append a token and return the logits after it, float32 (vocabulary,), valid until the next step.

        Nothing in it waits for the device.

        Raises:
            ValueError: There is no prompt yet, or no room left.
        """
        if not 0 < self._length < self.capacity:
            raise ValueError(f"a step after {self._length} tokens; needed 1 to {self.capacity - 1}")
        self._token.fill_(token_id)
        self._position.fill_(self._length)
        self._length += 1
        if self._step is None:
            self._step = self._capture(self._computed)
        return self._step()[0]

    def _computed(self) -> Tensor:
        hidden = self._columns > self._position
        if self._window is not None:
            hidden |= self._columns <= self._position - self._window
        mask = torch.zeros(1, 1, 1, self.capacity, dtype=self._dtype, device=self._columns.device)
        mask.masked_fill_(hidden, float("-inf"))
        return self._logits(self._token, position_ids=self._position[None], attention_mask=mask)

    def _logits(self, input_ids: Tensor, **positioned: Tensor | None) -> Tensor:
        outputs = self._decoder(input_ids=input_ids, past_key_values=self._buffers, use_cache=True, **positioned)
        logits: Tensor = self._head(outputs.last_hidden_state[:, -1])
        return logits.float()


class _KeyValueBuffers:
    """Stands where a decoder expects a transformers cache; a text of one row.

    Keys and values are (1, heads, capacity, head size) per layer, made when the first prompt shows their shape.
    """

    def __init__(self, capacity: int, position: Tensor) -> None:
        self._capacity = capacity
        self._position = position
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._prompt_length = 0

    @contextmanager
    def filling(self, prompt_length: int) -> Iterator[None]:
        """Take a whole prompt inside the ``with`` block, and one token at ``position`` per call outside of it."""
        self._prompt_length = prompt_length
        try:
            yield
        finally:
            self._prompt_length = 0

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (1, heads, new, head size), and return all that a layer attends to."""
        if self._prompt_length:
            if layer_index == len(self._layers):
                self._layers.append((self._empty(keys), self._empty(values)))
            for buffer, new in zip(self._layers[layer_index], (keys, values), strict=True):
                buffer[:, :, : self._prompt_length] = new
            return keys, values  # a prompt attends to itself: as without buffers
        for buffer, new in zip(self._layers[layer_index], (keys, values), strict=True):
            buffer.index_copy_(2, self._position, new)
        return self._layers[layer_index]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Return 0: positions are always given."""
        return 0

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        """Return 0: only asked for a prompt's mask."""
        return 0

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        """Return how many keys a prompt attends to, and that they begin at its beginning."""
        return self._prompt_length, 0

    def _empty(self, new: Tensor) -> Tensor:
        return new.new_zeros(1, new.shape[1], self._capacity, new.shape[3])


def _as_it_is(step: Step) -> Step:
    return step


def _as_cuda_graph(step: Step) -> Step:
    """Return a step that replays what ``step`` launched, into the tensor that it returned.

    Running it several times before changes nothing: it writes the same keys and values to the same position.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_STEPS):  # compiles kernels, and makes the libraries' workspaces
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use CUDA meanwhile
        logits = step()

    def replayed() -> Tensor:
        graph.replay()
        return logits

    return replayed
