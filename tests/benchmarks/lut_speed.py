"""Speed and error of the `lut` quantiser beside a scikit-learn KMeans per row, and beside the exact optimum.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 python tests/benchmarks/lut_speed.py [--rows-per-tensor N]

Rows: all 35 linear weights of picollama (320 and 832 columns) with importance from 8 sequences of C4, and heavy-tailed
rows made up 4,096 and 11,008 wide (``real_rows.heavy_tailed_rows``). The peer is SqueezeLLM's recipe: per row
``KMeans(n_clusters=16, random_state=0, n_init="auto", max_iter=50)`` with sample weights, in as many processes as
torch has threads, one thread each. Both run in turns, five times; the figures are medians. Ours includes coding and
packing, as theirs includes labels. ``--rows-per-tensor`` takes part of the real rows, for a quick look, and records
no headline. Takes about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from exact_kmeans import codebook_error, least_error  # noqa: E402
from real_rows import Rows, heavy_tailed_rows, real_rows  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from cloud_service.pipeline.quantizers.lut import quantize_lut, row_codebooks  # noqa: E402

DATA = Path(os.environ.get("ZO_DATA_DIR", HERE.parents[2] / "shared" / "data")).resolve()
RUNS = 5
BITS, SIZE = 4, 16
WIDE_ROWS = {4096: 1024, 11008: 512}
PEER_ROWS = {4096: 128, 11008: 64}
EXACT_ROWS = 64
LLAMA_7B_WEIGHTS = {4096: 32 * (4 * 4096 + 2 * 11008) * 4096, 11008: 32 * 4096 * 11008}
Row = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-per-tensor", type=int)
    limit = parser.parse_args().rows_per_tensor
    tensors = picollama(limit)
    wide = {columns: heavy_tailed_rows(rows, columns, seed=columns) for columns, rows in WIDE_ROWS.items()}
    with one_thread_each() as pool:
        errors = {name: measure_error(pool, rows) for name, rows in tensors.items()}
        wide_errors = {str(n): measure_error(pool, first(rows, EXACT_ROWS)) for n, rows in wide.items()}
        speeds = {"picollama": measure_speed(pool, list(tensors.values()), list(tensors.values()))}
        for columns, rows in wide.items():
            speeds[str(columns)] = measure_speed(pool, [rows], [first(rows, PEER_ROWS[columns])])
            print(columns, speeds[str(columns)], flush=True)
    result = {
        "threads": torch.get_num_threads(),
        "speed": speeds,
        "error": {"picollama": errors, **wide_errors},
        "largest_error_over_optimum": max(e["ours_over_optimum"] for e in [*errors.values(), *wide_errors.values()]),
        "scratch_mib": {f"{r}x{c}": scratch_mib(r, c) for r, c in ((11008, 4096), (4096, 11008))},
        "llama_2_7b_seconds": sum(LLAMA_7B_WEIGHTS[n] / speeds[str(n)]["ours_weights_per_second"] for n in wide),
    }
    if limit is not None:
        print(result)
        return
    path = write_result("lut_speed", result)
    print(path.read_text())
    speedup = min(speeds[key]["speedup"] for key in ("picollama", "4096"))
    record_headlines(
        path,
        {
            "lut.speedup_over_sklearn": (speedup, "times the weights per second"),
            "lut.error_over_optimum": (result["largest_error_over_optimum"], "weighted error over the exact optimum's"),
        },
    )


def picollama(limit: int | None) -> dict[str, Rows]:
    rows = real_rows(DATA / "models" / "picollama-sentiment", DATA / "text" / "c4" / "c4-en-1000.jsonl", 8, 512)
    return {name: first(value, limit) for name, value in rows.items()}


def first(rows: Rows, count: int | None) -> Rows:
    return rows[0][:count].contiguous(), rows[1][:count].contiguous()


@contextmanager
def one_thread_each() -> Iterator[Pool]:
    """Yield as many warm processes as torch has threads here, each with one thread."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    processes = torch.get_num_threads()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        pool.map(sklearn_codebook, numpy_rows(heavy_tailed_rows(4 * processes, 64, seed=0)), chunksize=1)
        yield pool


def measure_speed(pool: Pool, ours: list[Rows], theirs: list[Rows]) -> dict[str, Any]:
    """Time both in turns; ``theirs`` may be fewer of the same rows."""
    their_rows = [row for rows in theirs for row in numpy_rows(rows)]
    seconds: dict[str, list[float]] = {"ours": [], "sklearn": []}
    quantize_lut(*ours[0], BITS)
    for _ in range(RUNS):
        seconds["ours"].append(timed(lambda: [quantize_lut(*rows, BITS) for rows in ours]))
        seconds["sklearn"].append(timed(lambda: pool.map(sklearn_codebook, their_rows, chunksize=8)))
    rates = {
        "ours": sum(w.numel() for w, _ in ours) / statistics.median(seconds["ours"]),
        "sklearn": sum(w.size for w, _ in their_rows) / statistics.median(seconds["sklearn"]),
    }
    return {
        **{f"{name}_weights_per_second": rate for name, rate in rates.items()},
        "speedup": rates["ours"] / rates["sklearn"],
        "seconds": seconds,
    }


def measure_error(pool: Pool, rows: Rows) -> dict[str, float]:
    """Sum errors over the rows, each divided by the optimum's sum; and that of the worst row."""
    each = numpy_rows(rows)
    best = np.array(pool.map(optimum, each, chunksize=8))
    ours = np.array(
        [codebook_error(*row, table) for row, table in zip(each, row_codebooks(*rows, SIZE).numpy(), strict=True)]
    )
    sample = each[:: max(1, len(each) // 16)]
    theirs = [
        codebook_error(*row, table) for row, table in zip(sample, pool.map(sklearn_codebook, sample), strict=True)
    ]
    return {
        "ours_over_optimum": float(ours.sum() / best.sum()),
        "ours_over_optimum_worst_row": float((ours / best).max()),
        "sklearn_over_optimum": float(np.sum(theirs) / best[:: max(1, len(each) // 16)].sum()),
    }


def numpy_rows(rows: Rows) -> list[Row]:
    return list(zip(rows[0].numpy(), rows[1].numpy(), strict=True))


def sklearn_codebook(row: Row) -> np.ndarray:
    from sklearn.cluster import KMeans

    weight, importance = row
    kmeans = KMeans(n_clusters=SIZE, random_state=0, n_init="auto", max_iter=50)
    kmeans.fit(weight.reshape(-1, 1), sample_weight=importance)
    centres: np.ndarray = kmeans.cluster_centers_[:, 0]
    return centres.astype(np.float16)


def optimum(row: Row) -> float:
    return least_error(*row, SIZE)


def scratch_mib(rows: int, columns: int) -> float:
    """Return what quantising one weight in a fresh process adds to the peak of its memory, the result included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth_mib, (rows, columns))


def _peak_growth_mib(rows: int, columns: int) -> float:
    weight, importance = torch.randn(rows, columns), torch.rand(rows, columns)
    quantize_lut(weight[:64], importance[:64], BITS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
    before = _peak_kib()
    quantize_lut(weight, importance, BITS)
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
