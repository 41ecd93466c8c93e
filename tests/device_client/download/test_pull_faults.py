"""Every rule of a pull, driven by a proxy with faults: each fault at each place, by the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_table import CELLS, FaultTable, Row, fault_table
from memory_folder import memory_folder
from simulated_server import sign_reference
from tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def table(folder: Path) -> Iterator[FaultTable]:
    published = make_tiny_bundle(folder / "published").layout
    sign_reference(published, "tiny:latest")
    with fault_table(published) as table:
        yield table


@pytest.mark.parametrize(("row", "place", "code"), CELLS, ids=[f"{row.name} / {place}" for row, place, _ in CELLS])
def test_the_bytes_on_disk_verify_or_the_pull_fails_with_its_exit_code(
    table: FaultTable, folder: Path, row: Row, place: str, code: int
) -> None:
    outcome = table.run(row, place, folder / f"{row.name}-{place}")
    assert (outcome.code, outcome.complaints) == (code, ())
    if "Retry-After" in row.name and code == 0:
        assert outcome.waits == (7.0,)
