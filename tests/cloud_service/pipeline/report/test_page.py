"""The report page: everything an operator asks is on it, escaped, and with or without the record of the run."""

from __future__ import annotations

import dataclasses
import re

import pytest
from example_report import DIGEST, PROJECTIONS, example_report, example_run

from cloud_service.pipeline.report.page import density_grid, report_page, size_rows, stored_bits_per_weight
from cloud_service.pipeline.report.page_template import percent, readable_bytes, readable_seconds, short_number


def heading(page: str, title: str) -> bool:
    return f"<h2>{title}</h2>" in page


def test_the_page_without_a_run_leaves_out_the_plan() -> None:
    page = report_page(example_report()).decode()
    assert page.startswith("<!doctype html>")
    assert not heading(page, "Plan against actual")
    for title in ("Perplexity on held-out text", "Sensitive weights", "Quantisation error", "Size", "Provenance"):
        assert heading(page, title)


def test_the_page_says_what_perplexity_was_computed_in() -> None:
    report = example_report()
    report["perplexity"]["dtype"] = "bfloat16"
    assert "windows of at most 512, computed in bfloat16." in report_page(report).decode()


def test_the_page_with_a_run_tells_plan_actual_and_digest() -> None:
    page = report_page(example_report(), example_run()).decode()
    assert heading(page, "Plan against actual")
    assert re.search(r'calibrating</th><td class="n">1 h 00 min</td>\s*<td class="n">1 h 02 min</td>', page)
    assert re.search(r'accelerator</th><td class="n">24.0 GiB</td>\s*<td class="n">23.0 GiB</td>', page)
    assert "on the accelerator, 2 passes over the calibration" in page
    assert "earlier work is missing" not in page
    assert DIGEST in page


def test_the_times_of_a_resumed_run_are_marked_as_such() -> None:
    run = dataclasses.replace(example_run(), is_resumed=True)
    assert "earlier work is missing" in report_page(example_report(), run).decode()


def test_every_block_and_projection_has_a_cell() -> None:
    page = report_page(example_report(80)).decode()
    assert page.count('<td style="--v:') == 2 * 80 * len(PROJECTIONS)
    assert '<th scope="row">79</th>' in page


def test_a_flat_density_is_said_in_words_instead() -> None:
    report = example_report(scope="per_tensor")
    assert density_grid(report) is None
    page = report_page(report).decode()
    assert "its density is flat" in page
    assert page.count('<td style="--v:') == 2 * len(PROJECTIONS)


def test_the_density_is_the_share_of_sensitive_weights_over_the_sparsity() -> None:
    report = example_report(1)
    row = report["tensors"][0]
    row["sensitive_count"] = 82  # of 64 × 64 at 1 %: 40.96 would be average
    grid = density_grid(report)
    assert grid is not None
    assert grid.rows[0][1][0] == pytest.approx(82 / 40.96)


def test_the_sizes_add_up_to_the_download() -> None:
    report = example_report()
    rows = {row.label: row.size_bytes for row in size_rows(report, example_run(report["bytes_tensors"] + 5000))}
    assert rows["Documents and manifest"] == 5000
    assert rows["Download"] == report["bytes_tensors"] + 5000
    assert "Group scales and zeros" not in rows
    last = list(rows).index("All tensors")
    assert sum(list(rows.values())[:last]) == rows["All tensors"]


def test_the_bits_per_weight_worked_by_hand() -> None:
    report = example_report(1)
    report["parameters_quantized"] = 1000
    report["bytes_by_part"] |= {
        "codes": 500, "codebooks": 20, "scales": 5, "sensitive_values": 2, "sensitive_indices": 4, "sensitive_ranks": 4,
    }  # fmt: skip
    assert stored_bits_per_weight(report) == pytest.approx(8 * 535 / 1000)


def test_names_are_escaped() -> None:
    page = report_page(example_report(text="<script>alert(1)</script>.jsonl")).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_pictures_say_in_words_what_they_show() -> None:
    page = report_page(example_report(worst=0.05)).decode()
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 2
    assert "the largest 0.1 % hold 13 %" in labels[0]  # the example's curve is fraction^0.3
    assert "0.0500 (model.layers.0.self_attn.q_proj.weight)" in labels[1]


def test_every_table_has_heads_for_its_columns() -> None:
    page = report_page(example_report(), example_run()).decode()
    assert page.count("<table") == page.count("<thead>")
    assert "<th>" not in page  # each has a scope


def test_the_same_report_gives_the_same_page() -> None:
    assert report_page(example_report()) == report_page(example_report())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (15 << 20, "15.0 MiB"), (300 << 40, "300 TiB")],
)
def test_bytes_are_told_in_the_largest_unit(count: int, text: str) -> None:
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.416, "0.42 s"), (59.4, "59 s"), (312.0, "5 min 12 s"), (11220.0, "3 h 07 min")]
)
def test_seconds_are_told_as_people_do(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


def test_a_percentage_does_not_break() -> None:
    assert percent(0.0734) == "7.3\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0.0, "0"), (0.004, "0"), (0.0213, "0.02"), (0.996, "1.0"), (1.44, "1.4"), (9.96, "10"), (137.1, "137")],
)
def test_small_cells_hold_two_or_three_figures(figure: float, text: str) -> None:
    assert short_number(figure) == text
