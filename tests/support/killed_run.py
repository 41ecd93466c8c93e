"""A fine-tune in a process of its own that SIGKILL ends at a step.

As a program: what the test module's function plans is tuned, and the process kills itself once a step is on record.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tiny_bundle import TinyBundle
from tiny_run import Silent

from device_client.tuning.journal import StepRecord, read_journal
from device_client.tuning.planned_run import PlannedRun
from device_client.tuning.tune_run import MachineSettings, tune
from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle

SUPPORT = Path(__file__).parent


def kill_at_step(step: int, plan: PlannedRun, test: str, bundle: TinyBundle, rows: Path, *words: str) -> None:
    """Tune until a step is on record, and see that SIGKILL ended it before the run was finished.

    Args:
        step: Which one.
        plan: The run, as this process plans it.
        test: File of a test module; its ``plan_to_kill(bundle, rows, *words)`` plans the same run.
        bundle: What is tuned.
        rows: Their file.
        words: Further arguments.
    """
    folder = Path(test).parent
    paths = os.pathsep.join(map(str, (folder, SUPPORT, SUPPORT.parents[1])))
    arguments = [str(step), Path(test).stem, str(bundle.layout.root), bundle.digest, str(rows), *words]

    killed = subprocess.run([sys.executable, __file__, *arguments], env=os.environ | {"PYTHONPATH": paths}, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert 0 < len(read_journal(plan.directory.journal)[1]) < plan.settings.steps


class _Killing(Silent):
    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, record: StepRecord) -> None:
        if record.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def _main(step: str, module: str, root: str, digest: str, rows: str, *words: str) -> None:
    bundle = read_bundle(ImageLayout(Path(root)), digest)
    plan = importlib.import_module(module).plan_to_kill(bundle, Path(rows), *words)
    tune(plan, MachineSettings(device="cpu"), _Killing(int(step)), iter(range(10_000)).__next__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
