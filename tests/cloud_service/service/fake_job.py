"""A job's process whose work is a fake that obeys files in the model's folder; everything around it is the real thing.

    bundle/         the image layout whose blobs the fake "prepares"
    hold            name of the stage at which to wait as long as the file exists, reporting progress
    deaf            name of the stage at which to wait without reporting anything, so that SIGTERM goes unheard
    fail            the message of a DataError to raise at the stage ``calibrating``
    break           the message of a TypeError to raise there, as a library might
    content         part of the fingerprint, as a model's weights are

Each stage leaves a checkpoint in the workspace and a line ``trace: STAGE`` in the job's log when it is done; a resumed
attempt skips it.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from cloud_service.job_process.run_job import main
from cloud_service.jobs.messages import REPORT_NAME, STORE_NAME, JobOrder
from cloud_service.jobs.record import Outcome
from cloud_service.progress import ProgressSink
from shared.api import Stage
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.errors import DataError

UNITS = 4


class ObedientWork:
    def fingerprint(self, order: JobOrder, workspace: Path, progress: ProgressSink) -> str:
        progress.stage(Stage.RESOLVING)
        return digest_of_bytes(self.model(order).joinpath("content").read_bytes())

    def prepare(self, order: JobOrder, workspace: Path, progress: ProgressSink) -> Outcome:
        model = self.model(order)
        print(f"environment: {json.dumps(dict(os.environ))}")
        for stage in Stage:
            self.run_stage(stage, model, workspace, progress)
        print("a library prints to standard output")
        made = ImageLayout(model / "bundle")
        (manifest,) = made.references().values()
        store = ImageLayout.create(workspace / STORE_NAME)
        for blob in made.blobs.iterdir():
            shutil.copy(blob, store.blobs)
        (workspace / REPORT_NAME).write_bytes(b"<!doctype html><title>report</title>")
        return Outcome(
            name=order.request.name or "derived",
            tag=order.request.tag,
            manifest=manifest.model_copy(update={"annotations": None}),
            size_bytes=sum(blob.stat().st_size for blob in made.blobs.iterdir()),
            fingerprint=self.fingerprint(order, workspace, progress),
        )

    def model(self, order: JobOrder) -> Path:
        return order.model_roots[0] / order.request.model

    def run_stage(self, stage: Stage, model: Path, workspace: Path, progress: ProgressSink) -> None:
        progress.stage(stage, total=UNITS, unit="steps")
        if (workspace / stage).exists():
            progress.note(f"resumed after {stage}")
            return
        if stage is Stage.CALIBRATING and (model / "fail").exists():
            raise DataError((model / "fail").read_text(), next_step="mend the text", param="calibration.text")
        if stage is Stage.CALIBRATING and (model / "break").exists():
            raise TypeError((model / "break").read_text())
        for done in range(UNITS + 1):
            while says(model / "hold", stage) and done == 1:
                progress.advance(done)
                time.sleep(0.02)
            while says(model / "deaf", stage) and done == 1:
                time.sleep(0.02)
            progress.advance(done)
        print(f"trace: {stage}", flush=True)
        (workspace / stage).touch()


def says(file: Path, stage: Stage) -> bool:
    return file.exists() and file.read_text() == stage


if __name__ == "__main__":
    sys.exit(main(work=ObedientWork()))
