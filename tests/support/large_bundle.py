"""A signed bundle in the shape of a model of 0.8 billion weights, whose codes are random: 18 blocks of 22 MiB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from simulated_server import sign_reference
from tiny_bundle import make_tiny_bundle

from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    SENSITIVE_TITLE,
    TRUNK_TITLE,
    Manifest,
    block_title,
    parse_manifest,
)
from shared.bundle.read import read_config
from shared.bundle.write import add_manifest, add_tensors

BLOCKS, HIDDEN, MIDDLE, KEYS, VOCABULARY = 18, 2048, 5632, 256, 4000
CHUNK_BYTES = 16 * 1024 * 1024
NAME = "bench"


def publish_large_bundle(root: Path) -> tuple[ImageLayout, Manifest]:
    """Publish the tiny bundle with blocks of another size, whose codes are random bytes."""
    tiny = make_tiny_bundle(root)
    layout = tiny.layout
    config = read_config(layout, parse_manifest(layout.read_blob(tiny.digest, max_bytes=MAX_MANIFEST_BYTES)))
    layers_before = parse_manifest(layout.read_blob(tiny.digest, max_bytes=MAX_MANIFEST_BYTES)).layers
    generator = np.random.Generator(np.random.Philox(0))
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
        "mlp.down_proj": (HIDDEN, MIDDLE),
    }  # fmt: skip
    layers, entries, dense, sensitive = [], [], [], {}
    count = 8
    for block in range(BLOCKS):
        parts = {}
        for linear, shape in shapes.items():
            name = f"model.layers.{block}.{linear}.weight"
            parts[f"{name}.codes"] = generator.integers(0, 256, (shape[0], shape[1] // 2), np.uint8)
            parts[f"{name}.lut"] = generator.standard_normal((shape[0], 16), np.float32).astype(np.float16)
            sensitive[f"{name}.indices"] = np.arange(count, dtype=np.int32)
            sensitive[f"{name}.rank"] = np.arange(count, dtype=np.int32)
            sensitive[f"{name}.values"] = np.ones(count, np.float16)
            entries.append(
                QuantizedEntry(
                    name=name, shape=shape, blob=block_title(block), bits=4, codebook="per_row", sensitive_count=count,
                    relative_error=0, weighted_relative_error=0,
                )
            )  # fmt: skip
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{block}.{norm}.weight"
            parts[name] = np.ones(HIDDEN, np.float16)
            dense.append(DenseEntry(name=name, shape=[HIDDEN], blob=block_title(block)))
        layers.append(add_tensors(layout, block_title(block), parts))
    trunk = {
        "model.embed_tokens.weight": generator.standard_normal((VOCABULARY, HIDDEN), np.float32).astype(np.float16),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    dense += [DenseEntry(name=name, shape=list(tensor.shape), blob=TRUNK_TITLE) for name, tensor in trunk.items()]
    layers += [add_tensors(layout, TRUNK_TITLE, trunk), add_tensors(layout, SENSITIVE_TITLE, sensitive)]
    layers += [layer for layer in layers_before if layer.title == "tokenizer.json"]
    changes = {"tensors": entries, "dense_parameters": dense, "chunk_bytes": CHUNK_BYTES, "chunks": {}}
    layout.tag(f"{NAME}:latest", add_manifest(layout, config.model_copy(update=changes), layers))
    sign_reference(layout, f"{NAME}:latest")
    data = layout.read_blob(layout.resolve(f"{NAME}:latest").digest, max_bytes=MAX_MANIFEST_BYTES)
    return layout, parse_manifest(data)
