"""What a pull does in each fault at each place: runs the table of ``support/fault_table.py`` and writes every cell.

Each cell is one device that pulls a signed tiny bundle over real HTTP through a proxy with one fault. Writes
``results/pull_faults.json``, with the exit code of each cell and what was wrong besides, and ``pull.fault_cells`` and
``pull.fault_cells_green``. Takes about 20 seconds; ends with 1 where a cell is not green.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from recording import record_headlines, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from fault_table import CELLS, fault_table
from memory_folder import memory_folder
from simulated_server import sign_reference
from tiny_bundle import make_tiny_bundle


def main() -> int:
    """Run all cells and record them; return the exit code."""
    cells: dict[str, dict[str, Any]] = {}
    with memory_folder() as folder:
        published = make_tiny_bundle(folder / "published").layout
        sign_reference(published, "tiny:latest")
        with fault_table(published) as table:
            for number, (row, place, expected) in enumerate(CELLS):
                outcome = table.run(row, place, folder / str(number))
                cells.setdefault(row.name, {})[place] = {
                    "exit_code": outcome.code,
                    "expected": expected,
                    "complaints": list(outcome.complaints),
                    "is_green": outcome.code == expected and not outcome.complaints,
                }
    green = sum(cell["is_green"] for row in cells.values() for cell in row.values())
    path = write_result("pull_faults", {"cells": cells, "count": len(CELLS), "green": green})
    record_headlines(path, {"pull.fault_cells": (len(CELLS), "cells"), "pull.fault_cells_green": (green, "cells")})
    for name, row in cells.items():
        shown = "  ".join(
            f"{place} {cell['exit_code']}{'' if cell['is_green'] else ' ✗'}" for place, cell in row.items()
        )
        print(f"{name:45} {shown}")
    print(f"{green} of {len(CELLS)} cells are green")
    return 0 if green == len(CELLS) else 1


if __name__ == "__main__":
    sys.exit(main())
