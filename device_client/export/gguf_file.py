"""Writes a GGUF file, which llama.cpp and what is built on it load, with the ``gguf`` package (the extra ``export``).

    f16     weights in float16, vectors in float32
    q8_0    weights in 8 bits with a scale for each 32 of a row; rows of another length stay in float16

Weights come decoded and tuned, row by row. Costs one weight in the format of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from device_client.export.gguf_family import (
    GgufFamily,
    frequency_factors,
    gguf_family,
    heads_to_interleave,
    interleaved,
    rotary_positions,
    usable_context,
)
from device_client.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from device_client.export.subject import Subject
from device_client.export.weights import DecodedWeights
from shared.bundle.config import BundleConfig
from shared.bundle.manifest import TOKENIZER_TITLE
from shared.errors import UnsupportedModel, ZoError
from shared.model_dimensions import dimensions_of

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

OUTTYPES = ("f16", "q8_0")
FREQUENCIES = "rope_freqs.weight"
_BLOCK = 32
_HEADER_BYTES_PER_TOKEN = 64


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of the file."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    kind: str
    heads: int
    offset: float

    @property
    def size(self) -> int:
        count = prod(self.shape)
        return {"F32": 4 * count, "F16": 2 * count, "Q8_0": count + 2 * (count // _BLOCK)}[self.kind]


class GgufFile:
    """One export, ready to be written.

    Args:
        subject: What is exported.
        outtype: One of ``OUTTYPES``.

    Raises:
        ZoError: The package is not installed.
        UnsupportedModel: The family or the tokenizer is not one that llama.cpp was compared on.
    """

    def __init__(self, subject: Subject, outtype: str) -> None:
        _require_package()
        self._subject, self._outtype = subject, outtype
        self._config = subject.bundle.config
        self._family = gguf_family(self._config)
        self._dimensions = dimensions_of(self._config.architecture)
        self._positions = rotary_positions(self._config)
        tokenizer_json = subject.bundle.path(TOKENIZER_TITLE).read_text(encoding="utf-8")
        self._vocabulary = gguf_vocabulary(tokenizer_json, self._dimensions.vocabulary)
        self._weights = DecodedWeights(subject)
        self._tensors = self._named_tensors()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self._tensors)

    @property
    def size_bytes(self) -> int:
        """About what the file takes."""
        return self.weight_bytes + _HEADER_BYTES_PER_TOKEN * self._dimensions.vocabulary

    @property
    def context_length(self) -> int:
        """Positions over which llama.cpp computes what the model does."""
        return usable_context(self._config, self._family)

    def write(self, path: Path, advance: Callable[[float], None]) -> None:
        """Write the file.

        Args:
            path: A new one.
            advance: Receives the bytes of each tensor that was written.

        Raises:
            UnsupportedModel: A weight is not finite in the chosen format.
        """
        from gguf import GGUFWriter

        writer = GGUFWriter(path, self._family.architecture)
        try:
            self._describe(writer)
            _describe_vocabulary(writer, self._vocabulary, self._config)
            factors = frequency_factors(self._positions, self._dimensions.head_width)
            if factors is not None:
                writer.add_tensor_info(FREQUENCIES, factors.shape, np.dtype(np.float32), 4 * len(factors), _kind("F32"))
            for tensor in self._tensors:
                writer.add_tensor_info(tensor.name, tensor.shape, _dtype(tensor), tensor.size, _kind(tensor.kind))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors.numpy())
            for tensor in self._tensors:
                writer.write_tensor_data(self._content(tensor))
                advance(tensor.size)
        finally:
            writer.close()

    def _named_tensors(self) -> list[_Stored]:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self._family.architecture)
        names = get_tensor_name_map(MODEL_ARCH(arch), self._dimensions.blocks)
        found = []
        for parameter, shape in self._weights.shapes.items():
            name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UnsupportedModel(
                    f"{parameter} has no name in GGUF files of {self._family.architecture}",
                    needed="a model whose every weight llama.cpp knows",
                    next_step="export it with --to hf",
                )
            is_norm = parameter.endswith("norm.weight")
            found.append(
                _Stored(
                    name,
                    parameter,
                    shape,
                    self._kind_of(shape),
                    heads_to_interleave(self._family, parameter, self._dimensions),
                    self._family.norm_offset if is_norm else 0.0,
                )
            )
        return found

    def _kind_of(self, shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "F32"
        return "Q8_0" if self._outtype == "q8_0" and shape[-1] % _BLOCK == 0 else "F16"

    def _content(self, tensor: _Stored) -> NDArray[Any]:
        """Return a tensor as the file has it; only interleaving needs all of it at once in float32."""
        if tensor.heads:
            return _encoded(interleaved(self._weights.whole(tensor.parameter), tensor.heads), tensor)
        return np.concatenate([_encoded(piece, tensor) for piece in self._weights.pieces(tensor.parameter)])

    def _describe(self, writer: GGUFWriter) -> None:
        from gguf import GGUFType, LlamaFileType, RopeScalingType

        config, shape, rotary = self._config, self._dimensions, self._positions
        writer.add_type(GGUFType.MODEL)
        writer.add_name(self._subject.name)
        writer.add_description(f"exported by zo-device from bundle {self._subject.bundle.digest}")
        if config.source.license:
            writer.add_license(config.source.license)
        writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if self._outtype == "q8_0" else LlamaFileType.MOSTLY_F16)
        writer.add_quantization_version(2)
        writer.add_context_length(self.context_length)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.blocks)
        writer.add_feed_forward_length(shape.intermediate)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.key_heads)
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
        writer.add_layer_norm_rms_eps(float(config.architecture.get("rms_norm_eps", 1e-6)))
        writer.add_vocab_size(shape.vocabulary)
        writer.add_rope_dimension_count(shape.head_width)
        writer.add_rope_freq_base(rotary.base)
        if rotary.kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(RopeScalingType(rotary.kind))
            writer.add_rope_scaling_factor(float(rotary.fields["factor"]))
        if rotary.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(int(rotary.fields["original_max_position_embeddings"]))
        _describe_gemma(writer, config, self._family)


def _describe_gemma(writer: GGUFWriter, config: BundleConfig, family: GgufFamily) -> None:
    architecture = config.architecture
    if not family.has_windows:
        return
    if window := architecture.get("sliding_window"):
        writer.add_sliding_window(int(window))
    if cap := architecture.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(cap))
    if cap := architecture.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(cap))


def _describe_vocabulary(writer: GGUFWriter, vocabulary: GgufVocabulary, config: BundleConfig) -> None:
    settings = config.tokenizer
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.has_space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.unknown_id is not None:
        writer.add_unk_token_id(vocabulary.unknown_id)
    if settings.bos_token_id is not None:
        writer.add_bos_token_id(settings.bos_token_id)
    for number, add in enumerate((writer.add_eos_token_id, writer.add_eot_token_id)):
        if number < len(settings.eos_token_ids):
            add(settings.eos_token_ids[number])
    if settings.pad_token_id is not None:
        writer.add_pad_token_id(settings.pad_token_id)
    writer.add_add_bos_token(settings.prepend_bos)
    writer.add_add_eos_token(value=False)
    if settings.chat_template is not None:
        writer.add_chat_template(settings.chat_template)


def _encoded(rows: Tensor, tensor: _Stored) -> NDArray[Any]:
    values = rows.numpy() + np.float32(tensor.offset) if tensor.offset else rows.numpy()
    if tensor.kind == "F32":
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnsupportedModel(
            f"{tensor.parameter} holds {np.abs(values).max():g}",
            needed="weights within ±65504, the range of float16",
            next_step="export it with --to hf --dtype bfloat16",
        )
    if tensor.kind == "F16":
        return half
    from gguf import quantize

    encoded: NDArray[Any] = quantize(values, _kind(tensor.kind))
    return encoded


def _dtype(tensor: _Stored) -> np.dtype[Any]:
    # Without uint8, which would say that the shape is one of bytes.
    return np.dtype(np.float32 if tensor.kind == "F32" else np.float16)


def _kind(name: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[name]


def _require_package() -> None:
    if find_spec("gguf") is None:
        raise ZoError(
            "GGUF files are written by the package gguf, which is not installed",
            needed="the extra 'export'",
            next_step="pip install 'zo-device[device,export]'",
        )
