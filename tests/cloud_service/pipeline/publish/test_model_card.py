"""The bundle's README.md says how its dense part was made."""

from __future__ import annotations

import pytest
from example_report import example_report

from cloud_service.pipeline.publish.documents import model_card
from shared.bundle.config import SourceModel


@pytest.mark.parametrize(
    ("compensation", "line"),
    [
        (None, "* Dense part: 4-bit `lut`\n"),
        ("gptq", "* Dense part: 4-bit `lut`, errors compensated by `gptq`\n"),
    ],
)
def test_the_model_card_says_how_the_dense_part_was_made(compensation: str | None, line: str) -> None:
    report = example_report()
    report["quantizer"]["compensation"] = compensation
    assert line in model_card(SourceModel(id="example/a-model"), report)
