"""Repeats every attack that the tests know, and counts those that were refused.

An attack is a test with the marker ``attack``: it does what an attacker would do to a running service, a job's
process, a bundle or a device, and passes only where that is refused. Writes ``results/service_attacks.json`` with each
attack by name and ``service.attacks_refused``; exits with 1 where one got through. Takes about two minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from recording import record_headlines, write_result

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the attacks, record what became of them, and return the exit status."""
    with tempfile.TemporaryDirectory(prefix="zo-attacks-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "attack", f"--junitxml={report}"]
        subprocess.run(command, cwd=CHECKOUT, check=False, stdout=sys.stderr)
        attacks = outcomes(report)
    refused = sum(outcome == "refused" for outcome in attacks.values())
    path = write_result("service_attacks", {"tried": len(attacks), "refused": refused, "attacks": attacks})
    record_headlines(path, {"service.attacks_refused": (refused, f"of {len(attacks)}")})
    print(path.read_text())
    return 0 if attacks and refused == len(attacks) else 1


def outcomes(report: Path) -> dict[str, str]:
    """Return ``refused``, ``not tried`` or ``got through`` for each attack by its test's name."""
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - pytest's own file
    return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    if case.find("skipped") is not None:
        return "not tried"
    return "refused" if case.find("failure") is None and case.find("error") is None else "got through"


if __name__ == "__main__":
    sys.exit(main())
