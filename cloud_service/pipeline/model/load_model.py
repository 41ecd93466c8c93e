"""Loads a checkpoint into a network: configuration parsed here and reduced to allow-listed keys, weights one at a time.

The network computes in float32 on a CPU (float16 GEMM is 11 times slower there) and in bfloat16 on CUDA, whatever the
checkpoint is stored in and whatever memory there is: float16 gradients underflow without loss scaling, and a mask must
not depend on a budget. Every weight is first rounded to float16, as published, and those exact originals are read
again from the files where they are needed. Costs the network, and one tensor beside it while loading. No module of the
checkpoint is ever imported. Knows nothing about calibration or quantisation.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.pytorch_utils import Conv1D

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.checkpoint_weights import CheckpointWeights
from cloud_service.pipeline.model.config_bounds import check_config
from cloud_service.pipeline.model.untested_family import check_computes_as_expected, find_decoder_blocks
from cloud_service.pipeline.model.weight_files import read_json, unsupported
from shared.architecture import family_of, safe_config
from shared.model.network import causal_class
from shared.model_dimensions import dimensions_of

_ERRORS_OF_A_CONFIGURATION = (
    StrictDataclassError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What transformers raises where a configuration that nobody checked makes no sense to it."""

_DROPOUTS = (
    "attention_dropout", "dropout", "activation_dropout", "layerdrop", "hidden_dropout", "attn_pdrop", "embd_pdrop",
    "resid_pdrop",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """What is known of a checkpoint's network before any weight is loaded.

    Attributes:
        architecture: Its configuration, reduced by ``safe_config``.
        shapes: Shape of every parameter, in the network's order; a tied one occurs once.
        linear_names: Parameter names of the decoder's linear weights, in order of blocks.
        embedding_names: Parameter names of the token embedding and the output head; one name where they are tied.
        block_path: Dotted path of the list of decoder blocks.
        block_count: Number of decoder blocks.
        context_length: Positions that the model was made for.
        weights: The checkpoint: the exact float16 originals.
    """

    architecture: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    linear_names: tuple[str, ...]
    embedding_names: tuple[str, ...]
    block_path: str
    block_count: int
    context_length: int
    weights: CheckpointWeights

    @property
    def is_family_tested(self) -> bool:
        """Whether the model's family is a tested one."""
        return family_of(self.architecture, allow_untested=True).is_tested

    @property
    def block_prefixes(self) -> list[str]:
        """Name prefix of every decoder block, in order."""
        return [f"{self.block_path}.{index}." for index in range(self.block_count)]

    @property
    def block_linears(self) -> list[list[str]]:
        """Names of the linear weights of every decoder block, in order."""
        return [[name for name in self.linear_names if name.startswith(prefix)] for prefix in self.block_prefixes]

    def members(self, block: int) -> list[str]:
        """Return the names of all parameters of a decoder block."""
        return [name for name in self.shapes if name.startswith(self.block_prefixes[block])]

    @property
    def linear_sizes(self) -> dict[str, int]:
        """Number of elements of every linear weight."""
        return {name: prod(self.shapes[name]) for name in self.linear_names}

    @property
    def trunk(self) -> list[str]:
        """Names of the parameters outside the decoder blocks."""
        return [name for name in self.shapes if not name.startswith(tuple(self.block_prefixes))]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model ready for forward and backward passes.

    Attributes:
        network: The transformers model, without dropout.
        outline: Its names and shapes.
    """

    network: nn.Module
    outline: ModelOutline

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie, and so where tokens go."""
        return next(self.network.parameters()).device

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in order."""
        return list(self.network.get_submodule(self.outline.block_path).children())

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Yield a decoder block; its weights are in memory for as long as the context is open."""
        yield self.blocks[index]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name; a tied one occurs once."""
        return dict(self.network.named_parameters())


def read_outline(folder: Path, *, allow_untested: bool = False) -> ModelOutline:
    """Return the outline of the checkpoint in ``folder``, from config.json and the headers of the weight files.

    Args:
        folder: The checkpoint.
        allow_untested: Take a family that is not tested, too.

    Raises:
        UnsupportedModel: The family or a shape is not served, or a weight is missing; the message names it.
    """
    architecture = safe_config(read_json(ContainedFolder(folder), "config.json"), allow_untested=allow_untested)
    family = family_of(architecture, allow_untested=True)
    weights = CheckpointWeights(folder)
    check_config(architecture, weights.shapes)
    skeleton = build_skeleton(architecture)
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    block_count = dimensions_of(architecture).blocks
    block_path = family.decoder_blocks or find_decoder_blocks(skeleton, block_count)
    linear_names = tuple(
        f"{block_path}.{name}.weight"
        for name, module in skeleton.get_submodule(block_path).named_modules()
        if isinstance(module, nn.Linear)
    )
    weights.claim(
        shapes,
        prefix=f"{block_path.partition('.')[0]}.",
        renamed=family.renamed,
        computed=family.computed_weights,
        transposed=linear_names if family.stores_transposed else (),
    )
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            raise unsupported(f"weight {name} has the shape {weights.shape(name)}", f"{shape}, as config.json says")
    _check_tied_head(skeleton, weights)
    context_length = int(skeleton.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    return ModelOutline(
        architecture=architecture,
        shapes=shapes,
        linear_names=linear_names,
        embedding_names=_embedding_names(skeleton),
        block_path=block_path,
        block_count=block_count,
        context_length=context_length,
        weights=weights,
    )


def load_model(
    outline: ModelOutline,
    *,
    device: str | None = None,
    device_map: Mapping[str, int | str] | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Return the model of an outline, its weights read one after another.

    Args:
        outline: From ``read_outline``.
        device: Torch device; None means CUDA where there is one, else the CPU.
        device_map: Module name → device, for a model spread over several by ``accelerate``; overrides ``device``.
        dtype: What to compute in; None means ``compute_dtype``. float16 and float32 hold the originals exactly.

    Raises:
        UnsupportedModel: A weight is damaged or not finite; the message names it. Or an untested family computes
            something that devices would compute otherwise.
    """
    if device_map is not None:
        gc.collect()  # accelerate's hooks tie a network into a cycle: one that was loaded before goes only now
    network = build_skeleton(outline.architecture)
    places = device_map or {"": device or ("cuda" if torch.cuda.is_available() else "cpu")}
    place_weights(network, outline.weights, [name for name, _ in network.named_parameters()], places, dtype)
    place_buffers(network, places)
    if device_map is not None:
        import accelerate

        accelerate.dispatch_model(network, dict(device_map), force_hooks=True)
    if not outline.is_family_tested:
        check_computes_as_expected(network)
    return LoadedModel(network, outline)


def build_skeleton(architecture: Mapping[str, Any]) -> nn.Module:
    """Return the network with its parameters on the meta device, tied as configured; its buffers are real.

    Raises:
        UnsupportedModel: transformers makes no model of the configuration.
    """
    import accelerate

    transformers.logging.set_verbosity_error()
    family = family_of(architecture, allow_untested=True)
    settings = {key: value for key, value in architecture.items() if key not in ("model_type", "architectures")}
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **settings)
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        config.use_cache = False
        with accelerate.init_empty_weights(include_buffers=False):
            network: nn.Module = causal_class(family, config)(config)
    except _ERRORS_OF_A_CONFIGURATION as error:
        made = family.architecture or f"model of type {family.model_type}"
        raise unsupported(f"config.json does not make a {made}: {error}", "") from error
    _replace_transposed_linears(network)
    network.tie_weights()  # type: ignore[operator]
    return network.eval()


def _replace_transposed_linears(network: nn.Module) -> None:
    """Put linear layers where the network has layers whose weights are (in_features, out_features)."""
    for path, module in list(network.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, child = path.rpartition(".")
            with torch.device("meta"):
                setattr(network.get_submodule(parent), child, nn.Linear(module.nx, module.nf))


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that gradients are computed in on a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def evaluation_dtype(outline: ModelOutline, device: str) -> torch.dtype:
    """Return the dtype that perplexity is measured in: float32 on a CPU, else 16 bits of the range it was made in."""
    if torch.device(device).type == "cpu":
        return torch.float32
    return torch.float16 if outline.weights.is_stored_in_float16 else torch.bfloat16


def place_weights(
    network: nn.Module,
    weights: CheckpointWeights,
    names: Collection[str],
    device_map: Mapping[str, int | str],
    dtype: torch.dtype | None,
) -> None:
    """Read the parameters of these names, one after another, and put them into the network.

    Raises:
        UnsupportedModel: A weight is damaged or not finite; the message names it.
    """
    # Not network.to(dtype): that would round the rotary frequencies, which are float32 buffers, too.
    for name in names:
        path, _, leaf = name.rpartition(".")
        device = _device_of(name, device_map)
        data = weights.read(name).to(device, dtype or compute_dtype(device))
        setattr(network.get_submodule(path), leaf, nn.Parameter(data, requires_grad=False))


def place_buffers(network: nn.Module, device_map: Mapping[str, int | str]) -> None:
    """Put the network's buffers where they belong, and tie what is tied."""
    network.tie_weights()  # type: ignore[operator]
    for path, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(_device_of(f"{path}.{name}", device_map)))


def _embedding_names(network: nn.Module) -> tuple[str, ...]:
    ends = (network.get_input_embeddings(), network.get_output_embeddings())  # type: ignore[operator]
    return tuple(name for name, parameter in network.named_parameters() if any(parameter is end.weight for end in ends))


def _check_tied_head(network: nn.Module, weights: CheckpointWeights) -> None:
    head, parameters = "lm_head.weight", dict(network.named_parameters())
    if head not in weights or head in parameters:
        return
    embedding = next(name for name, parameter in parameters.items() if parameter is network.get_parameter(head))
    if not torch.equal(weights.read(head), weights.read(embedding)):
        raise unsupported(
            "config.json ties lm_head to the embedding, but the stored lm_head.weight differs from it",
            "tie_word_embeddings: false, or equal weights",
        )


def _device_of(name: str, device_map: Mapping[str, int | str]) -> torch.device:
    """Return the device of the longest module name that ``name`` lies under."""
    owners = [module for module in device_map if not module or name == module or name.startswith(f"{module}.")]
    return torch.device(device_map[max(owners, key=len)] if owners else next(iter(device_map.values())))
