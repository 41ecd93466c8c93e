"""The peak memory of one step, and its time, of every trainer: each in a process of its own that does nothing else.

    peak = high-water mark of the process on a CPU; on CUDA that of torch's allocator and the context beside it

The parent must not have touched CUDA before: its context would be counted as the child's. Children run one by one.
On a large batch first-order trainers keep one activation per block (checkpointing), as their users do on small GPUs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from peers.first_order import lora, qlora
from peers.labelled_batch import LabelledBatch, random_batch
from peers.mezo import mezo_step
from runtime.scale import GIB, Batch, Trainer
from runtime.stopwatch import seconds_of
from runtime.workplace import Workplace, tell
from runtime.zo_step import EPSILON, LEARNING_RATE, ZoStep

from shared.process_memory import process_bytes

TRAINERS: tuple[Trainer, ...] = get_args(Trainer)
TIMED_STEPS = 3
_TIMEOUT_SECONDS = 300


def peak_figures(place: Workplace, program: list[str]) -> dict[str, Any]:
    """Return peak and time of every trainer at every batch.

    Args:
        place: Its device, folder and budget are the children's too.
        program: Starts a child; the trainer, rows, columns and points are added.
    """
    scale = place.scale
    place.bundle(scale.peak_blocks)  # so that no child has to make it
    found: dict[str, Any] = {"blocks": scale.peak_blocks}
    for trainer, batch in scale.peaks:
        runs = found.setdefault(f"{batch.rows}x{batch.columns}", {})
        runs[trainer] = _in_child(program, trainer, batch)
    return found


def _in_child(program: list[str], trainer: Trainer, batch: Batch) -> dict[str, Any]:
    tell(f"  {trainer}, {batch.rows} × {batch.columns}, {batch.points} at once")
    words = [trainer, str(batch.rows), str(batch.columns), str(batch.points)]
    done = subprocess.run([*program, *words], stdout=subprocess.PIPE, text=True, check=True, timeout=_TIMEOUT_SECONDS)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_trainer(place: Workplace, trainer: Trainer, batch: Batch) -> dict[str, Any]:
    """Return the peak of this process after some steps, and the median of their seconds but the first."""
    before = process_bytes()[1]
    try:
        step = _trainers(place, batch)[trainer]()
        first, *others = [seconds_of(step, place.device) for _ in range(1 + TIMED_STEPS)]
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}
    seconds = {"first_seconds": first, "step_seconds": statistics.median(others)}
    return {"points_at_once": batch.points} | seconds | _peak(place.device, before)


def _trainers(place: Workplace, batch: Batch) -> Mapping[Trainer, Callable[[], Callable[[], object]]]:
    """Return what makes each trainer's step; only the one that is called makes a model."""
    blocks = place.scale.peak_blocks
    given = random_batch(batch.rows, batch.columns, place.scale.vocabulary, device=place.device, seed=0)

    def zo() -> Callable[[], object]:
        return ZoStep(place.packed(blocks), batch, points=batch.points, drawing=place.drawing())

    def mezo() -> Callable[[], object]:
        network = place.plain(blocks)
        return lambda: mezo_step(network, given, epsilon=EPSILON, lr=LEARNING_RATE, seed=0)

    return {
        "zo": zo,
        "mezo": mezo,
        "lora": lambda: _first_order(place, given, is_packed=False, checkpoint_blocks=False),
        "lora_checkpointed": lambda: _first_order(place, given, is_packed=False, checkpoint_blocks=True),
        "qlora": lambda: _first_order(place, given, is_packed=True, checkpoint_blocks=False),
        "qlora_checkpointed": lambda: _first_order(place, given, is_packed=True, checkpoint_blocks=True),
    }


def _first_order(
    place: Workplace, given: LabelledBatch, *, is_packed: bool, checkpoint_blocks: bool
) -> Callable[[], object]:
    blocks = place.scale.peak_blocks
    if is_packed:
        trainer = qlora(replace(place, memory_budget_bytes=None).packed(blocks), checkpoint_blocks=checkpoint_blocks)
    else:
        trainer = lora(place.plain(blocks), checkpoint_blocks=checkpoint_blocks)
    return lambda: trainer.step(given)


def _peak(device: torch.device, before: int) -> dict[str, float]:
    if device.type == "cpu":
        peak = process_bytes()[1]
        return {"peak_gib": peak / GIB, "before_gib": before / GIB}
    reserved = torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return {
        "peak_gib": (reserved + context) / GIB,
        "allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "reserved_gib": reserved / GIB,
        "context_gib": context / GIB,
    }


def child_program(script: Path, words: list[str]) -> list[str]:
    """Return the command that starts a child of the same arguments."""
    return [sys.executable, str(script), *words, "--trainer"]
