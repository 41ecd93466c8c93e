"""How fast the device's model runs.

    PYTHONPATH=.:tests/support python tests/benchmarks/bench_device_model.py [threads]

Compares, best of several runs each: the eager backend with the codec's reference decoder; a forward pass of a
picollama-shaped bundle (hidden 320, MLP 832, 5 blocks, 4,096 words; 16 × 32 tokens, one answer position a row) with a
plain float32 transformers model that computes the same logits; and tokens per second of both. Writes
``results/device_model.json``. About a minute on 2 cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from device_client.model.dequantize import EagerDequantizer
from random_bundle import Case, make_case, random_quantized
from recording import write_result

from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from shared.quantization.codec import dequantize

PICOLLAMA = {
    "hidden_size": 320, "intermediate_size": 832, "num_hidden_layers": 5, "num_attention_heads": 5,
    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 512,
}  # fmt: skip
ROWS, COLUMNS, NEW_TOKENS = 16, 32, 48
REPEATS = 9


def best_milliseconds(action: Callable[[], object]) -> float:
    """Return the shortest of several runs, after one to warm up."""
    action()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds) * 1000


def dequantize_figures() -> dict[str, Any]:
    """Time the eager backend, the codec's reference and the product that follows, per shape and form."""
    figures = {}
    for rows, columns in ((4096, 4096), (832, 320), (320, 832)):
        for form in ("per_row", "uniform"):
            tensor = random_quantized((rows, columns), form, 4, torch.Generator().manual_seed(0))
            backend = EagerDequantizer([(rows, columns)], torch.float32, torch.device("cpu"))
            weight, inputs = backend.dequantize(tensor), torch.ones(ROWS * COLUMNS, columns)
            figures[f"{rows}x{columns}.{form}"] = {
                "eager_ms": best_milliseconds(lambda b=backend, t=tensor: b.dequantize(t)),
                "reference_ms": best_milliseconds(lambda w=weight, t=tensor: dequantize(t, out=w)),
                "linear_512_tokens_ms": best_milliseconds(lambda i=inputs, w=weight: torch.nn.functional.linear(i, w)),
            }
    return figures


def plain_logits(case: Case, batch: TokenBatch) -> torch.Tensor:
    """Return the same logits by plain transformers, the head at the wanted positions only."""
    with torch.no_grad():
        hidden = case.reference.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return case.reference.lm_head(hidden[batch.logit_rows, batch.logit_columns])


def plain_tokens_per_second(case: Case) -> float:
    """Return the greedy speed of the plain model with its cache."""
    from transformers import DynamicCache

    cache, ids = DynamicCache(config=case.reference.config), torch.tensor([[1, 5, 6]])
    begin = time.perf_counter()
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            hidden = case.reference.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            ids = case.reference.lm_head(hidden[:, -1]).argmax(-1)[None]
    return NEW_TOKENS / (time.perf_counter() - begin)


def tokens_per_second(model: SparseModel) -> float:
    """Return the greedy speed of the packed model."""
    begin = time.perf_counter()
    count = len(list(model.generate([1, 5, 6], max_new_tokens=NEW_TOKENS)))
    return count / (time.perf_counter() - begin)


def batch_of(rows: int, columns: int) -> TokenBatch:
    """Random tokens; the last position of each row is wanted."""
    ids = torch.randint(0, 4096, (rows, columns), generator=torch.Generator().manual_seed(1))
    return TokenBatch(ids, torch.ones_like(ids), torch.arange(rows), torch.full((rows,), columns - 1))


def step_figures(case: Case) -> dict[str, Any]:
    """Time forward passes and generation, packed and with decoded weights kept."""
    batch = batch_of(ROWS, COLUMNS)
    packed = load_model(case.bundle, device="cpu")
    kept = load_model(case.bundle, device="cpu")
    kept.keep_decoded(1 << 30)
    plain_ms = best_milliseconds(lambda: plain_logits(case, batch))
    packed_ms = best_milliseconds(lambda: packed.logits(batch))
    kept_ms = best_milliseconds(lambda: kept.logits(batch))
    speeds = {
        "plain": max(plain_tokens_per_second(case) for _ in range(3)),
        "packed": max(tokens_per_second(packed) for _ in range(3)),
        "kept": max(tokens_per_second(kept) for _ in range(3)),
    }
    return {
        "forward_ms": {"plain": plain_ms, "packed": packed_ms, "kept": kept_ms},
        "forward_over_plain": {"packed": packed_ms / plain_ms, "kept": kept_ms / plain_ms},
        "tokens_per_second": speeds,
    }


def main() -> None:
    """Measure everything and write the result."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(Path(folder), "llama", vocabulary=4096, sensitive=200, **PICOLLAMA)
        result = {
            "threads": torch.get_num_threads(),
            "dequantize": dequantize_figures(),
            "picollama_shaped": step_figures(case),
        }
    print(write_result("device_model", result).read_text())


if __name__ == "__main__":
    main()
