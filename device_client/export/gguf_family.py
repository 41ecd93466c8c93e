"""What a model of each family is called in a GGUF file, and how llama.cpp wants its numbers arranged.

    llama, mistral       the rows of q and k of each head interleaved: llama.cpp turns neighbours, transformers halves
    gemma2, gemma3_text  norms with the 1 that transformers adds
    all                  names by the ``gguf`` package's own table

A family enters the table when llama.cpp's log-probabilities of random models of it have agreed with those of
transformers; others are refused by name. Knows nothing about files and tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.bundle.config import BundleConfig
from shared.errors import UnsupportedModel
from shared.model_dimensions import Dimensions, dimensions_of

_LLAMA3_FACTORS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """One family.

    Attributes:
        architecture: ``general.architecture``.
        turns_neighbours: Whether llama.cpp's rotary embedding turns neighbouring numbers.
        norm_offset: What is added to the weights of norms.
        has_windows: Whether llama.cpp computes its sliding windows.
        layers_between: Of so many layers llama.cpp takes the last for one without a window.
    """

    architecture: str
    turns_neighbours: bool = False
    norm_offset: float = 0.0
    has_windows: bool = False
    layers_between: int = 1


FAMILIES = {
    "llama": GgufFamily("llama", turns_neighbours=True),
    "mistral": GgufFamily("llama", turns_neighbours=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "gemma2": GgufFamily("gemma2", norm_offset=1.0, has_windows=True, layers_between=2),
    "gemma3_text": GgufFamily("gemma3", norm_offset=1.0, has_windows=True, layers_between=6),
}


@dataclass(frozen=True, slots=True)
class RotaryPositions:
    """How positions turn queries and keys.

    Attributes:
        base: θ.
        kind: ``default``, ``linear``, ``yarn`` or ``llama3``.
        fields: What the configuration says of it.
    """

    base: float
    kind: str
    fields: Mapping[str, Any]


def gguf_family(config: BundleConfig) -> GgufFamily:
    """Return the record of a bundle's family.

    Raises:
        UnsupportedModel: There is none.
    """
    model_type = str(config.architecture.get("model_type"))
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"a model of the family {model_type}",
            needed=f"one of {', '.join(sorted(FAMILIES))}, which were compared with llama.cpp",
            next_step="export it with --to hf and convert that folder with llama.cpp's convert_hf_to_gguf.py",
            param="to",
        )
    family = FAMILIES[model_type]
    for found, needed in _computed_otherwise(config.architecture, family):
        raise UnsupportedModel(
            f"a {model_type} with {found}, which llama.cpp does not compute so",
            needed=needed,
            next_step="export it with --to hf",
            param="to",
        )
    return family


def _computed_otherwise(architecture: Mapping[str, Any], family: GgufFamily) -> Iterator[tuple[str, str]]:
    """Yield what of a model llama.cpp takes for granted to be otherwise, and what it takes it for."""
    activation = architecture.get("hidden_activation", architecture.get("hidden_act"))
    usual = ("gelu_pytorch_tanh",) if family.has_windows else ("silu",)
    if activation not in (None, *usual):
        yield f"the activation {str(activation)[:40]!r}", usual[0]
    if not family.has_windows:
        return
    width = dimensions_of(architecture).head_width
    if (scale := architecture.get("query_pre_attn_scalar", width)) != width:
        yield f"queries divided by √{scale}", f"√{width}, the width of a head"
    stated = architecture.get("layer_types") or []
    every = family.layers_between
    wanted = ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(len(stated))]
    if stated != wanted or architecture.get("sliding_window_pattern", every) != every:
        yield "another order of layers with a window", f"every layer but each {every}th"
    positions = architecture.get("rope_parameters") or {}
    local = positions.get("sliding_attention", {}).get("rope_theta", architecture.get("rope_local_base_freq", 1e4))
    if local != 1e4:
        yield f"positions of base {local} in layers with a window", "10000"


def rotary_positions(config: BundleConfig) -> RotaryPositions:
    """Return how positions turn; of Gemma 3 those of the layers without a window.

    Raises:
        UnsupportedModel: They are scaled in a way that is not written here.
    """
    architecture = config.architecture
    stated = architecture.get("rope_parameters") or architecture.get("rope_scaling") or {}
    fields = dict(stated.get("full_attention", stated))
    kind = str(fields.get("rope_type", fields.get("type", "default")))
    base = float(fields.get("rope_theta") or architecture.get("rope_theta") or 10_000.0)
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise UnsupportedModel(
            f"positions that are scaled as {kind[:40]!r}",
            needed="default, linear, yarn or llama3",
            next_step="export it with --to hf",
            param="to",
        )
    return RotaryPositions(base, kind, fields)


def frequency_factors(positions: RotaryPositions, width: int) -> Tensor | None:
    """Return what each frequency is divided by where positions are scaled as Llama 3's, float32 (width / 2,).

    wavelength w = 2π · θ^(2i/d): 1 where w < L/high, f where w > L/low, and between 1 / ((1 − s)/f + s) with
    s = (L/w − low) / (high − low). Symbols: L context before scaling, f factor.
    """
    if positions.kind != "llama3":
        return None
    factor, low, high, context = (float(positions.fields[name]) for name in _LLAMA3_FACTORS)
    factors = []
    for index in range(0, width, 2):
        wavelength = 2 * math.pi * positions.base ** (index / width)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            share = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - share) / factor + share))
    return torch.tensor(factors, dtype=torch.float32)


def usable_context(config: BundleConfig, family: GgufFamily) -> int:
    """Return the positions over which llama.cpp computes what the model does; an unknown window ends them."""
    architecture, context = config.architecture, config.tokenizer.context_length
    window = architecture.get("sliding_window")
    is_used = architecture.get("model_type") == "mistral" or architecture.get("use_sliding_window") is True
    return min(context, int(window)) if window and is_used and not family.has_windows else context


def heads_to_interleave(family: GgufFamily, parameter: str, dimensions: Dimensions) -> int:
    """Return the heads whose rows are to be interleaved; 0 leaves a parameter as it is."""
    if not family.turns_neighbours:
        return 0
    if ".q_proj." in parameter:
        return dimensions.heads
    return dimensions.key_heads if ".k_proj." in parameter else 0


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Return the rows of whole heads so that the two that turn together are neighbours."""
    width = len(rows) // heads
    return rows.view(heads, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
