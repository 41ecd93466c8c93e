"""How many answers of the service contradict its OpenAPI document, over many more calls than the tests make.

    python tests/benchmarks/service_fuzz.py --minutes 5

Repeats the fuzzing of ``tests/support/api_fuzzing.py`` with a new seed each time, until the time is over; a run that
has begun is finished. Writes ``results/service_fuzz.json`` with every contradiction and the calls by operation and
status, and ``service.schemathesis_failures``; exits with 1 where there was one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from api_fuzzing import Fuzzed, fuzz, fuzzing_target  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

EXAMPLES = 50


def main() -> int:
    """Fuzz, record what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="how long to begin new runs (default: 3)")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first run (default: 1)")
    arguments = parser.parse_args()
    logging.disable()  # the expected 503 of /readyz, thousands of times
    runs = fuzz_for(arguments.minutes * 60, first_seed=arguments.first_seed)
    calls = {operation: Counter[int]() for run in runs for operation in run.calls}
    for run in runs:
        for operation, counted in run.calls.items():
            calls[operation].update(counted)
    failures = list(dict.fromkeys(failure for run in runs for failure in run.failures))
    total = sum(counted.total() for counted in calls.values())
    by_status = {
        operation: {str(status): n for status, n in sorted(found.items())} for operation, found in calls.items()
    }
    found = {"runs": len(runs), "calls": total, "statuses": by_status, "failures": failures}
    path = write_result("service_fuzz", found)
    record_headlines(path, {"service.schemathesis_failures": (len(failures), f"of {total} calls")})
    print(path.read_text())
    return 1 if failures else 0


def fuzz_for(seconds: float, *, first_seed: int) -> list[Fuzzed]:
    """Return what came of runs with one seed after the other, alternately on what exists and on anything."""
    end = time.monotonic() + seconds
    runs: list[Fuzzed] = []
    for seed in itertools.count(first_seed):
        with tempfile.TemporaryDirectory(prefix="zo-fuzz-") as folder, fuzzing_target(Path(folder)) as target:
            runs.append(fuzz(target, seed=seed, examples=EXAMPLES, is_about_known=len(runs) % 2 == 0))
        if time.monotonic() >= end and len(runs) > 1:
            return runs
    raise AssertionError("seeds do not end")


if __name__ == "__main__":
    sys.exit(main())
