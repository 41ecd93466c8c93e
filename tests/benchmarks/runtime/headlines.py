"""Which of the measured figures are headlines, and what they are called.

A CPU's batches are named by their tokens, a GPU's by rows and columns; a GPU's keys name the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.scale import Scale

Figures = dict[str, tuple[float | int | bool, str]]


def headlines(part: str, found: Mapping[str, Any], scale: Scale, device: str) -> Figures:
    """Return the headline figures of one part.

    Args:
        part: Which one.
        found: What it measured.
        scale: At what.
        device: Short name of the device, for the keys of a GPU.
    """
    prefix = "cpu" if scale.plan == "cpu" else f"gpu.{device}"
    chosen: dict[str, Callable[[Mapping[str, Any], Scale, str], Figures]] = {
        "step": _step,
        "decode": _decode,
        "layer": _layer,
        "mezo": _mezo,
        "memory": _memory,
    }
    return chosen[part](found, scale, prefix) if part in chosen else {}


def _step(found: Mapping[str, Any], scale: Scale, prefix: str) -> Figures:
    own: Mapping[str, Mapping[str, Any]] = found[str(scale.dtype)]
    figures: Figures = {}
    for one in own.values():
        suffix = _suffix(one, scale)
        figures[f"{prefix}.step_over_two_forwards.{suffix}"] = (one["step_over_two_forwards"]["median"], "ratio")
        if "pairing_gain" in one:
            figures[f"{prefix}.pairing_gain.{suffix}"] = (one["pairing_gain"]["median"], "ratio")
            figures[f"{prefix}.paired_equals_single.{suffix}"] = (one["paired_losses_equal_single_ones"], "bool")
    for one in found.get("torch.float32", {}).values():
        key = f"{prefix}.float32_step_over_two_forwards.{_suffix(one, scale)}"
        figures[key] = (one["step_over_two_forwards"]["median"], "ratio")
    parts = own["16x16" if scale.plan == "cpu" else "16x32"]["parts"]
    of_step = "step" if scale.plan == "cpu" else prefix
    figures |= {f"{of_step}.{key}": (parts[key], "share") for key in ("update_share", "share_beside_forwards")}
    return figures


def _suffix(one: Mapping[str, Any], scale: Scale) -> str:
    rows, columns = one["rows"], one["columns"]
    return f"tokens_{rows * columns}" if scale.plan == "cpu" else f"{rows}x{columns}"


def _decode(found: Mapping[str, Any], scale: Scale, prefix: str) -> Figures:
    one_token, text = found["one_token"]["speedup"], found["text"]
    if scale.plan == "cuda":  # a text as its users generate it, launches included
        return {
            f"{prefix}.decode_speedup": (text["speedup"]["median"], "ratio"),
            f"{prefix}.decode_tokens_per_second": (text["tokens_per_second"]["packed"], "tokens/s"),
        }
    figures: Figures = {f"{prefix}.generate_speedup": (text["speedup"]["median"], "ratio")}
    figures[f"{prefix}.decode_speedup_over_bf16"] = (one_token["plain"]["median"], "ratio")
    if "int4pack" in one_token:
        figures[f"{prefix}.decode_speedup_over_int4pack"] = (one_token["int4pack"]["median"], "ratio")
    return figures


def _layer(found: Mapping[str, Any], scale: Scale, prefix: str) -> Figures:
    return {f"{prefix}.sparse_share_of_decode": (found["tokens"]["1"]["sparse_share"], "share")}


def _mezo(found: Mapping[str, Any], scale: Scale, prefix: str) -> Figures:
    if scale.plan == "cpu":
        return {f"{prefix}.step_speedup_over_mezo": (found["16x16"]["speedup"]["median"], "ratio")}
    batches = [f"{batch.rows}x{batch.columns}" for batch in scale.mezo_steps]
    return {
        f"{prefix}.step_speedup_over_mezo.{batch}": (found[batch]["speedup"]["median"], "ratio") for batch in batches
    }


def _memory(found: Mapping[str, Any], scale: Scale, prefix: str) -> Figures:
    figures: Figures = {}
    for batch in dict.fromkeys(f"{batch.rows}x{batch.columns}" for trainer, batch in scale.peaks if trainer == "zo"):
        peaks = {trainer: run["peak_gib"] for trainer, run in found[batch].items() if "peak_gib" in run}
        for peer in peaks.keys() - {"zo"}:
            figures[f"{prefix}.peak_over_{peer}.{batch}"] = (peaks["zo"] / peaks[peer], "ratio")
        if scale.plan == "cuda":
            figures[f"{prefix}.peak_gib.{batch}"] = (peaks["zo"], "GiB")
    return figures
