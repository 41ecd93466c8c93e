"""``zo-device inspect``: what a bundle is made of, where it comes from and how good it is."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.console import Console
from device_client.settings import Settings
from device_client.store import resolve_reference
from shared.bundle.config import BundleConfig
from shared.bundle.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from shared.bundle.read import read_config
from shared.byte_sizes import format_bytes

NAME = "inspect"
HELP = "show a bundle's model, sizes, mask, quantiser and quality"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle and how much to show."""
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="name:tag; may be left out if there is only one")
    parser.add_argument("--tensors", action="store_true", help="show every quantised weight")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Show and return the description; reads the two documents only, so it is fast and verifies no blob."""
    layout = settings.store
    reference, named = resolve_reference(layout, arguments.bundle)
    manifest = parse_manifest(layout.read_blob(named.digest, max_bytes=MAX_MANIFEST_BYTES))
    config = read_config(layout, manifest)
    console.table(reference, ("", ""), _summary(named.digest, manifest, config))
    console.table(
        "Blobs",
        ("File", "Size", "Digest"),
        [(blob.title, format_bytes(blob.size), blob.digest[:19]) for blob in manifest.layers],
    )
    if arguments.tensors:
        console.table(
            "Quantised weights",
            ("Weight", "Shape", "Bits", "Sensitive", "Relative error", "Weighted"),
            [
                (entry.name, f"{entry.shape[0]} × {entry.shape[1]}", entry.bits, entry.sensitive_count,
                 f"{entry.relative_error:.2e}", f"{entry.weighted_relative_error:.2e}")
                for entry in config.tensors
            ],
        )  # fmt: skip
    return _as_object(reference, named.digest, manifest, config, has_tensors=arguments.tensors)


def _summary(digest: str, manifest: Manifest, config: BundleConfig) -> list[tuple[str, str]]:
    counts, mask, quantizer = config.parameter_counts, config.mask, config.quantizer
    group = f", groups of {quantizer.group_size}" if quantizer.group_size else ""
    compensation = f", errors compensated by {quantizer.compensation}" if quantizer.compensation else ""
    rows = [
        ("digest", digest),
        ("model", f"{config.source.id} {config.source.revision or ''}".strip()),
        ("licence", config.source.license or "not recorded"),
        ("family", f"{config.architecture.get('model_type')}{' (untested)' if config.is_untested_family else ''}"),
        ("size", f"{format_bytes(manifest.size_bytes)} in {len(manifest.blobs)} blobs"),
        ("parameters", f"{counts.total:,}: {counts.quantized:,} quantised, {counts.dense:,} in 16 bits"),
        ("sensitive values", f"{mask.sensitive_count:,} ({mask.sparsity:.3%}), {mask.source}, {mask.scope}"),
        ("calibration", f"{mask.calibration_text}: {mask.calibration_sequences} × "
                        f"{mask.calibration_tokens_per_sequence} tokens, seed {mask.calibration_seed}"),
        ("split-half overlap", _share(mask.split_half_overlap)),
        ("gradient mass", _share(mask.gradient_mass)),
        ("quantiser", f"{quantizer.method}, {quantizer.bits} bits{group}{compensation}"),
        ("embedding and head", _embedding_bits(config)),
        ("memory for weights", format_bytes(config.memory.weights_bytes + config.memory.workspace_bytes)),
        ("context", f"{config.tokenizer.context_length} tokens"),
    ]  # fmt: skip
    return rows + [(name.replace("_", " "), f"{value:.4g}") for name, value in sorted(config.quality.items())]


def _embedding_bits(config: BundleConfig) -> str:
    return f"{config.embedding_tensors[0].bits if config.embedding_tensors else 16} bits"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _as_object(
    reference: str, digest: str, manifest: Manifest, config: BundleConfig, *, has_tensors: bool
) -> dict[str, Any]:
    fields = config.model_dump(mode="json", exclude={"chunks", "tensors", "dense_parameters"})
    if has_tensors:
        fields["tensors"] = [entry.model_dump(mode="json") for entry in config.tensors]
    return {
        "reference": reference,
        "digest": digest,
        "size_bytes": manifest.size_bytes,
        "blobs": [{"title": blob.title, "size_bytes": blob.size, "digest": blob.digest} for blob in manifest.layers],
        **fields,
    }
