"""The exact gradient of a batch's loss for the sensitive values of a model.

    w_r   = ∂L / ∂ log p_r             of every token that is read; float64 on the host
    dh    = Σ_r w_r ∂ log p_r / ∂h     at the wanted positions                              model.gradient.answers
    ∂L/∂θ   from dh through the blocks, from the last to the first                          model.gradient.passes

The loss of an example depends on all its answers. Where they may lie in several micro-batches, a pass without
gradients reads all log-probabilities first; else each micro-batch is by itself, and their gradients add up. In float16
the gradient travels larger by a power of two, so that small numbers survive. Costs one forward pass, one more of the
tuned blocks, and as much again. Knows nothing about optimisers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_client.model.gradient.answers import log_probabilities, states_gradient
from device_client.model.gradient.passes import differentiable
from device_client.model.sparse_model import SparseModel
from device_client.planning.tuned_blocks import TunedBlocks, tuned_blocks
from device_client.tasks.layout import AnswerBatch, Bucket
from device_client.tasks.scoring import Objective, answer_losses, scores_of, target_log_probabilities

FLOAT16_SCALE = 2.0**10
"""How much larger than one the gradient of an example's loss is made where the model computes in float16."""


class AnswerGradient:
    """Computes loss and gradient at any θ.

    Args:
        model: Whose sensitive values.
        objective: Which loss.
        blocks: Which decoder blocks are tuned, the values below them staying the bundle's own; None tunes all.
    """

    def __init__(self, model: SparseModel, objective: Objective, blocks: TunedBlocks | None = None) -> None:
        self._model, self._blocks = model, blocks or tuned_blocks(model.config)
        self._below = model.initial_theta()[: self._blocks.first_value]
        self._objective: Objective = objective

    def __call__(self, theta: Tensor, batch: AnswerBatch) -> tuple[float, Tensor]:
        """Return the mean loss of a batch at θ, nats per answer, and its gradient, float32 (k,) on the device.

        Args:
            theta: The values of the tuned blocks, float32 (k,).
            batch: Laid out on the model's device.
        """
        model = self._model
        model.write_theta(torch.cat([self._below, theta]))
        is_each_alone = _is_each_alone(batch, self._objective)
        reads = [_unread(bucket) if is_each_alone else self._read(bucket) for bucket in batch.buckets]
        gradient = torch.zeros(model.sensitive_count, dtype=torch.float32, device=model.device)
        scale = FLOAT16_SCALE * len(batch) if model.compute_dtype == torch.float16 else 1.0
        with differentiable(model.network, model.decoder_blocks[self._blocks.first :], gradient):
            for number, bucket in enumerate(batch.buckets):
                with torch.enable_grad():
                    states = _wanted_states(model, bucket)
                if is_each_alone:
                    reads[number] = log_probabilities(model.head, states.detach(), bucket.targets)
                _, weights = self._loss_and_weights(reads, batch)
                weighted = (weights[number] * scale).to(model.device, torch.float32)
                outer = states_gradient(model.head, states.detach(), bucket.targets, weighted)
                torch.autograd.backward(states, outer)
        loss, _ = self._loss_and_weights(reads, batch)
        return loss, gradient[self._blocks.first_value :].div_(scale)

    def _read(self, bucket: Bucket) -> Tensor:
        """Return the log-probabilities that a pass without gradients reads, float32 (n, width)."""
        read = target_log_probabilities(self._model.logits(bucket.tokens), bucket.targets)
        return read.view(bucket.targets.shape)

    def _loss_and_weights(self, reads: list[Tensor], batch: AnswerBatch) -> tuple[float, list[Tensor]]:
        """Return L and ∂L / ∂ log p of every read of every bucket, float64 on the host."""
        leaves = [read.cpu().double().requires_grad_() for read in reads]
        with torch.enable_grad():
            scores = scores_of(torch.cat([leaf.flatten() for leaf in leaves])[None], batch)
            loss = answer_losses(scores, batch, self._objective).mean()
        return float(loss.detach()), list(torch.autograd.grad(loss, leaves))


def _wanted_states(model: SparseModel, bucket: Bucket) -> Tensor:
    tokens = bucket.tokens
    return model.hidden_states(tokens.input_ids)[tokens.logit_rows, tokens.logit_columns]


def _unread(bucket: Bucket) -> Tensor:
    return torch.zeros(bucket.targets.shape)


def _is_each_alone(batch: AnswerBatch, objective: Objective) -> bool:
    """Return whether no example's loss needs log-probabilities of two micro-batches."""
    return (
        objective == "vocabulary"
        or len(batch.buckets) == 1
        or all(example.has_single_token_candidates for example in batch.examples)
    )
