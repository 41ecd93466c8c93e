"""Figures 3 and 8 for a real model: how much of SST-2's sensitivity C4's mask covers, before and during fine-tuning.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 python tests/benchmarks/mask_coverage.py [--quick]

picollama-sentiment; C4: 128 sequences of 512 tokens; SST-2: 128 rows select, 128 others measure; 200 steps of Adam at
1e-4 on batches of 16 of 1,000 rows, looked at every 20 steps. ``--quick`` takes an eighth of everything and keeps
nothing. Takes about five minutes on two cores and times nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from recording import record_headlines, write_result

from cloud_service.commands.progress import terminal_progress
from cloud_service.sources import SourcePolicy
from cloud_service.studies.coverage import Criterion
from cloud_service.studies.coverage_report import coverage_document, coverage_table
from cloud_service.studies.coverage_run import CoverageRequest, run_coverage
from shared.api import CalibrationSpec

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
HEADLINES: tuple[Criterion, ...] = ("text_static", "task_static", "task_dynamic", "in_sample", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    is_quick = parser.parse_args().quick
    with terminal_progress(is_quiet=False) as progress:
        measured = run_coverage(request(8 if is_quick else 1), SourcePolicy(allow_any_local=True), progress)
    document = coverage_document(measured.coverage, measured.about)
    print(coverage_table(document))
    if not is_quick:
        record_headlines(write_result("mask_coverage", document), headlines(document))


def request(divisor: int) -> CoverageRequest:
    return CoverageRequest(
        model=str(DATA / "models" / "picollama-sentiment"),
        calibration=CalibrationSpec(text=str(DATA / "text" / "c4" / "c4-en-1000.jsonl"), sequences=128 // divisor),
        task=CalibrationSpec(text=str(DATA / "tasks"), task="SST-2"),
        rows=256 // divisor,
        steps=200 // divisor,
        every=20 // divisor,
        lr=1e-4,
    )


def headlines(document: dict[str, Any]) -> dict[str, tuple[float | int | bool, str]]:
    """Shares of the top 1e-3 before the first step and after the last."""
    index = document["fractions"].index(1e-3)
    moments = {"start": document["moments"][0], "end": document["moments"][-1]}
    return {
        f"mask.coverage.sst2.{criterion}.{when}": (moment["shares"][criterion][index]["mean"], "share of Σ F, mean")
        for when, moment in moments.items()
        for criterion in HEADLINES
    }


if __name__ == "__main__":
    main()
