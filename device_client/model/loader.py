"""Builds a running model from a validated bundle, without ever holding its weights in 16 bit.

Order: budget · skeleton on the meta device (no memory) · parameter names and shapes against the bundle · one tensor at
a time from its file to its place. Peak while loading = the loaded model + a few MiB. The model class is the one
that ``shared.architecture`` names for the family; no code, class name or module path is ever taken from a bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from device_client.devices import default_dtype, resolve_device
from device_client.model.backends.choose import REFERENCE, BackendOptions, choose_backend
from device_client.model.backends.planned_bytes import decoded_shapes
from device_client.model.cuda import Cuda, TorchCuda, cap_allocations
from device_client.model.embeddings import QuantizedEmbedding, QuantizedHead
from device_client.model.linear import LinearRuntime, QuantizedSparseLinear, SensitiveValues
from device_client.model.out_of_memory import refusing_to_load
from device_client.model.point_by_point import PointwiseActivation
from device_client.model.sparse_model import SparseModel
from device_client.model.tensor_reading import drop_cached_pages, read_to
from device_client.planning.memory_plan import check_budget, plan_memory
from device_client.planning.workload import Workload
from shared.bundle.config import BundleConfig
from shared.bundle.read import Bundle, SensitiveTensors
from shared.bundle.tensor_header import TensorSlot, read_header
from shared.errors import TensorMismatch, UnsupportedModel
from shared.model.network import network_without_weights
from shared.model.opening import check_vocabulary
from shared.model.skeleton import MakeNetwork, build_skeleton
from shared.model.tokenizer import BundleTokenizer
from shared.quantization.codec import QuantizedTensor

_ACTIVATIONS = ("act", "act_fn", "activation_fn")
"""What the served families call the module between the two halves of their MLP."""


def load_model(
    bundle: Bundle,
    *,
    device: str | None = None,
    compute_dtype: torch.dtype | None = None,
    memory_budget_bytes: int | None = None,
    backend: BackendOptions = REFERENCE,
    cuda: Cuda | None = None,
    make_network: MakeNetwork = network_without_weights,
    tokenizer: BundleTokenizer | None = None,
) -> SparseModel:
    """Return the bundle's model, ready to compute.

    On CUDA this also sets, for the whole process, that float16 products accumulate in float32: the two losses of a
    step differ by less than a float16 partial sum can tell.

    Args:
        bundle: A validated bundle.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes CUDA where there is one.
        compute_dtype: None takes float16 on CUDA and float32 on a CPU.
        memory_budget_bytes: Refuse before loading where the weights alone need more; on CUDA also a cap of the process.
        backend: What decodes and multiplies; the reference where nothing is said.
        cuda: CUDA; None takes torch's.
        make_network: Makes the network that the weights are put into.
        tokenizer: The bundle's, where the caller has read it already.

    Raises:
        ResourceError: No such device or backend, or the budget is too small.
        UnsupportedModel: The architecture is not served or makes no model.
        TensorMismatch: The bundle's tensors are not those of the architecture.
    """
    cuda = cuda or TorchCuda()
    target = resolve_device(device, cuda)
    dtype = compute_dtype or default_dtype(target)
    if memory_budget_bytes is not None:
        _respect_budget(bundle.config, memory_budget_bytes, target, dtype, backend.name, cuda)
    if target.type == "cuda":
        cuda.accumulate_in_float32()
    network = build_skeleton(bundle.config, make_network)
    tokenizer = tokenizer or BundleTokenizer.from_bundle(bundle)
    check_vocabulary(tokenizer, network)
    with refusing_to_load("close other programs, or choose a smaller bundle; see: zo-device plan"):
        shapes = decoded_shapes(bundle.config, target.type)
        chosen = choose_backend(backend, bundle.config.block_tensors, dtype, target, shapes=shapes)
        values = SensitiveValues(torch.empty(bundle.config.sensitive_count, dtype=dtype, device=target))
        is_memory_shared = target.type == "cuda" and cuda.shares_main_memory(target)
        loading = _Loading.begin(
            bundle, network, LinearRuntime(chosen.backend, values), is_memory_shared=is_memory_shared
        )
        for title in _titles(bundle.config):
            loading.load_file(network, title)
        loading.finish()
        place_buffers(network, target)
    _split_activations(network, loading.runtime)
    return SparseModel(
        config=bundle.config,
        tokenizer=tokenizer,
        network=network.eval(),
        runtime=loading.runtime,
        fused_up_to_tokens=chosen.fused_up_to_tokens,
        initial_values=loading.initial_values,
        tensor_slices=loading.slices,
    )


def _respect_budget(
    config: BundleConfig, budget_bytes: int, device: torch.device, dtype: torch.dtype, backend: str, cuda: Cuda
) -> None:
    least = Workload(rows=1, columns=1, queries=0)
    check_budget(
        plan_memory(config, least, device_type=device.type, value_bytes=dtype.itemsize, backend=backend), budget_bytes
    )
    if device.type == "cuda":
        cap_allocations(cuda, device, budget_bytes)


def place_buffers(network: nn.Module, device: torch.device) -> None:
    """Move what the network computed for itself (rotary frequencies, scales) to the device: no checkpoint holds it.

    Raises:
        UnsupportedModel: A buffer or parameter is left without values.
    """
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    empty = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    if empty:
        raise UnsupportedModel(f"nothing gives values to {empty[0]}")


def _split_activations(network: nn.Module, runtime: LinearRuntime) -> None:
    for path, module in list(network.named_modules()):
        parent, _, child = path.rpartition(".")
        if child in _ACTIVATIONS:
            setattr(network.get_submodule(parent), child, PointwiseActivation(module, runtime))


def _titles(config: BundleConfig) -> list[str]:
    blobs = [entry.blob for entry in config.tensors] + [entry.blob for entry in config.dense_parameters]
    return list(dict.fromkeys(blobs))


@dataclass(slots=True)
class _Loading:
    bundle: Bundle
    sensitive: SensitiveTensors
    device: torch.device
    dtype: torch.dtype
    runtime: LinearRuntime
    initial_values: Tensor
    slices: dict[str, slice]
    aliases: dict[str, list[str]]
    is_memory_shared: bool

    @classmethod
    def begin(cls, bundle: Bundle, network: nn.Module, runtime: LinearRuntime, *, is_memory_shared: bool) -> _Loading:
        values = runtime.values
        initial_values = torch.empty(values.count, dtype=torch.float16, device=values.device)
        slices = theta_slices(bundle.config)
        return cls(
            bundle, bundle.open_sensitive(), values.device, values.dtype, runtime, initial_values, slices,
            aliases_of(network), is_memory_shared,
        )  # fmt: skip

    def load_file(self, network: nn.Module, title: str) -> None:
        path = self.bundle.path(title)
        slots = read_header(path)

        def read(name: str, dtype: torch.dtype | None = None) -> Tensor:
            return read_to(path, _slot(slots, name), self.device, dtype)

        for dense in self.bundle.config.dense_parameters:
            if dense.blob == title:
                self._place_parameter(network, dense.name, read(dense.name, self.dtype))
        for entry in self.bundle.config.tensors:
            if entry.blob == title:
                parts = {part: read(f"{entry.name}.{part}") for part in entry.part_shapes}
                quantized = QuantizedTensor(
                    in_features=entry.shape[1], bits=entry.bits, group_size=entry.group_size, **parts
                )
                place = self._place_linear if entry.name in self.slices else self._place_embedding
                place(network, entry.name, quantized)
        if self.is_memory_shared:
            drop_cached_pages(path)

    def finish(self) -> None:
        """Give back what the system cached of the sensitive values, which were read beside every file."""
        if self.is_memory_shared:
            drop_cached_pages(self.sensitive.path)

    def _place_linear(self, network: nn.Module, name: str, quantized: QuantizedTensor) -> None:
        mask, values = self.sensitive.read(name)
        where = self.slices[name]
        self.initial_values[where] = torch.from_numpy(values).to(self.device)
        self.runtime.values.of(where, 0).copy_(self.initial_values[where])
        path = name.rpartition(".")[0]
        old = network.get_submodule(path)
        weight = self.runtime.backend.pack(quantized, torch.from_numpy(mask.indices.astype(np.int64)).to(self.device))
        _replace(network, path, QuantizedSparseLinear(weight, where, old.bias, self.runtime))  # type: ignore[arg-type]

    def _place_parameter(self, network: nn.Module, name: str, tensor: Tensor) -> None:
        new = nn.Parameter(tensor, requires_grad=False)
        for alias in self.aliases[name]:
            owner, _, attribute = alias.rpartition(".")
            setattr(network.get_submodule(owner), attribute, new)

    def _place_embedding(self, network: nn.Module, name: str, quantized: QuantizedTensor) -> None:
        for alias in self.aliases[name]:  # a tied weight is that of the embedding and of the head
            path = alias.rpartition(".")[0]
            old: Any = network.get_submodule(path)
            if isinstance(old, nn.Embedding):
                factor = getattr(old, "scalar_embed_scale", None)
                _replace(network, path, QuantizedEmbedding(quantized, self.dtype, factor))
            else:
                weight = self.runtime.backend.pack_table(quantized)
                _replace(network, path, QuantizedHead(weight, old.bias, self.runtime))


def theta_slices(config: BundleConfig) -> dict[str, slice]:
    """Return where each tensor's sensitive values lie in the flat θ; only weights of the blocks have any."""
    slices, start = {}, 0
    for entry in config.block_tensors:
        slices[entry.name] = slice(start, start + entry.sensitive_count)
        start += entry.sensitive_count
    return slices


def _slot(slots: dict[str, TensorSlot], name: str) -> TensorSlot:
    if name not in slots:
        raise TensorMismatch(f"tensor {name} is missing", next_step="zo-device pull")
    return slots[name]


def aliases_of(network: nn.Module) -> dict[str, list[str]]:
    """Return all names of each parameter, by each of its names: tied weights have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: aliases for aliases in names.values() for name in aliases}


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
