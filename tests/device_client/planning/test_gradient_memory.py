"""The tensors that a gradient is said to keep alive against those that operations make, and large models' plans."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from live_bytes import LiveBytes
from tiny_bundle import TinyBundle

from device_client.model.gradient.bounds import LOGITS_AT_ONCE
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.planning.gradient_memory import differentiated_moment, kept_inputs_bytes
from device_client.planning.memory_plan import plan_memory
from device_client.planning.workload import Workload
from device_client.tasks.layout import lay_out
from device_client.tuning.answer_gradient import AnswerGradient
from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.bundle.manifest import TRUNK_TITLE, block_title
from shared.bundle.read import read_bundle
from shared.model_dimensions import dimensions_of
from shared.tasks.examples import Example

ROWS, COLUMNS = 64, 60


def peak_bytes(model: SparseModel, answers: int = 1) -> int:
    """Differentiate one batch of answers of so many tokens; return the bytes of the tensors alive at most."""
    answer = tuple(3 + position for position in range(answers))
    prompt = tuple(3 + position % 200 for position in range(COLUMNS - answers))
    examples = [Example((first, *prompt), (answer,), 0, "made up") for first in range(ROWS)]
    batch = lay_out(examples, micro_batch_rows=ROWS, right_only=True)
    live = LiveBytes()
    with live:
        AnswerGradient(model, "vocabulary")(model.initial_theta(), batch)
    return live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"intermediate_size": 200}),
        ("mistral", {"intermediate_size": 200}),
        ("qwen3", {"head_dim": 32, "intermediate_size": 200}),
        ("opt", {"ffn_dim": 200}),
        ("gpt2", {"n_inner": 200}),
        ("gpt_neox", {"intermediate_size": 200}),
        ("phi3", {"intermediate_size": 200, "rope_scaling": None}),
        ("granite", {"intermediate_size": 200}),
        ("olmo2", {"intermediate_size": 200}),
        ("smollm3", {"intermediate_size": 200}),
        ("stablelm", {"intermediate_size": 200}),
        ("gemma2", {"intermediate_size": 200}),
        ("gemma3_text", {"intermediate_size": 200}),
    ],
)
def test_planned_activations_are_the_bytes_alive_at_the_peak(
    case_of: Callable, model_type: str, changes: dict[str, int], dtype: torch.dtype
) -> None:
    model = load_model(case_of(model_type, **changes).bundle, device="cpu", compute_dtype=dtype)
    workload, architecture = Workload(ROWS, COLUMNS, is_differentiated=True), model.config.architecture

    found = peak_bytes(model)

    moment = sum(differentiated_moment(architecture, workload, dtype.itemsize, most_places=6))
    planned = moment + kept_inputs_bytes(architecture, workload, dtype.itemsize, dimensions_of(architecture).blocks)
    # What norms and attention keep differs a little by family; the MLP and the kept inputs do not.
    assert 0.9 * found < planned < 1.25 * found


def test_logits_of_long_answers_are_held_a_portion_at_a_time(case_of: Callable) -> None:
    vocabulary, answers = 20_000, 20
    model = load_model(case_of(vocabulary=vocabulary).bundle, device="cpu")

    found = peak_bytes(model, answers)

    portion = LOGITS_AT_ONCE * 4
    workload = Workload(ROWS, COLUMNS, answers_per_row=answers, is_differentiated=True)
    planned = sum(differentiated_moment(model.config.architecture, workload, 4, most_places=6))
    kept = kept_inputs_bytes(model.config.architecture, workload, 4, dimensions_of(model.config.architecture).blocks)
    assert ROWS * answers * vocabulary * 4 > 4 * portion  # all of them at once
    assert planned + kept == pytest.approx(found, rel=0.05)


def test_only_places_of_a_portion_are_counted() -> None:
    architecture = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64,
        "vocab_size": 10, "num_hidden_layers": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    few, many, most = (
        sum(differentiated_moment(architecture, Workload(1, 8), 4, most_places=count)) for count in (64, 8192, 10**6)
    )
    assert many - few == 3 * 128 * (8192 - 64) * 4
    assert most == many


LINEARS = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}  # fmt: skip


def test_llama_2_7b_with_one_row_of_512_tokens_fits_8_gib(tiny_bundle: TinyBundle) -> None:
    """With embedding and head in 16 bit; the shapes are Llama-2-7B's."""
    bundle = read_bundle(tiny_bundle.layout, tiny_bundle.digest)
    architecture = bundle.config.architecture | {
        "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000,
    }  # fmt: skip
    tensors = [
        QuantizedEntry(
            name=f"model.layers.{block}.{linear}.weight", shape=shape, blob=block_title(block), bits=4,
            codebook="per_row", sensitive_count=shape[0] * shape[1] // 1000, relative_error=0,
            weighted_relative_error=0,
        )
        for block in range(32)
        for linear, shape in LINEARS.items()
    ]  # fmt: skip
    dense = [
        DenseEntry(name=name, shape=[32000, 4096], blob=TRUNK_TITLE)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    ]
    config = bundle.config.model_copy(
        update={"architecture": architecture, "tensors": tensors, "dense_parameters": dense}
    )
    workload = Workload(1, 512, queries=0, is_differentiated=True)

    plan = plan_memory(config, workload, device_type="cpu")

    assert plan.total_bytes < 8 << 30
    assert plan.parts["codes"] == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) // 2
    assert plan.parts["inputs of blocks"] == 32 * 512 * 4096 * 4
