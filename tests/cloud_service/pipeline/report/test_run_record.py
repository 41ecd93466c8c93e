"""The record of a run survives JSON, and holds its own process against the plan."""

from __future__ import annotations

import json

from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, LocalLauncher
from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan, StagePlan
from cloud_service.pipeline.report.run_record import PeakBytes, RunRecord, StageRecord
from cloud_service.pipeline.report.run_recorder import RunRecorder


def test_a_record_is_the_same_after_json() -> None:
    record = RunRecord(
        machine="a processor, 2 cores",
        device="cpu",
        torch_version="2.13.0",
        transformers_version="5.23.0",
        stages=(StageRecord("calibrating", 12.5, 11.0, PeakBytes(9, 8)), StageRecord("selecting", 0.5)),
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


def record_of(launcher: FisherLauncher) -> RunRecord:
    plan = PreparationPlan(
        compute_dtype="float32",
        accumulators="host",
        passes=((0, 1),),
        recomputes_activations=False,
        totals_in_memory=True,
        device_map=None,
        stages=(StagePlan("calibrating", 900, (), 10.0), StagePlan("quantizing", 300, (), 5.0)),
        accelerator_budgets=(),
        host_budget=1000,
    )
    recorder = RunRecorder(plan, (), is_resumed=False)
    for stage in ("calibrating", "quantizing"):
        with recorder.stage(stage):
            pass
    return recorder.record(launcher, bundle_digest="sha256:" + "0" * 64, bundle_bytes=1)


def test_a_run_in_one_process_is_held_against_the_whole_plan() -> None:
    record = record_of(LocalLauncher())
    assert [stage.predicted_seconds for stage in record.stages] == [10.0, 5.0]
    assert record.host.planned == 900
    assert [stage.host.planned for stage in record.stages] == [900, 300]
    assert record.host.measured == max(stage.host.measured or 0 for stage in record.stages)
    assert (record.launcher, record.workers) == ("local", 1)


def test_what_a_clusters_workers_did_is_not_held_against_the_plan_of_one_process() -> None:
    record = record_of(RayLauncher(workers=3))
    assert [stage.predicted_seconds for stage in record.stages] == [None, 5.0]
    assert record.host.planned == 300
    assert record.stages[0].host == PeakBytes()
    assert (record.launcher, record.workers) == ("ray", 3)
