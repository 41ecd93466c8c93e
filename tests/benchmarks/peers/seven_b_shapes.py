"""Random models in the shapes of Llama-2-7B, with any number of blocks: a plain one, and a bundle on disk.

Random weights serve for time and memory. Both are made tensor by tensor: the plain model in its own dtype from the
start, the bundle block by block (110 MB at a time). The two hold different weights. A bundle of 32 blocks has 3.9 GB
and takes about a minute; it is made once and found again by what it was made from.
Needs what a device has, and ``tests/support``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from random_bundle import random_mask, title_of
from random_network import SEVEN_BILLION, random_network
from tiny_bundle import byte_tokenizer_json
from torch import nn

from shared.architecture import family_of, safe_config
from shared.bundle.config import (
    BundleConfig,
    DenseEntry,
    MemoryEstimates,
    ParameterCounts,
    QuantizedEntry,
    Quantizer,
    SourceModel,
    TokenizerSettings,
)
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import JSON_MEDIA_TYPE, SENSITIVE_TITLE, TOKENIZER_TITLE, TRUNK_TITLE, Descriptor
from shared.bundle.read import Bundle, read_bundle
from shared.bundle.write import add_document, add_manifest, add_tensors, remove_unfinished

Form = Literal["lut", "g64", "g128"]
"""A codebook for each row, or uniform steps with scale and bias for groups of 64 or 128 columns."""
Tensors = dict[str, NDArray[np.generic]]
Shape = tuple[int, ...]

BITS: Final = 4
SPREAD = 0.02
SENSITIVE_SPREAD = 3 * SPREAD
CODE_MEAN, CODE_SPREAD = 7.5, 4.61
"""Of 0 … 15, all equally likely."""
_TILE_VALUES = 1 << 24


def seven_b_config(*, blocks: int = 32, vocabulary: int = 32000) -> dict[str, Any]:
    """Return the configuration of Llama-2-7B with so many blocks and words."""
    return SEVEN_BILLION | {"num_hidden_layers": blocks, "vocab_size": vocabulary}


def plain_model(config: Mapping[str, Any], *, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a transformers model whose weights are normal with standard deviation 0.02, always the same ones.

    Args:
        config: From ``seven_b_config``, or of any served family.
        dtype: Of every weight, from the start.
        device: Where they are made.
    """
    return random_network(config, device=device, dtype=dtype).network


def shaped_bundle(
    folder: Path, config: Mapping[str, Any], *, form: Form = "lut", sparsity: float = 0.001, seed: int = 0
) -> Bundle:
    """Return the bundle of random weights that these arguments name, making it where it is not in the folder yet.

    Args:
        folder: An image layout, or where to make one.
        config: From ``seven_b_config``, or of any served family; at least 259 words, for the byte tokenizer.
        form: How weights are coded, in 4 bits.
        sparsity: Share of each weight that is sensitive; at least one value is.
        seed: Of everything random.
    """
    layout = ImageLayout.create(folder)
    reference = _reference(config, form, sparsity, seed)
    if reference in layout.references():
        return read_bundle(layout, layout.resolve(reference).digest, verify_digests=False)
    remove_unfinished(layout)
    parts = _Parts(form, sparsity, seed)
    layers = [
        add_tensors(layout, title, parts.draw_file(index, title, parameters))
        for index, (title, parameters) in enumerate(_parameters_by_file(config).items())
    ]
    layers.append(add_tensors(layout, SENSITIVE_TITLE, parts.sensitive))
    layers.append(add_document(layout, TOKENIZER_TITLE, byte_tokenizer_json().encode(), JSON_MEDIA_TYPE))
    manifest = add_manifest(layout, _bundle_config(config, parts, layers), layers)
    layout.tag(reference, manifest)
    return read_bundle(layout, manifest.digest, verify_digests=False)


def _reference(config: Mapping[str, Any], form: Form, sparsity: float, seed: int) -> str:
    made_from = json.dumps([dict(config), form, sparsity, seed], sort_keys=True)
    return f"random-shapes:{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"


def _parameters_by_file(config: Mapping[str, Any]) -> dict[str, dict[str, Shape]]:
    """Return what lies in each file: title → parameter name → shape; from a model without memory."""
    family = family_of(dict(config))
    model_class = getattr(transformers, family.architecture)
    with torch.device("meta"):
        network: nn.Module = model_class(model_class.config_class(**config))
    files: dict[str, dict[str, Shape]] = {}
    for name, parameter in network.named_parameters():
        files.setdefault(title_of(name, family.decoder_blocks), {})[name] = tuple(parameter.shape)
    return files


@dataclass(slots=True)
class _Parts:
    """Draws tensors, and remembers what the configuration says of them."""

    form: Form
    sparsity: float
    seed: int
    quantized: list[QuantizedEntry] = field(default_factory=list)
    dense: list[DenseEntry] = field(default_factory=list)
    sensitive: Tensors = field(default_factory=dict)

    def draw_file(self, index: int, title: str, parameters: Mapping[str, Shape]) -> Tensors:
        """Return the tensors of one file, a function of the seed and the file's index alone."""
        random = np.random.default_rng([self.seed, index])
        tensors: Tensors = {}
        for name, shape in parameters.items():
            if title == TRUNK_TITLE or len(shape) != 2:
                tensors[name] = np.ones(shape, np.float16) if "norm" in name else _normal(random, shape)
                self.dense.append(DenseEntry(name=name, shape=list(shape), blob=title))
                continue
            entry = self._entry(name, (shape[0], shape[1]), title)
            self.quantized.append(entry)
            tensors |= {f"{name}.{part}": tensor for part, tensor in _draw_weight(random, entry).items()}
            self.sensitive |= {f"{name}.{part}": tensor for part, tensor in _draw_sensitive(random, entry).items()}
        return tensors

    def _entry(self, name: str, shape: tuple[int, int], title: str) -> QuantizedEntry:
        return QuantizedEntry(
            name=name,
            shape=shape,
            blob=title,
            bits=BITS,
            codebook="per_row" if self.form == "lut" else "none",
            group_size=self.group_size,
            has_bias=self.form != "lut",
            sensitive_count=max(1, round(self.sparsity * shape[0] * shape[1])),
            relative_error=0.0,
            weighted_relative_error=0.0,
        )

    @property
    def group_size(self) -> int | None:
        return None if self.form == "lut" else int(self.form.removeprefix("g"))


def _draw_weight(random: np.random.Generator, entry: QuantizedEntry) -> Tensors:
    """Return random codes, and either sorted codebooks or scales and biases that give weights of the same spread."""
    rows, columns = entry.shape
    codes = random.integers(0, 256, (rows, -(-columns // 2)), np.uint8)
    if columns % 2:
        codes[:, -1] &= 0x0F
    if entry.group_size is None:
        return {"codes": codes, "lut": np.sort(_normal(random, (rows, 1 << BITS)), axis=1)}
    grouped = (rows, -(-columns // entry.group_size))
    scale = (random.uniform(0.5, 1.5, grouped) * SPREAD / CODE_SPREAD).astype(np.float16)
    return {"codes": codes, "scale": scale, "bias": (-CODE_MEAN * scale).astype(np.float16)}


def _draw_sensitive(random: np.random.Generator, entry: QuantizedEntry) -> Tensors:
    count = entry.sensitive_count
    positions = random.choice(entry.element_count, count, replace=False, shuffle=False)
    return {
        "indices": np.sort(positions).astype(np.int32),
        "rank": random.permutation(count).astype(np.int32),
        "values": _normal(random, (count,), SENSITIVE_SPREAD),
    }


def _normal(random: np.random.Generator, shape: Shape, spread: float = SPREAD) -> NDArray[np.float16]:
    """Return normal values, float16, without a float32 copy of all of them."""
    values = np.empty(shape, np.float16)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _TILE_VALUES):
        tile = flat[start : start + _TILE_VALUES]
        tile[:] = random.standard_normal(tile.size, np.float32) * np.float32(spread)
    return values


def _bundle_config(config: Mapping[str, Any], parts: _Parts, layers: Iterable[Descriptor]) -> BundleConfig:
    quantized = sum(entry.element_count for entry in parts.quantized)
    dense = sum(int(np.prod(entry.shape)) for entry in parts.dense)
    sensitive = sum(entry.sensitive_count for entry in parts.quantized)
    context = int(config["max_position_embeddings"])
    return BundleConfig(
        producer="tests/benchmarks/peers",
        source=SourceModel(id="tests/random-shapes"),
        architecture=safe_config(dict(config)),
        tokenizer=TokenizerSettings(prepend_bos=True, bos_token_id=256, eos_token_ids=[257], context_length=context),
        mask=random_mask(sparsity=parts.sparsity, sensitive_count=sensitive, seed=parts.seed),
        quantizer=Quantizer(method="lut" if parts.form == "lut" else "uniform", bits=BITS, group_size=parts.group_size),
        tensors=parts.quantized,
        dense_parameters=parts.dense,
        parameter_counts=ParameterCounts(
            total=quantized + dense, quantized=quantized, sensitive=sensitive, dense=dense
        ),
        memory=MemoryEstimates(
            weights_bytes=sum(layer.size for layer in layers),
            workspace_bytes=2 * max(entry.element_count for entry in parts.quantized),
        ),
    )
