"""A causal language model with packed weights and one flat vector of sensitive values.

    W[index] = cast(θ)        written absolutely, never added to: no drift, and any θ can be reached from any other

Symbols: θ ``theta`` float32 (k,) · k ``sensitive_count``. Hidden states are gathered at the wanted positions *before*
the head, so full logits (0.5 GiB for 16 × 256 tokens and 32k words) never exist. Knows nothing about tasks or training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from device_client.model.backends.names import BackendName, Products
from device_client.model.backends.weight import Weight
from device_client.model.decoding.attention import steps_are_alike
from device_client.model.decoding.choose import eager_decoding
from device_client.model.decoding.decoding import Decoding
from device_client.model.decoding.growing import GrowingDecoding
from device_client.model.decoding.side_by_side import is_alone, likeliest_answers
from device_client.model.decoding.static import StaticDecoding, capacity_for
from device_client.model.linear import LinearRuntime, QuantizedSparseLinear
from device_client.model.memory_meter import MemoryMeter
from device_client.model.output_head import OutputHead
from device_client.model.point_by_point import pointwise_attention
from device_client.model.points import Point
from device_client.model.prefix import Prefix
from device_client.model.sampling import choose_token
from device_client.model.token_batch import TokenBatch
from shared.architecture import family_of
from shared.bundle.config import BundleConfig
from shared.bundle.manifest import block_title
from shared.errors import DataError, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer


class SparseModel:
    """A loaded bundle; made by ``device_client.model.loader.load_model``.

    Attributes:
        config: The bundle's configuration.
        tokenizer: The bundle's tokenizer.
        device: Where it computes.
        compute_dtype: float16 on CUDA, float32 on a CPU.
        network: The transformers model whose quantised layers are ``QuantizedSparseLinear``, its quantised embedding
            and head those of ``embeddings``.
        tensor_slices: Tensor name → its part of the flat θ, in the order of ``config.block_tensors``.
        memory: The process's high-water marks.
        runtime: What its quantised layers share.
        decoder: The network without its head.
        head: Hidden states to logits.
        fused_up_to_tokens: Generating uses the backend's fused product for passes of so many tokens or fewer.
        prefix: Stands in front of every text; None puts nothing there.
    """

    def __init__(
        self,
        *,
        config: BundleConfig,
        tokenizer: BundleTokenizer,
        network: nn.Module,
        runtime: LinearRuntime,
        fused_up_to_tokens: int,
        initial_values: Tensor,
        tensor_slices: dict[str, slice],
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.network = network
        self.device = runtime.values.device
        self.compute_dtype = runtime.values.dtype
        self.tensor_slices = tensor_slices
        self.memory = MemoryMeter(self.device)
        self.runtime = runtime
        self.fused_up_to_tokens = fused_up_to_tokens
        self.prefix: Prefix | None = None
        self._initial_values = initial_values
        self._linears = [each for each in network.modules() if isinstance(each, QuantizedSparseLinear)]
        self._static: StaticDecoding | None = None
        self.decoder: Any = network.get_decoder()  # type: ignore[operator]
        self.head = OutputHead.of(network, family_of(config.architecture, allow_untested=True))

    @property
    def sensitive_count(self) -> int:
        """k: the number of sensitive values."""
        return self.runtime.values.count

    @property
    def backend_name(self) -> BackendName:
        """What packed the weights."""
        return self.runtime.backend.name

    @property
    def products(self) -> Products:
        """What makes the products of many tokens."""
        return next((weight.products for weight in self._weights() if weight.products != "library"), "library")

    @property
    def decoder_blocks(self) -> nn.ModuleList:
        """The list whose first member holds the weights of the bundle's first block.

        Raises:
            UnsupportedModel: The network has no list of as many blocks as the bundle.
        """
        titles = {entry.blob: entry.name for entry in reversed(self.config.block_tensors)}
        path = titles[block_title(0)].partition(".0.")[0]
        blocks = dict(self.network.named_modules()).get(path)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != len(titles):
            raise UnsupportedModel(
                f"{self.config.source.id} does not keep its {len(titles)} blocks in one list",
                needed="a network with one list of decoder blocks",
                next_step="--blocks all and --gradient zeroth-order",
                param="blocks",
            )
        return blocks

    def initial_theta(self) -> Tensor:
        """Return the bundle's own sensitive values, float32 (k,), a fresh copy."""
        return self._initial_values.to(torch.float32, copy=True)

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """Compute with the bundle's own values, and without what a method adds, inside the ``with`` block."""
        prefix, additions = self.prefix, [(linear, linear.addition) for linear in self._linears]
        self.forget_method()
        self.write_theta(self.initial_theta())
        try:
            yield
        finally:
            self.prefix = prefix
            for linear, addition in additions:
                linear.addition = addition

    @property
    def has_additions(self) -> bool:
        """Whether a method adds to the products of a layer."""
        return any(linear.addition is not None for linear in self._linears)

    def forget_method(self) -> None:
        """Take away what a method adds to the network; sensitive values stay as they are."""
        self.prefix = None
        for linear in self._linears:
            linear.addition = None

    def keep_decoded(self, budget_bytes: int) -> None:
        """Keep weights decoded from now on, as many as fit, so that they are not decoded on each pass.

        From the last block down: where only upper blocks are tuned, those run in every pass and the lower ones once per
        row. A weight whose products decode nothing is left as it is.
        """
        room_bytes = budget_bytes
        for weight in reversed(self._weights()):
            decoded_bytes = weight.decoded_bytes(self.compute_dtype.itemsize)
            if 0 < decoded_bytes <= room_bytes:
                weight.keep_decoded()
                room_bytes -= decoded_bytes
        self._static = None

    def _weights(self) -> list[Weight]:
        return [linear.packed for linear in self._linears]

    def write_theta(self, theta: Tensor) -> None:
        """Make the sensitive weights equal ``theta``, float32 (k,): one point.

        Raises:
            ValueError: Another shape or dtype.
        """
        self.write_points([theta])

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas`` from now on, side by side; each is rounded once to the compute dtype.

        Args:
            thetas: At least one, float32 (k,) each, on any device.

        Raises:
            ValueError: Another shape or dtype.
        """
        has_moved = len(thetas) != self.runtime.values.points
        self.runtime.values.write(thetas, self.runtime.backend.write_points)
        if has_moved:
            self._static = None  # a graph reads the values where they lay when it was captured

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary)."""
        points = self.runtime.values.points
        return self.wanted_logits(self.hidden_states(batch.input_ids.to(self.device).repeat(points, 1)), batch)

    @torch.no_grad()
    def wanted_logits(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """Return the next-token logits at the wanted positions, float32 (points, n, vocabulary).

        Args:
            hidden: What the decoder returns, compute dtype (points · rows, columns, hidden).
            batch: Whose positions are wanted.
        """
        points = self.runtime.values.points
        at_points = hidden.view(points, *batch.shape, -1)
        wanted = at_points[:, batch.logit_rows.to(self.device), batch.logit_columns.to(self.device)]
        logits = hidden.new_empty(*wanted.shape[:2], self.head.vocabulary, dtype=torch.float32)
        return self.head.write_logits(wanted, logits)

    def generate(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: np.random.Generator | None = None,
        stop_ids: Collection[int] = (),
    ) -> Iterator[int]:
        """Yield new tokens one by one, up to a stop token (not yielded), ``max_new_tokens`` or the context's end.

        Args:
            prompt_ids: At least one token.
            max_new_tokens: At most so many are yielded.
            temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
            top_p: Samples among the likeliest tokens whose probabilities reach this sum, 0 < top_p ≤ 1.
            generator: Source of randomness; needed where temperature > 0.
            stop_ids: Tokens that end the text.

        Raises:
            DataError: The prompt is empty or fills the context.
            ValueError: ``temperature`` > 0 without a generator, or an option out of range.
        """
        if temperature < 0 or not 0 < top_p <= 1 or (temperature > 0 and generator is None):
            raise ValueError("needed temperature ≥ 0, 0 < top_p ≤ 1, and a generator where temperature > 0")
        context = self.tokenizer.context_length - (self.prefix.length if self.prefix else 0)
        room = context - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise DataError(
                f"a prompt of {len(prompt_ids)} tokens",
                needed=f"1 to {context - 1} tokens",
                next_step="shorten the prompt" if prompt_ids else "give a prompt",
            )
        return self._generated(
            prompt_ids, min(max_new_tokens, room), temperature, top_p, generator, frozenset(stop_ids)
        )

    @property
    def answers_alone(self) -> bool:
        """Whether ``answers`` takes one prompt at a time."""
        return is_alone(self.network.config)

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[list[int] | None]]:
        """Return what the model most likely writes after each prompt, for each point; None where it is not finite.

        Args:
            prompts: At least one, each shorter than the context; only one where ``answers_alone``.
            new_tokens: At most so many are written.
        """
        return likeliest_answers(self, prompts, new_tokens=new_tokens, stop_ids=self.tokenizer.eos_ids)

    def _generated(
        self,
        prompt_ids: list[int],
        count: int,
        temperature: float,
        top_p: float,
        generator: np.random.Generator | None,
        stop_ids: frozenset[int],
    ) -> Iterator[int]:
        decoding = self._decoding(len(prompt_ids) + count)
        with self.runtime.fusing(self.fused_up_to_tokens):
            logits = decoding.prefill(prompt_ids)
        for left in range(count - 1, -1, -1):
            token = choose_token(logits, temperature, top_p, generator)
            if token in stop_ids:
                return
            yield token
            if left:
                with self.runtime.fusing(self.fused_up_to_tokens):  # not across a yield: others may run meanwhile
                    logits = decoding.step(token)

    def _decoding(self, token_count: int) -> Decoding:
        """Return what decodes a text of so many tokens: buffers that a CUDA graph can be made over, where they help."""
        config = self.network.config
        if self.prefix is not None:
            return GrowingDecoding(self.decoder, self.head, config, self.device, self.prefix)
        if self.device.type != "cuda" or not steps_are_alike(config):
            return eager_decoding(self.decoder, self.head, config, self.runtime, self.fused_up_to_tokens)
        if self._static is None or self._static.capacity < token_count:
            self._static = StaticDecoding(
                self.decoder, self.head, config, capacity_for(token_count), self.device, self.compute_dtype
            )
        return self._static

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Return what the decoder makes of right-padded rows, compute dtype (points · rows, columns, hidden)."""
        # No attention mask: rows are right-padded (TokenBatch sees to it), so the causal mask alone hides the padding.
        in_front = self.prefix.in_front_of(len(input_ids)) if self.prefix else None
        return self.decode(input_ids=input_ids, past_key_values=in_front, use_cache=False)

    def decode(self, **inputs: Any) -> Tensor:
        """Return what the decoder makes of transformers' ``inputs``, compute dtype (points · rows, columns, hidden)."""
        with pointwise_attention(self.runtime):
            hidden: Tensor = self.decoder(**inputs).last_hidden_state
        return hidden
