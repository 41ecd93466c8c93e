"""The record of a run survives JSON."""

from __future__ import annotations

import json

from cloud_service.pipeline.run_record import PeakBytes, RunRecord, StageRecord


def test_a_record_is_the_same_after_json() -> None:
    record = RunRecord(
        machine="a processor, 2 cores",
        device="cpu",
        torch_version="2.13.0",
        transformers_version="5.23.0",
        stages=(StageRecord("calibrating", 12.5, 11.0), StageRecord("selecting", 0.5)),
        host=PeakBytes(planned=3_000_000_000, measured=2_900_000_000),
        accumulators="accelerator",
        passes=3,
        recomputes_activations=True,
        launcher="ray",
        workers=4,
        is_resumed=True,
        bundle_digest="sha256:" + "0" * 64,
        bundle_bytes=123,
    )
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
