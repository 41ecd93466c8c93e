"""How many model families go all the way: prepare, pull, tune, generate, and logits that agree with transformers.

    .venv/bin/python tests/benchmarks/real_families.py

Writes ``results/real_families.json`` and ``real.families_passed`` in ``summary.json``. Random models of a few thousand
weights; half a minute of one core.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from family_round_trip import TOLERANCE, RoundTrip, round_trips  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402
from tiny_checkpoint import build_checkpoint  # noqa: E402

from shared.architecture import FAMILIES  # noqa: E402

STEPS = 3


def main() -> int:
    """Run every family and record how many passed; return 1 where one did not."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "service").mkdir()
        with round_trips(Path(folder) / "service") as trip:
            rows = {family: _row(trip, Path(folder), family) for family in sorted(FAMILIES)}
    passed = sum(row["passed"] is True for row in rows.values())
    source = write_result("real_families", {"tolerance_of_largest_logit": TOLERANCE, "families": rows})
    record_headlines(source, {"real.families_passed": (passed, "families")})
    print(f"{passed} of {len(rows)} families passed")
    return 0 if passed == len(rows) else 1


def _row(trip: RoundTrip, folder: Path, family: str) -> dict[str, object]:
    try:
        run = trip.run(build_checkpoint(folder / family, family))
    except AssertionError as error:
        return {"passed": False, "why": str(error)[:500]}
    is_same = run.digest_prepared == run.digest_pulled
    return {
        "passed": is_same and run.tuned_steps == STEPS and run.generated_tokens > 0 and run.agrees,
        "difference": run.difference,
        "difference_of_codes": run.difference_of_codes,
        "largest_logit": run.largest_logit,
    }


if __name__ == "__main__":
    sys.exit(main())
