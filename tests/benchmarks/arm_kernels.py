"""Are the kernels for aarch64 those for this machine, bit for bit?

    python tests/benchmarks/arm_kernels.py          half a minute

Cross-compiles them, runs every kernel on shapes, forms of weights and formats of values under qemu's user emulation,
and compares with this machine's kernels and with those for AVX2. Needs ``g++-aarch64-linux-gnu`` and
``qemu-user-static``. Writes ``results/arm_kernels.json``; the headline counts kernels all of whose outputs agree.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from kernel_outputs import kernels_in, outputs_of_library, outputs_on_arm  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from device_client.model.backends.native.build import built_library  # noqa: E402

TUNINGS = {"this machine": None, "AVX2": "-march=x86-64-v3"}


def main() -> None:
    """Compare and record."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        on_arm = outputs_on_arm(folder)
        here = {
            name: outputs_of_library(built_library(folder, print, tuning=tuning), folder)
            for name, tuning in TUNINGS.items()
        }
    differing = {name: [case for case in on_arm if found[case] != on_arm[case]] for name, found in here.items()}
    wrong = kernels_in(dict.fromkeys(case for cases in differing.values() for case in cases))
    identical = sorted(kernels_in(on_arm) - wrong)
    path = write_result("arm_kernels", {"outputs": len(on_arm), "identical": identical, "differing": differing})
    unit = f"of {len(kernels_in(on_arm))} kernels"
    record_headlines(path, {"arm.kernels_identical_under_qemu": (len(identical), unit)})
    print(f"{len(identical)} {unit}, {len(on_arm)} outputs; see {path}")


if __name__ == "__main__":
    main()
