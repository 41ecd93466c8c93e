"""The two JSON documents of a bundle: the OCI-shaped manifest and our configuration.

The manifest lists blobs by digest; the configuration says what the tensors inside them mean. Both are frozen pydantic
models: unknown fields are refused, so that a reader never ignores what it does not understand. Neither document holds
a time or a machine, so the same input gives the same bytes. Knows nothing about files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.bundle.digest import CHUNK_BYTES, Digest, check_digest
from shared.errors import (
    IntegrityError,
    InvalidBundleConfig,
    InvalidDigest,
    InvalidManifest,
    LimitExceeded,
    UpgradeNeeded,
)
from shared.field_errors import first_fault

FORMAT_MAJOR = 1
FORMAT_VERSION = "1.0"
"""Of a bundle that any reader of format 1 opens."""
FIRST_CLIENT = "0.1.0"
EXTENDED_VERSION = "1.2"
"""Of a bundle with quantised embeddings or head, of a later family, or whose source was dequantised."""
EXTENDED_CLIENT = "0.2.0"
"""The first client that opens such a bundle."""
_FIRST_FAMILIES = frozenset({"llama", "mistral", "opt", "qwen2", "qwen3"})
"""What clients before that serve."""
MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.zo-device.bundle.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.zo-device.bundle.config.v1+json"
TENSORS_MEDIA_TYPE = "application/vnd.zo-device.tensors.v1+safetensors"
JSON_MEDIA_TYPE = "application/json"
TEXT_MEDIA_TYPE = "text/markdown"
TITLE_ANNOTATION = "org.opencontainers.image.title"

TRUNK_TITLE = "trunk.safetensors"
SENSITIVE_TITLE = "sensitive.safetensors"
TOKENIZER_TITLE = "tokenizer.json"
REPORT_TITLE = "report.json"

SENSITIVE_PARTS = {"indices": "I32", "rank": "I32", "values": "F16"}
"""What is stored of one weight's sensitive values: part → safetensors dtype."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_CONFIG_BYTES = 64 * 1024 * 1024
MAX_TENSORS = 100_000

_TITLE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_TENSOR_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.]{0,255}$"
_CLIENT_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_ARTIFACT_MAJOR = re.compile(r"application/vnd\.zo-device\.bundle\.v(\d+)\+json")

DocumentType = TypeVar("DocumentType", bound=BaseModel)
Title = Annotated[str, Field(pattern=_TITLE)]
TensorName = Annotated[str, Field(pattern=_TENSOR_NAME)]
Dimension = Annotated[int, Field(ge=1, lt=2**31)]


def block_title(index: int) -> str:
    """Return the title of decoder block ``index``."""
    return f"block-{index:05d}.safetensors"


class Document(BaseModel):
    """Base of both documents: strict, frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: keys sorted, no spaces, UTF-8, absent optional fields left out."""
        fields = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Descriptor(Document):
    """A blob: what it is, its digest, its length in bytes."""

    media_type: Annotated[str, Field(alias="mediaType", max_length=255)]
    digest: Digest
    size: Annotated[int, Field(ge=0, lt=2**53)]
    annotations: dict[str, str] | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    @property
    def title(self) -> str:
        """The file name inside the bundle."""
        return (self.annotations or {}).get(TITLE_ANNOTATION, "")


class Manifest(Document):
    """An OCI image manifest (v1.1) whose artifact type is ours; only one beside a bundle has the bundle as subject."""

    schema_version: Annotated[Literal[2], Field(alias="schemaVersion")] = 2
    media_type: Annotated[Literal["application/vnd.oci.image.manifest.v1+json"], Field(alias="mediaType")] = (
        "application/vnd.oci.image.manifest.v1+json"
    )
    artifact_type: Annotated[str, Field(alias="artifactType")] = ARTIFACT_TYPE
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(min_length=1, max_length=10_000)]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    @model_validator(mode="after")
    def _titles_are_safe_and_unique(self) -> Manifest:
        titles = [layer.title for layer in self.layers]
        for title in titles:
            if not re.fullmatch(_TITLE, title):
                raise ValueError(f"layer title {title!r} is no plain file name")
        if len(set(titles)) != len(titles):
            raise ValueError("two layers have the same title")
        return self

    def layer(self, title: str) -> Descriptor | None:
        """Return the layer of that title, or None."""
        return next((layer for layer in self.layers if layer.title == title), None)

    @property
    def blobs(self) -> list[Descriptor]:
        """Every distinct blob: configuration first, then the layers in order."""
        return list({blob.digest: blob for blob in [self.config, *self.layers]}.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all distinct blobs."""
        return sum(blob.size for blob in self.blobs)


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
    eos_token_ids: list[int] = []
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
    quality: dict[str, float] = {}
    chunk_bytes: Annotated[int, Field(ge=4096, lt=2**31)] = CHUNK_BYTES
    chunks: dict[str, list[str]] = {}

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


def parse_manifest(data: bytes) -> Manifest:
    """Return the validated manifest of a bundle.

    Raises:
        LimitExceeded: It is longer than 4 MiB.
        UpgradeNeeded: It is of a newer major version.
        InvalidManifest: Anything else is wrong with it.
    """
    fields = _parse_json(data, MAX_MANIFEST_BYTES, "manifest", InvalidManifest)
    artifact_type = str(fields.get("artifactType"))
    match = _ARTIFACT_MAJOR.fullmatch(artifact_type)
    if match is None:
        raise InvalidManifest(f"artifactType {artifact_type[:80]!r}", needed=ARTIFACT_TYPE)
    if int(match[1]) > FORMAT_MAJOR:
        raise _upgrade(f"a bundle of format {match[1]}")
    manifest = _validate(Manifest, data, "manifest", InvalidManifest)
    if manifest.subject is not None:
        raise InvalidManifest("manifest: a bundle with a subject", needed="see shared/bundle/FORMAT.md")
    return manifest


def parse_artifact(data: bytes) -> Manifest:
    """Return the validated manifest of an artifact of any type: a bundle of any version, or a signature.

    Raises:
        LimitExceeded: It is longer than 4 MiB.
        InvalidManifest: Anything else is wrong with it.
    """
    return parse_document(Manifest, data, limit=MAX_MANIFEST_BYTES, what="manifest", error=InvalidManifest)


def parse_document(
    model: type[DocumentType], data: bytes, *, limit: int, what: str, error: type[IntegrityError]
) -> DocumentType:
    """Return a validated JSON document in which no key occurs twice.

    Args:
        model: Its form.
        data: Its bytes.
        limit: The most bytes it may have.
        what: Its name in messages.
        error: What to raise where it has another form.

    Raises:
        LimitExceeded: It is longer than ``limit``.
        IntegrityError: Anything else is wrong with it; the class is ``error``.
    """
    _parse_json(data, limit, what, error)
    return _validate(model, data, what, error)


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
    fields = _parse_json(data, MAX_CONFIG_BYTES, "bundle configuration", InvalidBundleConfig)
    major = str(fields.get("format_version", "")).partition(".")[0]
    if major.isdigit() and len(major) <= 4 and int(major) > FORMAT_MAJOR:
        raise _upgrade(f"a bundle of format {fields['format_version']}")
    needed = _CLIENT_VERSION.fullmatch(str(fields.get("minimum_client_version")))
    if client_version is not None and needed and tuple(int(part) for part in needed.groups()) > client_version:
        raise _upgrade(f"a bundle that needs zo-device {needed[0]}")
    return _validate(BundleConfig, data, "bundle configuration", InvalidBundleConfig)


def _upgrade(found: str) -> UpgradeNeeded:
    return UpgradeNeeded(
        found,
        needed=f"a bundle of format {FORMAT_MAJOR}.x, or a newer zo-device",
        next_step="upgrade zo-device: pip install --upgrade 'zo-device[device]'",
    )


def _parse_json(data: bytes, limit: int, what: str, error: type[IntegrityError]) -> dict[str, Any]:
    if len(data) > limit:
        raise LimitExceeded(f"{what} of {len(data)} bytes", needed=f"at most {limit} bytes")
    try:
        fields = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as problem:
        raise error(f"{what}: {problem}", needed="a JSON object") from problem
    if not isinstance(fields, dict):
        raise error(f"{what}: {type(fields).__name__}", needed="a JSON object")
    return fields


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _validate(model: type[DocumentType], data: bytes, what: str, error: type[IntegrityError]) -> DocumentType:
    try:
        return model.model_validate_json(data)
    except ValidationError as problem:
        fault = first_fault(problem)
        found = fault.found_in(fault.field or "document")
        raise error(f"{what}: {found}", needed=f"{fault.needed}; see shared/bundle/FORMAT.md") from problem
