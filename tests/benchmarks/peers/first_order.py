"""First-order steps on the same model: LoRA over 16-bit weights, and a QLoRA-like one over this project's packed ones.

    y = x Wᵀ + b + (α/r) · (x Aᵀ) Bᵀ          W frozen; A (r, in) and B (out, r) trained, B = 0 at the start
    ∂L/∂x ← ∂L/∂y · W                          W decoded once more: no decoded weight outlives its product

Costs a forward and a backward pass (no gradient of W), kept activations of all blocks, and the optimiser's two moments
of A and B. Checkpointing keeps one activation per block and pays a second forward pass. Packed layers are asked for
``effective_weight()`` alone. The loss is scaled by 2¹⁰ where the model computes in float16, so that small gradients
survive; a static scale needs no test for overflow, which is generous.
References: Hu et al. 2021 (LoRA); Dettmers et al. 2023 (QLoRA).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from peers.labelled_batch import LabelledBatch, mean_answer_loss
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from device_client.model.linear import QuantizedSparseLinear
from device_client.model.sparse_model import SparseModel

ADAPTED = ("q_proj", "v_proj")
RANK, ALPHA = 8, 16.0
FLOAT16_LOSS_SCALE = 2.0**10


class PackedLinear(nn.Module):
    """A packed layer through which gradients flow to its inputs; its weight stays packed between the two passes.

    Args:
        layer: Its ``effective_weight()`` is valid until another layer decodes.
    """

    def __init__(self, layer: QuantizedSparseLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (…, in_features) times Wᵀ plus bias."""
        result: Tensor = _DecodedTwice.apply(inputs, self.layer)  # type: ignore[no-untyped-call]
        return result


class _DecodedTwice(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: Tensor, layer: QuantizedSparseLinear) -> Tensor:
        context.layer = layer
        return functional.linear(inputs, layer.effective_weight(), layer.bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ context.layer.effective_weight(), None


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank correction.

    Args:
        base: ``nn.Linear`` or ``PackedLinear``.
        generator: Draws A, on the layer's device.
        dtype: Of A and B; the correction is computed in it.
    """

    def __init__(self, base: nn.Module, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        rows, columns = int(base.out_features), int(base.in_features)  # type: ignore[arg-type]
        device = generator.device
        down = torch.randn(RANK, columns, generator=generator, dtype=dtype, device=device) / math.sqrt(columns)
        self.base = base
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(rows, RANK, dtype=dtype, device=device))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's own result plus the correction, in the layer's dtype."""
        result: Tensor = self.base(inputs)
        correction = functional.linear(functional.linear(inputs.to(self.down.dtype), self.down), self.up)
        return result + (ALPHA / RANK * correction).to(result.dtype)


class FirstOrder:
    """AdamW on the adapters of a network; made by ``lora`` and ``qlora``.

    Attributes:
        network: What was given, its layers replaced in place.
        adapters: A and B of every adapted layer.
    """

    def __init__(self, network: nn.Module, adapters: list[nn.Parameter], *, lr: float, full_logits: bool) -> None:
        self.network = network
        self.adapters = adapters
        self._full_logits = full_logits
        self._optimizer = torch.optim.AdamW(adapters, lr=lr)
        is_half = any(parameter.dtype == torch.float16 for parameter in network.parameters())
        self._loss_scale = FLOAT16_LOSS_SCALE if is_half else 1.0

    def backward(self, batch: LabelledBatch) -> Tensor:
        """Leave ∂L/∂A and ∂L/∂B in the adapters' ``grad``; return L, on the device."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = mean_answer_loss(self.network, batch, full_logits=self._full_logits)
        (loss * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        for gradient in [adapter.grad for adapter in self.adapters if adapter.grad is not None]:
            gradient.div_(self._loss_scale)
        return loss.detach()

    def step(self, batch: LabelledBatch) -> float:
        """Make one step; return the loss before it, nats per answer token."""
        loss = self.backward(batch)
        self._optimizer.step()
        return float(loss)


def lora(
    network: nn.Module,
    *,
    adapter_dtype: torch.dtype = torch.float32,
    checkpoint_blocks: bool = False,
    lr: float = 1e-4,
    full_logits: bool = False,
    seed: int = 0,
) -> FirstOrder:
    """Return a trainer of new adapters on a plain model's q and v projections.

    Args:
        network: A plain transformers causal language model; its layers are replaced and its parameters frozen.
        adapter_dtype: Of A, B and the optimiser's moments.
        checkpoint_blocks: Keep only the input of each decoder block, and run the block again in the backward pass.
        lr: AdamW's.
        full_logits: See ``wanted_logits``.
        seed: Of A.
    """
    network.requires_grad_(False)
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    _replace(network, ADAPTED, nn.Linear, lambda layer: LoraLinear(layer, generator, adapter_dtype))
    return _trainer(network, checkpoint_blocks, lr, full_logits)


def qlora(
    model: SparseModel,
    *,
    adapter_dtype: torch.dtype = torch.float32,
    checkpoint_blocks: bool = False,
    lr: float = 1e-4,
    full_logits: bool = False,
    seed: int = 0,
) -> FirstOrder:
    """Return a trainer of new adapters on a packed model's q and v projections; see ``lora``.

    ``model`` cannot be used for anything else afterwards: its layers are replaced.
    """
    network = model.network
    network.requires_grad_(False)
    generator = torch.Generator(model.device).manual_seed(seed)
    _replace(network, None, QuantizedSparseLinear, PackedLinear)
    _replace(network, ADAPTED, PackedLinear, lambda layer: LoraLinear(layer, generator, adapter_dtype))
    return _trainer(network, checkpoint_blocks, lr, full_logits)


def _trainer(network: nn.Module, checkpoint_blocks: bool, lr: float, full_logits: bool) -> FirstOrder:
    adapted = [module for module in network.modules() if isinstance(module, LoraLinear)]
    if checkpoint_blocks:
        for block in network.get_decoder().layers:  # type: ignore[operator]
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    adapters = [parameter for module in adapted for parameter in (module.down, module.up)]
    return FirstOrder(network, adapters, lr=lr, full_logits=full_logits)


def _replace(
    network: nn.Module, names: Collection[str] | None, kind: type[nn.Module], make: Callable[[Any], nn.Module]
) -> None:
    """Put ``make(layer)`` in the place of every layer of a kind, or of those with some last names."""
    for path, layer in list(network.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(layer, kind) and (names is None or name in names):
            setattr(network.get_submodule(parent), name, make(layer))
