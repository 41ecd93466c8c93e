"""One token against the same blocks in 16 bit and in torch's own 4 bit, and a text against transformers' ``generate``.

16 bit      2 bytes read per weight and token
4 bit       half a byte, and the codebooks
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch
from peers.bare_forward import greedy_generate
from peers.int4pack import pack_linears
from runtime.limits import Limits
from runtime.next_tokens import TOKENS, by_modules, fused, per_token
from runtime.stopwatch import Action, Timing, alternate, as_json, ratio
from runtime.workplace import Workplace
from torch import nn

from device_client.model.sparse_model import SparseModel

PROMPT = [1, 5, 6, 7, 8, 9, 10, 11]
TEXT_ROUNDS = 5
STORED_BYTES = {"U8": 1, "F16": 2}
INDEX_BYTES = 4


def decode_figures(place: Workplace, limits: Limits) -> dict[str, Any]:
    """Return the figures of one token, and of a text."""
    scale = place.scale
    packed, plain = place.packed(scale.decode_blocks), place.plain(scale.decode_blocks)
    found = {
        "blocks": scale.decode_blocks,
        "fused_up_to_tokens": packed.fused_up_to_tokens,
        "one_token": _one_token(place, packed, plain, limits),
        "text": _text(packed, plain, scale.new_tokens),
        "calibrations": _calibrations(place),
    }
    del packed, plain
    place.clean_up()
    return found


def _one_token(place: Workplace, packed: SparseModel, plain: nn.Module, limits: Limits) -> dict[str, Any]:
    cached = place.scale.cached_tokens
    actions: dict[str, Action] = {
        "fused": fused(packed, cached),
        "fused_by_modules": by_modules(packed.network, cached, packed.runtime),
        "decoded": by_modules(packed.network, cached),
        "plain": by_modules(plain, cached),
    }
    if place.device.type == "cpu" and place.scale.dtype == torch.bfloat16:
        other = pack_linears(place.plain(place.scale.decode_blocks))
        actions["int4pack"] = by_modules(other, cached)
    timings = per_token(alternate(actions, place.device, place.scale.effort))
    least = _least_seconds(packed, limits)
    return {
        "times": as_json(timings),
        "cached_tokens": cached,
        "tokens_in_a_row": TOKENS,
        "speedup": {name: ratio(timing, timings["fused"]) for name, timing in timings.items() if name != "fused"},
        "limit_ms": 1e3 * least,
        "fused_over_limit": timings["fused"].median / least,
    }


def _least_seconds(packed: SparseModel, limits: Limits) -> float:
    """Return the time of reading every weight's codes, codebook, and sensitive positions and values once."""
    parts = [part for entry in packed.config.tensors for part in entry.part_shapes.values()]
    stored = sum(math.prod(shape) * STORED_BYTES[dtype] for dtype, shape in parts)
    sensitive = packed.sensitive_count * (INDEX_BYTES + packed.compute_dtype.itemsize)
    return limits.seconds(flops=0.0, bytes_read=stored + sensitive)


def _text(packed: SparseModel, plain: nn.Module, new_tokens: int) -> dict[str, Any]:
    """Return tokens per second of whole texts, prompt included, as each library's users generate them."""
    seconds: dict[str, list[float]] = {"packed": [], "plain": []}
    for number in range(TEXT_ROUNDS + 1):
        own, other = _packed_seconds(packed, new_tokens), greedy_generate(plain, PROMPT, new_tokens).seconds
        if number > 0:  # the first one warms up
            seconds["packed"].append(own)
            seconds["plain"].append(other)
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    return {
        "new_tokens": new_tokens,
        "times": as_json(timings),
        "tokens_per_second": {name: new_tokens / timing.median for name, timing in timings.items()},
        "speedup": ratio(timings["plain"], timings["packed"]),
    }


def _packed_seconds(packed: SparseModel, new_tokens: int) -> float:
    packed.write_theta(packed.initial_theta())
    begin = time.perf_counter()
    count = len(list(packed.generate(PROMPT, max_new_tokens=new_tokens)))
    if count != new_tokens:
        raise RuntimeError(f"{count} tokens were generated; needed {new_tokens}")
    return time.perf_counter() - begin


def _calibrations(place: Workplace) -> dict[str, Any]:
    """Return what was measured when the models were loaded, from which the fused product's range follows."""
    path = place.folder / "kernels" / "calibrations.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
