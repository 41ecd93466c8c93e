"""Embeddings and heads in codes: worked by hand, bounded by the step, stored beside untouched blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import pytest
import safetensors.torch
import torch
import transformers
from tiny_checkpoint import CONFIGS

from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import input_fingerprint
from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import PreparedBundle, prepare
from cloud_service.pipeline.quantizers.embeddings import quantize_embedding
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import EmbeddingBits, PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import TRUNK_TITLE
from shared.bundle.read import Bundle, read_bundle, read_config
from shared.errors import UpgradeNeeded
from shared.quantization.codec import QuantizedTensor, dequantize

MakeCheckpoint = Callable[..., Path]
Bits = Literal[8, 4]


def random_table(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(7)) * 0.1).half()


def test_eight_bits_span_each_rows_range_in_255_steps() -> None:
    table = torch.tensor([[-1.0, 2.984375, 0.0, 0.5], [3.0, 3.0, 3.0, 3.0]]).half()

    part = quantize_embedding(table, 8)

    assert part.weight.codes.tolist() == [[0, 255, 64, 96], [0, 0, 0, 0]]
    assert part.weight.scale is not None
    assert part.weight.bias is not None
    assert part.weight.scale[0].tolist() == [1 / 64]
    assert part.weight.bias.tolist() == [[-1.0], [3.0]]
    assert torch.equal(dequantize(part.weight), table.float())
    assert part.relative_error == 0


def test_four_bits_have_a_grid_for_every_32_columns() -> None:
    part = quantize_embedding(random_table(5, 72), 4)

    assert part.weight.codes.shape == (5, 36)
    assert part.weight.group_size == 32
    assert part.weight.scale is not None
    assert part.weight.scale.shape == (5, 3)


def test_no_number_is_off_by_more_than_half_a_step() -> None:
    table = random_table(300, 64)

    part = quantize_embedding(table, 8)

    assert part.weight.scale is not None
    assert bool(((dequantize(part.weight) - table.float()).abs() <= part.weight.scale.float() * 0.6).all())
    error = (dequantize(part.weight) - table.float()).double().square().sum() / table.double().square().sum()
    assert part.relative_error == pytest.approx(float(error), rel=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_several_chunks_is_quantised_as_its_rows_are(bits: Bits) -> None:
    table = random_table(1100, 4096)

    whole = quantize_embedding(table, bits).weight

    for start in (0, 1000):
        alone = quantize_embedding(table[start : start + 100], bits).weight
        assert torch.equal(whole.codes[start : start + 100], alone.codes)


def run(folder: Path, text: Path, root: Path, bits: int) -> tuple[PreparedBundle, Bundle]:
    request = {
        "model": str(folder),
        "sparsity": 0.01,
        "embedding_bits": bits,
        "calibration": {"text": str(text), "sequences": 20, "tokens_per_sequence": 24},
        "evaluation": {"documents": 4},
    }
    layout = ImageLayout.create(root / "store")
    made = prepare(
        PrepareRequest.model_validate(request),
        workspace=root / f"work-{bits}",
        layout=layout,
        progress=SilentProgress(),
        sources=SourcePolicy(allow_any_local=True),
        means=Means(device="cpu"),
    )
    return made, read_bundle(layout, made.manifest.digest)


@pytest.mark.parametrize("family", CONFIGS)
def test_embedding_and_head_are_stored_once_in_codes_and_nothing_else_of_the_trunk_is(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path, family: str
) -> None:
    folder = make_checkpoint(family)
    made, bundle = run(folder, text, tmp_path, 8)
    stored = safetensors.torch.load_file(folder / "model.safetensors")

    names = [entry.name for entry in bundle.config.embedding_tensors]
    is_tied = transformers.AutoConfig.from_pretrained(folder).tie_word_embeddings
    assert len(names) == (1 if is_tied else 2)
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")
    assert all(name.endswith(ends) for name in names)
    assert [table["name"] for table in made.report["embeddings"]] == names
    parts = safetensors.torch.load_file(bundle.path(TRUNK_TITLE))
    for entry in bundle.config.embedding_tensors:
        scale, bias = parts[f"{entry.name}.scale"], parts[f"{entry.name}.bias"]
        codes = parts[f"{entry.name}.codes"]
        columns = entry.shape[1]
        decoded = dequantize(QuantizedTensor(codes, columns, 8, scale=scale, bias=bias, group_size=columns))
        torch.testing.assert_close(decoded, stored[entry.name].float(), rtol=0, atol=float(scale.max()) * 0.6)
    for parameter in bundle.config.dense_parameters:
        if parameter.blob == TRUNK_TITLE:
            assert torch.equal(parts[parameter.name], stored[parameter.name])


def test_bundles_that_differ_in_embedding_bits_share_all_blocks_and_sensitive_values(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    bundles = {bits: run(folder, text, tmp_path, bits)[1] for bits in (16, 8, 4)}

    def digests(bits: int) -> dict[str, str]:
        layers = bundles[bits].manifest.layers
        return {layer.title: layer.digest for layer in layers if layer.title.endswith(".safetensors")}

    differing = [{title for title in digests(16) if digests(16)[title] != digests(bits)[title]} for bits in (8, 4)]
    assert differing == [{TRUNK_TITLE}, {TRUNK_TITLE}]
    trunk_bytes = [bundles[bits].path(TRUNK_TITLE).stat().st_size for bits in (16, 8, 4)]
    assert trunk_bytes == sorted(trunk_bytes, reverse=True)


def test_sixteen_bits_make_a_bundle_of_format_1_0_that_says_nothing_of_embeddings(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    made, bundle = run(make_checkpoint(num_hidden_layers=1), text, tmp_path, 16)

    assert (bundle.config.format_version, bundle.config.minimum_client_version) == ("1.0", "0.1.0")
    assert bundle.config.embedding_tensors == []
    assert "embeddings" not in made.report
    assert made.report["format_version"] == "1.0"


def test_an_older_device_refuses_quantised_embeddings_by_version(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    _, bundle = run(make_checkpoint(num_hidden_layers=1), text, tmp_path, 8)

    assert bundle.config.format_version == "1.2"
    with pytest.raises(UpgradeNeeded, match=r"needs zo-device 0\.2\.0"):
        read_config(bundle.layout, bundle.manifest, client_version=(0, 1, 0))
    assert read_config(bundle.layout, bundle.manifest, client_version=(0, 2, 0)) == bundle.config


def test_the_report_counts_codes_and_scales_of_the_embedding_as_embeddings(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    parts = {}
    for bits in (16, 8):
        made, _ = run(make_checkpoint(num_hidden_layers=1), text, tmp_path, bits)
        parts[bits] = made.report["bytes_by_part"]

    assert parts[16]["embeddings"] == 2 * 260 * 32
    assert parts[8]["embeddings"] == 260 * 32 + 2 * 2 * 260
    assert {name: count for name, count in parts[8].items() if name != "embeddings"} == {
        name: count for name, count in parts[16].items() if name != "embeddings"
    }


def test_a_request_for_sixteen_bits_has_the_fingerprint_of_before_there_was_a_choice() -> None:
    c4, content = TextSource(), {"commit": "c"}
    before = "sha256:19048f72b471f4a7116a7be0dab9ba22330948474cfa6c716551c5175f9ea715"

    def named(bits: EmbeddingBits) -> NamedInput:
        return NamedInput.of_preparation(PrepareRequest(model="m", embedding_bits=bits))

    fingerprints = [input_fingerprint(named(bits), content, c4, c4) for bits in get_args(EmbeddingBits)]

    assert fingerprints[0] == before
    assert len(set(fingerprints)) == 3
