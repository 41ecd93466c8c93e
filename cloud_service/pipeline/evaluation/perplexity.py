"""Perplexity on held-out text.

    ppl = exp( 1/M · Σ −log p(token | tokens before it in its window) )        M predicted tokens, over all documents

Each document is encoded on its own and cut into windows of min(512, context) tokens that do not overlap; with
``prepend_bos`` every window starts with BOS (which is not predicted), otherwise a window's first token is not
predicted. The model computes in the dtype it was loaded in, 16 bits on accelerators; losses are float32, their sum
float64. A text given as one document, as WikiText-2 is by convention, is one stream.
Windows are padded on the right in batches: a causal model's earlier positions never see the padding.
Costs one forward pass over the text. Knows nothing about quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_service.pipeline.model.tokenization import TextEncoder
from shared.errors import DataError, UnsupportedModel

_WINDOW_TOKENS = 512
_LOGITS_BYTES = 1 << 26
_PADDING = -100


@dataclass(frozen=True, slots=True)
class LossSum:
    """Negative log-likelihood summed so far.

    Attributes:
        nats: Sum over the predicted tokens.
        tokens: Number of predicted tokens M.
        windows: Windows that are done, in the order of ``evaluation_windows``.
    """

    nats: float = 0.0
    tokens: int = 0
    windows: int = 0

    @property
    def perplexity(self) -> float:
        """The exponential of the mean."""
        return math.exp(min(self.nats / self.tokens, 700.0))


def evaluation_windows(documents: Iterable[str], encoder: TextEncoder) -> list[list[int]]:
    """Return the windows of all documents, the longest first (so that batches need little padding).

    Raises:
        DataError: There is no token to predict.
    """
    length = min(_WINDOW_TOKENS, encoder.settings.context_length)
    step = length - len(encoder.bos)
    windows = []
    for document in documents:
        tokens = encoder.encode(document)
        windows += [encoder.bos + tokens[start : start + step] for start in range(0, len(tokens), step)]
    windows = sorted((window for window in windows if len(window) > 1), key=len, reverse=True)
    if not windows:
        raise DataError(
            "the evaluation text has no token to predict",
            needed="at least one document of two tokens",
            next_step="name another evaluation.text, or set evaluation.documents to 0",
            param="evaluation.text",
        )
    return windows


@torch.no_grad()
def sum_losses(
    network: nn.Module,
    windows: list[list[int]],
    start: LossSum = LossSum(),
    *,
    after_batch: Callable[[LossSum], None] = lambda _: None,
    subject: str = "network",
) -> LossSum:
    """Return the summed loss over all windows.

    Args:
        network: A causal language model; float32 on a CPU, where 16-bit products are slow, any dtype elsewhere.
        windows: From ``evaluation_windows``.
        start: Where to go on.
        after_batch: Called after each batch, for progress and checkpoints; may raise to stop.
        subject: What the network is, for the error.

    Raises:
        UnsupportedModel: A loss is not finite; ``after_batch`` is not told.
    """
    device = next(network.parameters()).device
    network.eval()
    done = start
    while done.windows < len(windows):
        inputs, targets = (part.to(device) for part in padded(next_batch(network, windows, done.windows)))
        done = add_losses(done, network, inputs, targets, subject)
        after_batch(done)
    return done


def add_losses(done: LossSum, network: nn.Module, inputs: Tensor, targets: Tensor, subject: str) -> LossSum:
    """Return the sum with the losses of one batch, inputs (B, T) and targets (B, T − 1) from ``padded``.

    Raises:
        UnsupportedModel: A loss is not finite.
    """
    logits = network(input_ids=inputs, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    nats = done.nats + float(losses.sum(dtype=torch.float64))
    if not math.isfinite(nats):
        raise _not_finite(subject, network)
    return LossSum(nats, done.tokens + int((targets != _PADDING).sum()), done.windows + len(inputs))


def next_batch(network: nn.Module, windows: list[list[int]], start: int) -> list[list[int]]:
    """Return the windows of the batch that begins at ``start``: as many as the limit on logits allows."""
    return windows[start : start + _batch_size(network, len(windows[start]))]


def _not_finite(subject: str, network: nn.Module) -> UnsupportedModel:
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    return UnsupportedModel(
        f"a loss of the {subject} on the evaluation text is not finite in {dtype}",
        needed="finite losses",
        next_step="evaluate nothing (--evaluation-documents 0), or compute in float32, on a CPU (--device cpu)",
        param="model",
    )


def _batch_size(network: nn.Module, length: int) -> int:
    vocabulary = int(network.config.vocab_size)  # type: ignore[union-attr, arg-type]
    return max(1, _LOGITS_BYTES // (4 * vocabulary * length))


def padded(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the inputs (B, T) and the targets (B, T − 1), padded with 0 and with the ignored target."""
    length = len(batch[0])
    inputs = torch.tensor([window + [0] * (length - len(window)) for window in batch])
    targets = torch.tensor([window[1:] + [_PADDING] * (length - len(window)) for window in batch])
    return inputs, targets
