"""Random models in given shapes: what is on the disk is what is computed with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peers.labelled_batch import random_batch, wanted_logits
from peers.seven_b_shapes import Form, plain_model, seven_b_config, shaped_bundle

from device_client.model.loader import load_model
from shared.bundle.read import Bundle, read_bundle
from shared.bundle.tensor_header import read_header, read_tensor
from shared.quantization.codec import QuantizedTensor, dequantize

TINY: dict[str, Any] = seven_b_config(blocks=2, vocabulary=259) | {
    "hidden_size": 32, "intermediate_size": 44, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip

TESTS = Path(__file__).resolve().parents[1]


def dense_weight(bundle: Bundle, name: str) -> torch.Tensor:
    """The effective weight, by the codec's reference decoder."""
    entry = next(entry for entry in bundle.config.tensors if entry.name == name)
    path = bundle.path(entry.blob)
    slots = read_header(path)
    parts = {part: torch.from_numpy(read_tensor(path, slots[f"{name}.{part}"])) for part in entry.part_shapes}
    quantized = QuantizedTensor(in_features=entry.shape[1], bits=entry.bits, group_size=entry.group_size, **parts)
    weight = dequantize(quantized)
    mask, values = bundle.sensitive(name)
    weight.view(-1)[torch.from_numpy(mask.indices).long()] = torch.from_numpy(values).float()
    return weight


def plain_of(bundle: Bundle) -> torch.nn.Module:
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**bundle.config.architecture)).eval()
    for entry in bundle.config.tensors:
        network.get_parameter(entry.name).data.copy_(dense_weight(bundle, entry.name))
    for dense in bundle.config.dense_parameters:
        path = bundle.path(dense.blob)
        network.get_parameter(dense.name).data.copy_(torch.from_numpy(read_tensor(path, read_header(path)[dense.name])))
    return network


@pytest.mark.parametrize("form", ["lut", "g64", "g128"])
def test_a_loaded_bundle_computes_what_its_decoded_weights_compute(tmp_path: Path, form: Form) -> None:
    bundle = shaped_bundle(tmp_path, TINY | {"hidden_size": 160}, form=form, sparsity=0.01)
    tokens = random_batch(3, 9, 259, device="cpu", seed=2).tokens
    logits = load_model(bundle, device="cpu", compute_dtype=torch.float32).logits(tokens)
    with torch.no_grad():
        right = plain_of(bundle)(input_ids=tokens.input_ids).logits[:, -1]
    torch.testing.assert_close(logits.reshape(right.shape), right, rtol=1e-4, atol=1e-5)
    assert float(right.std()) > 1e-3


def test_the_bundle_passes_every_check_of_a_reader(tmp_path: Path) -> None:
    bundle = shaped_bundle(tmp_path, TINY)
    assert read_bundle(bundle.layout, bundle.digest) == bundle
    assert [len(bundle.sensitive(entry.name)[1]) for entry in bundle.config.tensors] == [1] * 14


@pytest.mark.parametrize("form", ["lut", "g64"])
def test_weights_spread_as_said(tmp_path: Path, form: Form) -> None:
    bundle = shaped_bundle(tmp_path, TINY | {"hidden_size": 256, "num_hidden_layers": 1}, form=form)
    weight = dense_weight(bundle, "model.layers.0.self_attn.q_proj.weight")
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(weight.mean())) < 1e-3


def test_codebooks_are_sorted_and_all_codes_occur(tmp_path: Path) -> None:
    bundle = shaped_bundle(tmp_path, TINY)
    name = "model.layers.0.mlp.down_proj.weight"
    path = bundle.path("block-00000.safetensors")
    slots = read_header(path)
    lut = read_tensor(path, slots[f"{name}.lut"]).astype(np.float32)
    codes = read_tensor(path, slots[f"{name}.codes"])
    assert lut.shape == (32, 16)
    assert (np.diff(lut, axis=1) >= 0).all()
    assert np.bincount(np.concatenate([codes & 15, codes >> 4], axis=None), minlength=16).min() > 0


def test_rows_of_odd_length_end_in_a_zero_nibble(tmp_path: Path) -> None:
    bundle = shaped_bundle(tmp_path, TINY | {"intermediate_size": 45})
    path = bundle.path("block-00000.safetensors")
    codes = read_tensor(path, read_header(path)["model.layers.0.mlp.down_proj.weight.codes"])
    assert codes.shape == (32, 23)
    assert (codes[:, -1] >> 4 == 0).all()


def test_a_bundle_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = shaped_bundle(tmp_path, TINY)
    made = {path: path.stat().st_mtime_ns for path in first.layout.blobs.iterdir()}
    assert shaped_bundle(tmp_path, TINY).digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in first.layout.blobs.iterdir()} == made
    assert shaped_bundle(tmp_path, TINY, seed=1).digest != first.digest


def test_the_same_arguments_give_the_same_bundle_elsewhere(tmp_path: Path) -> None:
    digests = [shaped_bundle(tmp_path / name, TINY, form="g64", seed=4).digest for name in ("one", "other")]
    assert digests[0] == digests[1]


def test_blocks_and_words_are_parameters() -> None:
    config = seven_b_config(blocks=3, vocabulary=512)
    assert (config["num_hidden_layers"], config["vocab_size"]) == (3, 512)
    assert (config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]) == (4096, 11008, 32)
    assert (seven_b_config()["num_hidden_layers"], seven_b_config()["vocab_size"]) == (32, 32000)


def test_a_plain_model_computes_as_one_that_transformers_made_with_memory_from_the_start() -> None:
    network = plain_model(TINY, dtype=torch.float32, device="cpu")
    fields = {key: value for key, value in TINY.items() if key != "model_type"}
    ordinary = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    ordinary.load_state_dict(network.state_dict())
    tokens = random_batch(2, 33, 259, device="cpu", seed=3).tokens
    with torch.no_grad():
        assert torch.equal(wanted_logits(network, tokens), wanted_logits(ordinary, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_plain_model_is_in_its_dtype_and_always_the_same(dtype: torch.dtype) -> None:
    one, other = (plain_model(TINY, dtype=dtype, device="cpu") for _ in range(2))
    assert {parameter.dtype for parameter in one.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    weight = one.get_parameter("model.layers.1.mlp.up_proj.weight").float()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


def test_the_peers_need_only_what_a_gpu_machine_has() -> None:
    unwanted = "datasets fastapi sqlalchemy accelerate ray sklearn uvicorn pydantic_settings cloud_service"
    folders = [str(TESTS.parent), str(TESTS / "benchmarks"), str(TESTS / "support")]
    program = (
        f"import sys; sys.path[:0] = {folders!r}; "
        "import peers.bare_forward, peers.first_order, peers.mezo, peers.seven_b_shapes; "
        f"print(sorted(set({unwanted!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
