"""The configuration of a bundle: what the tensors inside its blobs mean, and where they come from.

Holds neither a time nor a machine, so the same input gives the same bytes. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from shared.bundle.digest import CHUNK_BYTES, Digest, check_digest
from shared.bundle.documents import FORMAT_MAJOR, Document, newer_format, parse_json, validated
from shared.bundle.manifest import SENSITIVE_TITLE, TRUNK_TITLE, Title
from shared.errors import InvalidBundleConfig, InvalidDigest

FORMAT_VERSION = "1.0"
"""Of a bundle that any reader of format 1 opens."""
FIRST_CLIENT = "0.1.0"
EXTENDED_VERSION = "1.2"
"""Of a bundle with quantised embeddings or head, of a later family, or whose source was dequantised."""
EXTENDED_CLIENT = "0.2.0"
"""The first client that opens such a bundle."""
_FIRST_FAMILIES = frozenset({"llama", "mistral", "opt", "qwen2", "qwen3"})
"""What clients before that serve."""

SENSITIVE_PARTS = {"indices": "I32", "rank": "I32", "values": "F16"}
"""What is stored of one weight's sensitive values: part → safetensors dtype."""

MAX_CONFIG_BYTES = 64 * 1024 * 1024
MAX_TENSORS = 100_000
_TENSOR_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.]{0,255}$"
_CLIENT_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
TensorName = Annotated[str, Field(pattern=_TENSOR_NAME)]
Dimension = Annotated[int, Field(ge=1, lt=2**31)]


class DequantizedFile(Document):
    """A quantised file that stands in for 16-bit weights: what the bundle is compared with is its dequantised form.

    Attributes:
        file: Name of the file.
        digest: ``sha256:…`` of its bytes.
        tensor_types: How its tensors are stored, for example ``Q4_1`` → how many.
    """

    file: Annotated[str, Field(max_length=255)]
    digest: Digest
    tensor_types: Annotated[dict[str, int], Field(min_length=1, max_length=64)]

    @property
    def types_line(self) -> str:
        """The types in one line, for example ``Q4_1 (210 tensors), F32 (61)``."""
        counts = sorted(self.tensor_types.items(), key=lambda item: -item[1])
        first, *rest = [f"{name} ({count}{{}})" for name, count in counts]
        return ", ".join([first.format(" tensors"), *(each.format("") for each in rest)])


class SourceModel(Document):
    """Where the weights come from.

    Attributes:
        id: Hub id, or the base name of a local model.
        revision: Commit on the hub.
        license: Licence that the model states.
        dequantized_from: The file that the 16-bit weights were dequantised from; None where they are the model's own.
    """

    id: str
    revision: str | None = None
    license: str | None = None
    dequantized_from: DequantizedFile | None = None


class TokenizerSettings(Document):
    """What a client must know besides tokenizer.json.

    Attributes:
        prepend_bos: Whether every text starts with ``bos_token_id`` (tokenizer.json itself adds no special token).
        eos_token_ids: Tokens that end a text or a turn; the first is the tokenizer's own, which answers are learnt with
            and chat templates know as ``eos_token``.
        context_length: Positions that the model was made for.
    """

    prepend_bos: bool
    bos_token_id: int | None = None
    eos_token_ids: list[int] = Field(default_factory=list)
    pad_token_id: int | None = None
    context_length: Annotated[int, Field(ge=1)]
    chat_template: Annotated[str, Field(max_length=100_000)] | None = None


class QuantizedEntry(Document):
    """One quantised weight and how it is encoded; see ``shared.quantization.codec`` for the formula.

    Attributes:
        name: Parameter name in the model; its parts are stored as ``<name>.codes``, ``.lut``, ``.scale``, ``.bias``.
        shape: (out_features, in_features).
        blob: Title of the layer that holds the parts.
        codebook: ``per_row``, ``shared`` or ``none`` (uniform).
        group_size: Columns per group; None where there is neither scale nor bias.
        has_bias: Whether groups have a bias besides their scale.
        sensitive_count: k, the number of masked weights; 0 stores none.
        relative_error: ‖W − Q‖² / ‖W‖² over the unmasked weights.
        weighted_relative_error: Σ F (W − Q)² / Σ F W² over the unmasked weights.
    """

    name: TensorName
    shape: tuple[Dimension, Dimension]
    blob: Title
    bits: Literal[2, 3, 4, 8]
    codebook: Literal["per_row", "shared", "none"]
    group_size: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    has_bias: bool = False
    sensitive_count: Annotated[int, Field(ge=0)]
    relative_error: Annotated[float, Field(ge=0)]
    weighted_relative_error: Annotated[float, Field(ge=0)]

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_consistent(self) -> QuantizedEntry:
        if self.element_count >= 2**31:
            raise ValueError(f"{self.name}: {self.element_count} elements do not fit int32 indices")
        if self.sensitive_count > self.element_count:
            raise ValueError(f"{self.name}: {self.sensitive_count} sensitive weights of {self.element_count}")
        if self.codebook == "none" and self.group_size is None:
            raise ValueError(f"{self.name}: neither a codebook nor group scales")
        if self.has_bias and self.group_size is None:
            raise ValueError(f"{self.name}: a bias needs a group size")
        return self

    @property
    def element_count(self) -> int:
        """out_features · in_features."""
        return self.shape[0] * self.shape[1]

    @property
    def part_shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The stored parts: name → (safetensors dtype, shape)."""
        rows, columns = self.shape
        parts: dict[str, tuple[str, tuple[int, ...]]] = {"codes": ("U8", (rows, -(-columns * self.bits // 8)))}
        if self.codebook != "none":
            parts["lut"] = ("F16", (rows if self.codebook == "per_row" else 1, 1 << self.bits))
        if self.group_size is not None:
            grouped = ("F16", (rows, -(-columns // self.group_size)))
            parts["scale"] = grouped
            if self.has_bias:
                parts["bias"] = grouped
        return parts


class DenseEntry(Document):
    """One parameter kept in 16 bits: norms, biases, and the embeddings and the head where they are not quantised."""

    name: TensorName
    shape: list[Dimension]
    blob: Title


class MaskProvenance(Document):
    """How the sensitivity mask was chosen, and how good it is.

    Attributes:
        split_half_overlap: Share of the mask that two disjoint halves of the calibration agree on, 0 … 1.
        gradient_mass: Share of Σ F over the quantised weights that the mask covers, 0 … 1.
        calibration_digest: Digest of the calibration tokens (int32 little-endian, row-major).
    """

    source: Literal["fisher", "magnitude", "random"]
    scope: Literal["per_tensor", "global"]
    sparsity: float
    sensitive_count: int
    calibration_text: str
    calibration_sequences: int
    calibration_tokens_per_sequence: int
    calibration_seed: int
    calibration_digest: str
    split_half_overlap: float | None = None
    gradient_mass: float | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quantizer(Document):
    """The quantiser's settings.

    Attributes:
        compensation: How errors were made up for, such as ``gptq``; None where each weight was quantised by itself.
    """

    method: str
    bits: Literal[2, 3, 4, 8]
    group_size: int | None = None
    compensation: str | None = None


class ParameterCounts(Document):
    """Weights by kind."""

    total: int
    quantized: int
    sensitive: int
    dense: int


class MemoryEstimates(Document):
    """Bytes a client needs before activations.

    Attributes:
        weights_bytes: Codes, codebooks, scales, 16-bit parameters and sensitive values, as stored.
        workspace_bytes: The largest weight, dequantised to 16 bits.
    """

    weights_bytes: int
    workspace_bytes: int


class BundleConfig(Document):
    """Our configuration blob: what the tensors mean and where they come from.

    Attributes:
        architecture: The model's configuration, reduced by ``shared.architecture.safe_config``.
        untested_family: True where the model's family is not among the tested ones; left out otherwise.
        chunk_bytes: Length of the pieces of ``chunks``.
        chunks: For each blob longer than ``chunk_bytes``: its digest → the digests of its pieces.
        quality: Measured figures, for example ``perplexity_16bit`` and ``perplexity_bundle``.
    """

    format_version: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}$")] = FORMAT_VERSION
    minimum_client_version: Annotated[str, Field(pattern=f"^{_CLIENT_VERSION.pattern}$")] = FIRST_CLIENT
    producer: str
    source: SourceModel
    architecture: dict[str, Any]
    untested_family: Literal[True] | None = None
    tokenizer: TokenizerSettings
    mask: MaskProvenance
    quantizer: Quantizer
    tensors: Annotated[list[QuantizedEntry], Field(min_length=1, max_length=MAX_TENSORS)]
    dense_parameters: Annotated[list[DenseEntry], Field(max_length=MAX_TENSORS)]
    parameter_counts: ParameterCounts
    memory: MemoryEstimates
    quality: dict[str, float] = Field(default_factory=dict)
    chunk_bytes: Annotated[int, Field(ge=4096, lt=2**31)] = CHUNK_BYTES
    chunks: dict[str, list[str]] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _names_are_unique(self) -> BundleConfig:
        names = [entry.name for entry in self.tensors] + [entry.name for entry in self.dense_parameters]
        if len(set(names)) != len(names):
            raise ValueError("two parameters have the same name")
        try:
            for digest in [digest for blob, pieces in self.chunks.items() for digest in [blob, *pieces]]:
                check_digest(digest)
        except InvalidDigest as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _no_parameter_hides_a_part(self) -> BundleConfig:
        parts = {(entry.blob, f"{entry.name}.{part}") for entry in self.tensors for part in entry.part_shapes}
        parts |= {(SENSITIVE_TITLE, f"{entry.name}.{part}") for entry in self.tensors for part in SENSITIVE_PARTS}
        for dense in self.dense_parameters:
            if (dense.blob, dense.name) in parts:
                raise ValueError(f"{dense.name} is also the name of a quantised weight's part in {dense.blob}")
        return self

    @model_validator(mode="after")
    def _tensors_are_where_they_belong(self) -> BundleConfig:
        if not self.block_tensors:
            raise ValueError("no weight of a decoder block is quantised")
        for entry in self.embedding_tensors:
            if entry.sensitive_count:
                raise ValueError(f"{entry.name}: {entry.sensitive_count} sensitive weights in {TRUNK_TITLE}; needed 0")
        return self

    @property
    def block_tensors(self) -> list[QuantizedEntry]:
        """The quantised linear weights of the decoder blocks: those that sensitive values belong to."""
        return [entry for entry in self.tensors if entry.blob != TRUNK_TITLE]

    @property
    def embedding_tensors(self) -> list[QuantizedEntry]:
        """The quantised embedding and head, one entry where they are tied; none where they are kept in 16 bits."""
        return [entry for entry in self.tensors if entry.blob == TRUNK_TITLE]

    @property
    def is_untested_family(self) -> bool:
        """Whether the model was prepared although nobody tests its family."""
        return self.untested_family is True

    @property
    def sensitive_count(self) -> int:
        """k: the number of sensitive values over all tensors."""
        return sum(entry.sensitive_count for entry in self.tensors)


def needed_versions(
    tensors: Iterable[QuantizedEntry], source: SourceModel, architecture: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the ``format_version`` and the ``minimum_client_version`` of a bundle that holds these weights."""
    is_extended = (
        any(entry.blob == TRUNK_TITLE for entry in tensors)
        or source.dequantized_from is not None
        or architecture.get("model_type") not in _FIRST_FAMILIES
    )
    return (EXTENDED_VERSION, EXTENDED_CLIENT) if is_extended else (FORMAT_VERSION, FIRST_CLIENT)


def parse_config(data: bytes, *, client_version: tuple[int, int, int] | None = None) -> BundleConfig:
    """Return the validated configuration.

    Args:
        data: The blob.
        client_version: This reader's version; None skips the comparison with ``minimum_client_version``.

    Raises:
        LimitExceeded: It is longer than 64 MiB.
        UpgradeNeeded: It is of a newer major version, or asks for a newer client.
        InvalidBundleConfig: Anything else is wrong with it.
    """
    fields = parse_json(data, MAX_CONFIG_BYTES, "bundle configuration", InvalidBundleConfig)
    major = str(fields.get("format_version", "")).partition(".")[0]
    if major.isdigit() and len(major) <= 4 and int(major) > FORMAT_MAJOR:
        raise newer_format(f"a bundle of format {fields['format_version']}")
    needed = _CLIENT_VERSION.fullmatch(str(fields.get("minimum_client_version")))
    if client_version is not None and needed and tuple(int(part) for part in needed.groups()) > client_version:
        raise newer_format(f"a bundle that needs zo-device {needed[0]}")
    return validated(BundleConfig, data, "bundle configuration", InvalidBundleConfig)
