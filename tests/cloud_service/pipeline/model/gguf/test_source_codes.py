"""The 4-bit codes of a GGUF file are kept as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Storage
from tiny_gguf import quantized, random_weights, write_gguf

from cloud_service.pipeline.model.gguf.checkpoint import read_gguf
from cloud_service.pipeline.model.gguf.source_codes import SourceCodes
from shared.errors import UnsupportedModel
from shared.quantization.codec import dequantize

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")


@pytest.mark.parametrize("storage", [Storage.Q4_0, Storage.Q4_1])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_codes_decode_to_what_the_file_means_bit_for_bit(family: str, storage: Storage, tmp_path: Path) -> None:
    weights = random_weights(family)
    write_gguf(tmp_path / "m.gguf", family, weights=weights, storage=storage)
    codes = SourceCodes(read_gguf(tmp_path, "m.gguf"))
    for name in (f"model.layers.1.{linear}.weight" for linear in LINEARS):
        kept = codes.read(name, "cpu")
        assert kept is not None
        assert (codes.type_of(name), kept.bits, kept.group_size) == (storage.name, 4, 32)
        assert torch.equal(dequantize(kept), torch.from_numpy(np.array(quantized(weights[name], storage)))), name


@pytest.mark.parametrize("storage", [Storage.Q8_0, Storage.F16, Storage.Q5_0])
def test_other_types_have_no_codes_to_keep(storage: Storage, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", storage=storage)
    codes = SourceCodes(read_gguf(tmp_path, "m.gguf"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert codes.type_of(name) is None
    assert codes.read(name, "cpu") is None


def test_a_file_that_was_cut_off_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    codes = SourceCodes(read_gguf(tmp_path, "m.gguf"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnsupportedModel, match="ends within the tensor"):
        codes.read("model.layers.1.mlp.down_proj.weight", "cpu")
