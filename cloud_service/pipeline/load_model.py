"""Loads a checkpoint: configuration parsed here and reduced to allow-listed keys, weights from safetensors only.

Every weight is rounded to float16, the precision that devices keep; what cannot be (NaN, infinity, beyond ±65504) is
refused by name. The model computes in another dtype: float32 on a CPU (float16 GEMM is 11 times slower there), on CUDA
bfloat16 for checkpoints stored so and float32 otherwise, because float16 gradients underflow without loss scaling.
Costs 2 bytes per weight while reading; where the network computes in bfloat16, which does not hold them exactly, those
float16 originals stay in host memory. No module of the checkpoint is ever imported. Knows nothing about calibration or
quantisation.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from shared.architecture import ModelFamily, family_of, safe_config
from shared.errors import UnsupportedModel

_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_REDUNDANT_WEIGHTS = ("rotary_emb.inv_freq", "lm_head.weight")
"""What checkpoints may hold besides the parameters: computed frequencies, and the copy of a tied embedding."""

_DROPOUTS = ("attention_dropout", "dropout", "activation_dropout", "layerdrop")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model ready for gradients.

    Attributes:
        network: The transformers model, in its compute dtype, without dropout.
        architecture: Its configuration, reduced by ``safe_config``.
        linear_names: Parameter names of the decoder's linear weights, in order of blocks.
        originals: The float16 weights in host memory; empty where the network holds them exactly.
    """

    network: nn.Module
    architecture: dict[str, Any]
    linear_names: tuple[str, ...]
    originals: dict[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return int(self.network.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in order."""
        return list(self.network.get_submodule(family_of(self.architecture).decoder_blocks).children())

    @property
    def block_prefixes(self) -> list[str]:
        """Name prefix of every decoder block, in order."""
        path = family_of(self.architecture).decoder_blocks
        return [f"{path}.{index}." for index in range(len(self.blocks))]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name; a tied one occurs once."""
        return dict(self.network.named_parameters())

    def weight(self, name: str) -> Tensor:
        """Return a parameter as published: float16 (in float32, exactly), on the network's device."""
        original = self.originals.get(name)
        exact = self.parameters[name].detach() if original is None else original.to(self.device)
        return exact.to(torch.float32)

    def compute_in_float32(self) -> None:
        """Change the network to the exact float16 weights in float32, for evaluation."""
        for name, parameter in self.parameters.items():
            parameter.grad = None
            parameter.data = self.weight(name)
        self.network.eval()


def load_model(folder: Path, *, device: str | None = None) -> LoadedModel:
    """Return the model in ``folder``.

    Args:
        folder: A Hugging Face folder with config.json and safetensors.
        device: Torch device; None means CUDA where there is one, else the CPU.

    Raises:
        UnsupportedModel: The family, a shape or a weight is not served; the message names the file or tensor.
    """
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    architecture = safe_config(read_json(folder / "config.json"))
    family = family_of(architecture)
    weights, stored_dtype = _read_weights(folder)
    network = _build(family, architecture, weights)
    linear_names = _decoder_linears(network, family)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if target.type == "cuda" and stored_dtype == torch.bfloat16 else torch.float32
    originals = {} if dtype == torch.float32 else {name: p.detach() for name, p in network.named_parameters()}
    _place(network, target, dtype)
    return LoadedModel(network, architecture, linear_names, originals)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the checkpoint.

    Raises:
        UnsupportedModel: The file is missing, too long, or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _unsupported(f"there is no {path.name}", "a Hugging Face model folder") from error
    except (ValueError, RecursionError) as error:
        raise _unsupported(f"{path.name}: {error}", "a JSON object") from error
    if not isinstance(document, dict):
        raise _unsupported(f"{path.name} holds {type(document).__name__}", "a JSON object")
    return document


def _build(family: ModelFamily, architecture: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    settings = {key: value for key, value in architecture.items() if key not in ("model_type", "architectures")}
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **settings)
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        network, info = getattr(transformers, family.architecture).from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float16, output_loading_info=True
        )
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise _unsupported(f"config.json and weights do not make a {family.architecture}: {error}", "") from error
    _check_names(info["missing_keys"], info["unexpected_keys"])
    network.config.use_cache = False
    return network  # type: ignore[no-any-return]


def _check_names(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse a checkpoint whose tensors are not the architecture's: without them it would be another model."""
    if missing:
        raise _unsupported(f"{min(missing)} is not among the weights ({len(missing)} missing)", "a complete checkpoint")
    if unknown := [name for name in unexpected if not name.endswith(_REDUNDANT_WEIGHTS)]:
        raise _unsupported(
            f"config.json has no place for the weight {min(unknown)} ({len(unknown)} like it)",
            "a config.json that describes every weight (layers, biases)",
        )


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], torch.dtype]:
    weights: dict[str, Tensor] = {}
    stored_dtype = torch.float16
    for path in _weight_files(folder):
        for name, tensor in _read_file(path):
            if tensor.is_floating_point():
                stored_dtype = tensor.dtype
                weights[name] = _to_float16(name, tensor)
    return weights, stored_dtype


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        shards = read_json(folder / _INDEX).get("weight_map", {})
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if unsafe := [name for name in names if Path(name).name != name]:
            raise _unsupported(f"{_INDEX} names {unsafe[0]!r}", "plain file names")
        paths = [folder / name for name in names]
    elif (folder / "model.safetensors").exists():
        paths = [folder / "model.safetensors"]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        if not path.exists():
            raise _unsupported(f"{path.name}, named by {_INDEX}, is missing", "every shard")
    return paths


def _read_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise _unsupported(f"{path.name}: {error}", "an undamaged safetensors file; fetch it again") from error


def _to_float16(name: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise _unsupported(f"weight {name} holds NaN or infinite values", "finite weights")
    rounded = tensor.to(torch.float16)
    if not torch.isfinite(rounded).all():
        largest = float(tensor.abs().max())
        raise _unsupported(f"weight {name} holds {largest:g}", "weights within ±65504, the range of float16")
    return rounded


def _decoder_linears(network: nn.Module, family: ModelFamily) -> tuple[str, ...]:
    blocks = network.get_submodule(family.decoder_blocks)
    names = tuple(
        f"{family.decoder_blocks}.{name}.weight"
        for name, module in blocks.named_modules()
        if isinstance(module, nn.Linear)
    )
    if not names:
        raise _unsupported("the decoder has no linear layer", "a model with at least one decoder block")
    return names


def _place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    # Not network.to(dtype): that would round the rotary frequencies, which are float32 buffers, too.
    for parameter in network.parameters():
        parameter.data = parameter.data.to(device, dtype)
        parameter.requires_grad_(False)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _unsupported(found: str, needed: str) -> UnsupportedModel:
    return UnsupportedModel(found, needed=needed, next_step="choose another checkpoint or repair it", param="model")
