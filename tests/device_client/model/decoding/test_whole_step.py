"""A token in one call of the kernels gives what ten calls for each block give, whoever does the work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from random_bundle import make_case
from torch import Tensor
from torch_threads import torch_threads

from device_client.model.backends.choose import BackendOptions
from device_client.model.decoding.direct import DirectDecoding
from device_client.model.decoding.kept_tokens import KeptTokens
from device_client.model.decoding.stepwise import Stepwise
from device_client.model.decoding.whole_step import WholeSteps, takes_whole_steps
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel

PROMPT = [7, 1, 200, 31, 31, 5, 90, 12]
FOLLOWING = [4, 250, 4, 17, 66, 128, 9, 31, 2]
TOLERANCE = 5e-6
"""Relative to the largest logit: both sum in float32, silu's exponential differs in its last bits."""


def loaded(
    root: Path, kernels: Path, model_type: str, dtype: torch.dtype = torch.float32, **changes: Any
) -> SparseModel:
    bundle = make_case(root, model_type, **changes).bundle
    model = load_model(
        bundle, device="cpu", compute_dtype=dtype, backend=BackendOptions("native", kernels, lambda _: None)
    )
    model.write_theta(model.initial_theta() + 0.1)
    return model


def is_whole(model: SparseModel) -> bool:
    kernels = model.runtime.backend.token_kernels
    assert kernels is not None
    return takes_whole_steps(model.decoder, model.runtime.values.of(slice(None), 0), kernels)


def decoding_of(model: SparseModel) -> DirectDecoding:
    kernels = model.runtime.backend.token_kernels
    assert kernels is not None
    network: Any = model.network
    return DirectDecoding(model.decoder, model.head, network.config, model.runtime, kernels)


def logits_after_each(model: SparseModel) -> Tensor:
    decoding = decoding_of(model)
    decoding.prefill(PROMPT)
    return torch.stack([decoding.step(token).clone() for token in FOLLOWING])


@pytest.mark.parametrize(
    "changes",
    [{}, {"form": "shared"}, {"form": "uniform"}, {"bits": 3}, {"bits": 8, "form": "uniform"}, {"embedding_bits": 8}],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_one_call_gives_what_ten_calls_for_each_block_give(
    model_type: str, changes: dict[str, Any], tmp_path: Path, kernels: Path
) -> None:
    model = loaded(tmp_path, kernels, model_type, **changes)
    values, token_kernels = model.runtime.values.of(slice(None), 0), model.runtime.backend.token_kernels
    assert token_kernels is not None
    keys = torch.randn(2, model.decoder.layers[0].self_attn.k_proj.out_features, 5)
    logits = []
    for steps in (WholeSteps, Stepwise):
        kept = [KeptTokens(None) for _ in model.decoder.layers]
        for each in kept:
            size = model.decoder.layers[0].self_attn.head_dim
            each.begin(*(part.T.reshape(5, -1, size).transpose(0, 1) for part in keys))
        taken = steps(model.decoder, model.head, values, token_kernels)
        hidden = model.decoder.embed_tokens(torch.tensor(31))
        cosines, sines = model.decoder.rotary_emb(hidden, torch.tensor([[5]]))
        with torch.no_grad(), model.runtime.fusing(1):
            logits.append(taken.take(hidden.clone(), 5, cosines, sines, kept).clone())

    whole, stepwise = logits

    torch.testing.assert_close(whole, stepwise, rtol=0, atol=TOLERANCE * float(stepwise.abs().max()))


def test_the_number_of_threads_changes_no_bit(tmp_path: Path, kernels: Path) -> None:
    model = loaded(tmp_path, kernels, "llama")
    with torch_threads(1):
        alone = logits_after_each(model)

    for threads in (2, 3, 8):  # more than this machine's cores, too
        with torch_threads(threads):
            assert torch.equal(logits_after_each(model), alone), threads


def test_texts_of_several_models_in_threads_of_python_do_not_mix(tmp_path: Path, kernels: Path) -> None:
    models = [loaded(tmp_path / model_type, kernels, model_type) for model_type in ("llama", "qwen2", "qwen3")]
    with torch_threads(2):
        expected = [logits_after_each(model) for model in models]

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda model: [logits_after_each(model) for _ in range(4)], models))

    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(each, theirs) for each in ours)


@pytest.mark.parametrize(
    ("model_type", "dtype", "changes"),
    [
        ("llama", torch.bfloat16, {}),
        ("qwen3", torch.float16, {}),
        ("llama", torch.float32, {"hidden_act": "gelu"}),
    ],
)
def test_other_formats_and_activations_go_step_by_step(
    model_type: str, dtype: torch.dtype, changes: dict[str, Any], tmp_path: Path, kernels: Path
) -> None:
    assert is_whole(loaded(tmp_path / "plain", kernels, model_type))
    assert not is_whole(loaded(tmp_path / "other", kernels, model_type, dtype, **changes))
