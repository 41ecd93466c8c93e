"""Runs the cases of machine, disk and processes as people have them, and counts those whose outcome is right.

A case (``d…`` in the folder of cases) is a script and a text that says what is right; below that text is written as
what can be compared, as ``real_cases.py`` does for the cases of model folders. The full disk is a tmpfs of 300 KiB, so
that case needs root. A case takes about half a minute. ``--only d03,d06`` runs some, and records nothing. Never edits
the cases.
Writes ``results/machine_cases.json`` and ``cases.d_right``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from real_cases import Collection, Expectation, run_collection

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    # What is refused says what was found and what is needed; a port, a folder, a key and a proxy are named.
    "d01": (
        Expectation(
            "11 11 2 0 4 2 0 [25] 6 6 3 0 6",
            (r"another zo-cloud serve uses", r'"status":"succeeded"', r"127\.0\.0\.1:9\b.*dead proxy rc=6"),
        ),
    ),
    "d02": (Expectation("7 7 7 0", (r"\(\d+ bytes free\).*prepare rc=7", r"\(0 bytes free\).*tune rc=7")),),
    "d03": (Expectation("11 0 11 0", ("another zo-device is tuning", "another zo-cloud prepare works")),),
    "d04": (Expectation("7 7 7 7 7 0 7 7 7 0 7 7 7", ("Too many levels of symbolic links", "no folder can be made")),),
    "d05": (Expectation("5 0 0 4", (r"notes\.txt", "2 bundles in")),),
    # The killed run has the bytes of the whole one, and the other seed others.
    "d06": (Expectation("0", (r"^([0-9a-f]{16})\n\1\n(?!\1)[0-9a-f]{16}$",)),),
    "d07": (Expectation("0 0 0"),),
    "d10": (Expectation("7 [47] 7", (r"signing-key\.pem cannot be written", "cannot access '.*b-d10'")),),
}  # fmt: skip
"""Number of a case → what is right, any of them."""


@contextmanager
def small_disk(number: str, work: Path) -> Iterator[None]:
    """Mount the file system that the case of a full disk fills."""
    if number != "d02":
        yield
        return
    disk = work / "tiny"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", disk], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases of machine, disk and processes."""
    return run_collection(Collection(EXPECTATIONS, "machine_cases", "cases.d_right", small_disk), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
