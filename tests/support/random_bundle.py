"""Random bundles of every served family and storage form, each beside a plain transformers model of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tiny_bundle import byte_tokenizer_json
from tiny_checkpoint import CONFIGS

from shared.architecture import FAMILIES
from shared.bundle.config import (
    BundleConfig,
    DenseEntry,
    MaskProvenance,
    MemoryEstimates,
    ParameterCounts,
    QuantizedEntry,
    Quantizer,
    SourceModel,
    TokenizerSettings,
)
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import JSON_MEDIA_TYPE, SENSITIVE_TITLE, TOKENIZER_TITLE, TRUNK_TITLE, block_title
from shared.bundle.read import Bundle, read_bundle
from shared.bundle.write import add_document, add_manifest, add_tensors
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes, unpack_codes

SPECIAL_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = SHAPE | {
    "intermediate_size": 44, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"tie_word_embeddings": True},
    "mistral": LLAMA | {"tie_word_embeddings": False, "sliding_window": 6},
    "qwen2": LLAMA | {"tie_word_embeddings": True},
    "qwen3": LLAMA | {"tie_word_embeddings": False, "head_dim": 16},
    "opt": SHAPE
    | {"ffn_dim": 44, "word_embed_proj_dim": 32, "do_layer_norm_before": True, "tie_word_embeddings": True},
    **{
        family: {key: value for key, value in CONFIGS[family].items() if key not in SPECIAL_TOKENS}
        for family in (
            "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "granite", "olmo2", "smollm3", "stablelm"
        )
    },
}  # fmt: skip


class Case(NamedTuple):
    """A bundle, and the transformers model that holds its effective weights in float32."""

    bundle: Bundle
    reference: transformers.PreTrainedModel


def random_quantized(shape: tuple[int, int], form: str, bits: int, generator: torch.Generator) -> QuantizedTensor:
    """A random weight in one of the storage forms; group size 24 leaves a shorter last group in every tiny weight."""
    rows, columns = shape
    codes = pack_codes(torch.randint(0, 1 << bits, shape, generator=generator), bits)
    grouped = (rows, -(-columns // 24))

    def draw(*size: int, scale: float) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale).half()

    match form:
        case "per_row":
            return QuantizedTensor(codes, columns, bits, lut=draw(rows, 1 << bits, scale=0.1))
        case "shared":
            return QuantizedTensor(
                codes, columns, bits, lut=draw(1, 1 << bits, scale=1), scale=draw(*grouped, scale=0.1), group_size=24
            )
        case _:
            step = draw(*grouped, scale=0.2 / (1 << bits))
            return QuantizedTensor(codes, columns, bits, scale=step, bias=draw(*grouped, scale=0.1), group_size=24)


def make_case(
    root: Path,
    model_type: str,
    form: str = "per_row",
    *,
    bits: int = 4,
    sensitive: int = 6,
    masked_code: int | None = None,
    vocabulary: int = 259,
    embedding_bits: int = 16,
    tokenizer_json: str | None = None,
    **changes: Any,
) -> Case:
    """Publish a random bundle and build its reference with plain transformers and the codec's reference decoder.

    ``masked_code`` overwrites the codes at masked positions, which must not matter; ``embedding_bits`` below 16 make
    uniform codes of the token embedding and the head; ``tokenizer_json`` takes the byte tokenizer's place; ``changes``
    go to the architecture.
    """
    generator = torch.Generator().manual_seed(3)
    family = FAMILIES[model_type]
    fields = ARCHITECTURES[model_type] | {"model_type": model_type, "architectures": [family.architecture]}
    fields |= {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3} | changes
    model_class = getattr(transformers, family.architecture)
    settings = {key: value for key, value in fields.items() if key not in ("model_type", "architectures")}
    reference = model_class(transformers.AutoConfig.for_model(model_type, **settings)).eval()
    layout = ImageLayout.create(root)
    files: dict[str, dict[str, np.ndarray]] = {TRUNK_TITLE: {}}
    masks: dict[str, np.ndarray] = {}
    entries, dense = [], []
    ends = [reference.get_input_embeddings().weight, reference.get_output_embeddings().weight]
    for name, parameter in reference.named_parameters():
        title = title_of(name, family.decoder_blocks)
        tensors = files.setdefault(title, {})
        if embedding_bits < 16 and any(parameter is end for end in ends):
            table = random_quantized((parameter.shape[0], parameter.shape[1]), "uniform", embedding_bits, generator)
            parameter.data.copy_(dequantize(table))
            tensors.update({f"{name}.{part}": tensor.numpy() for part, tensor in table.parts.items()})
            entries.append(_entry(name, table.shape, title, "uniform", embedding_bits, 0))
            continue
        if title == TRUNK_TITLE or parameter.dim() != 2:
            values = (torch.randn(parameter.shape, generator=generator) * 0.1 + float(parameter.dim() == 1)).half()
            tensors[name] = values.numpy()
            parameter.data.copy_(values)
            dense.append(DenseEntry(name=name, shape=list(values.shape), blob=title))
            continue
        is_transposed = family.stores_transposed  # by transformers' network; a bundle's are (out, in)
        shape = (parameter.shape[-1], parameter.shape[0]) if is_transposed else (parameter.shape[0], parameter.shape[1])
        quantized = random_quantized(shape, form, bits, generator)
        order = torch.randperm(parameter.numel(), generator=generator)[:sensitive]
        indices, values = order.sort().values, (torch.randn(sensitive, generator=generator) * 0.1).half()
        weight = dequantize(quantized)
        weight.view(-1)[indices] = values.float()
        parameter.data.copy_(weight.T if is_transposed else weight)
        if masked_code is not None:
            quantized = _with_codes(quantized, indices, masked_code)
        tensors.update({f"{name}.{part}": tensor.numpy() for part, tensor in quantized.parts.items()})
        if sensitive:
            masks[f"{name}.indices"] = indices.int().numpy()
            masks[f"{name}.rank"] = order.argsort().int().numpy()
            masks[f"{name}.values"] = values.numpy()
        entries.append(_entry(name, shape, title, form, bits, sensitive))
    layers = [add_tensors(layout, title, tensors) for title, tensors in files.items()]
    layers.append(add_tensors(layout, SENSITIVE_TITLE, masks))
    layers.append(
        add_document(layout, TOKENIZER_TITLE, (tokenizer_json or byte_tokenizer_json()).encode(), JSON_MEDIA_TYPE)
    )
    manifest = add_manifest(layout, _config(fields, entries, dense, bits), layers)
    return Case(read_bundle(layout, manifest.digest), reference)


def title_of(name: str, decoder_blocks: str) -> str:
    """Return the file in which a parameter lies."""
    prefix = decoder_blocks + "."
    return block_title(int(name.removeprefix(prefix).split(".")[0])) if name.startswith(prefix) else TRUNK_TITLE


def _with_codes(quantized: QuantizedTensor, indices: torch.Tensor, code: int) -> QuantizedTensor:
    codes = unpack_codes(quantized.codes, quantized.bits, quantized.in_features)
    codes.view(-1)[indices] = code
    parts = quantized.parts | {"codes": pack_codes(codes, quantized.bits)}
    return QuantizedTensor(
        in_features=quantized.in_features, bits=quantized.bits, group_size=quantized.group_size, **parts
    )


def _entry(name: str, shape: tuple[int, int], blob: str, form: str, bits: int, sensitive: int) -> QuantizedEntry:
    return QuantizedEntry(
        name=name,
        shape=shape,
        blob=blob,
        bits=bits,
        codebook=form if form != "uniform" else "none",
        group_size=None if form == "per_row" else 24,
        has_bias=form == "uniform",
        sensitive_count=sensitive,
        relative_error=0,
        weighted_relative_error=0,
    )


def _config(fields: dict[str, Any], entries: list[QuantizedEntry], dense: list[DenseEntry], bits: int) -> BundleConfig:
    count = sum(entry.sensitive_count for entry in entries)
    return BundleConfig(
        producer="tests",
        source=SourceModel(id="tests/random"),
        architecture=fields,
        tokenizer=TokenizerSettings(
            prepend_bos=True, bos_token_id=256, eos_token_ids=[257], pad_token_id=258, context_length=64
        ),
        mask=random_mask(sparsity=0.01, sensitive_count=count, seed=0),
        quantizer=Quantizer(method="random", bits=bits),
        tensors=entries,
        dense_parameters=dense,
        parameter_counts=ParameterCounts(total=0, quantized=0, sensitive=count, dense=0),
        memory=MemoryEstimates(weights_bytes=0, workspace_bytes=0),
    )


def random_mask(*, sparsity: float, sensitive_count: int, seed: int) -> MaskProvenance:
    """Return what is said of positions that were drawn."""
    return MaskProvenance(
        source="random",
        scope="per_tensor",
        sparsity=sparsity,
        sensitive_count=sensitive_count,
        calibration_text="none",
        calibration_sequences=0,
        calibration_tokens_per_sequence=0,
        calibration_seed=seed,
        calibration_digest="sha256:" + "0" * 64,
    )
