"""Charts as text: where points stand, what is left out, and that names cannot leave their place."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from device_client.run_pages.chart import HEIGHT, MOST_POINTS, WIDTH, Level, Series, as_picture, line_chart


def chart_of(*points: tuple[float, float], **options: object) -> str:
    return line_chart([Series("a", points)], x_label="steps", y_label="loss", **options)  # type: ignore[arg-type]


def corners(chart: str) -> list[tuple[float, float]]:
    found = re.search(r'class="line c\d" points="([^"]*)"', chart)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_points_stand_between_the_ticks_around_them() -> None:
    (left, low), (middle, half), (right, high) = corners(chart_of((0, 0.0), (5, 0.5), (10, 1.0)))
    assert left < middle < right <= WIDTH
    assert HEIGHT > low > half > high > 0  # up is less in SVG
    assert (middle - left, low - half) == ((right - left) / 2, (low - high) / 2)


def test_a_logarithmic_axis_gives_each_power_of_ten_the_same_height() -> None:
    first, second, third = corners(chart_of((0, 0.01), (1, 0.1), (2, 1.0), is_log=True))
    assert math.isclose(first[1] - second[1], second[1] - third[1], abs_tol=0.11)  # rounded to a tenth


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    assert len(corners(chart_of((0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)))) == 2
    assert len(corners(chart_of((0, 1.0), (1, 0.0), (2, -1.0), (3, 2.0), is_log=True))) == 2
    assert chart_of() == chart_of((0, math.nan)) == ""


def test_a_constant_curve_and_a_single_point_are_drawn() -> None:
    assert len(corners(chart_of((0, 1.0), (1, 1.0)))) == 2
    assert "<circle" in chart_of((3, 1.0))


def test_long_curves_keep_their_ends_and_few_of_their_points() -> None:
    drawn = corners(chart_of(*((step, float(step)) for step in range(20_000))))
    assert len(drawn) == MOST_POINTS
    whole = corners(chart_of((0, 0.0), (19_999, 19_999.0)))
    assert (drawn[0], drawn[-1]) == (whole[0], whole[-1])


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e12, 1e12)), min_size=1, max_size=8),
    st.booleans(),
)
def test_every_finite_point_is_drawn_inside_the_picture(points: list[tuple[int, float]], is_log: bool) -> None:
    chart = line_chart([Series("a", points, has_dots=True)], x_label="x", y_label="y", is_log=is_log)
    dots = re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', chart)
    assert len(dots) == sum(y > 0 or not is_log for _, y in points)
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in dots)


def test_names_are_escaped_and_the_picture_is_well_formed() -> None:
    name = '<script>&"'
    chart = line_chart([Series(name, [(0, 1), (1, 2)])], x_label=name, y_label=name, levels=[Level(name, 1.5)])
    assert "<script>" not in chart
    texts = [element.text for element in ElementTree.fromstring(as_picture(chart)).iter() if element.text]  # noqa: S314
    assert texts.count(name) == 4  # two entries of the legend and two axes


def test_the_same_numbers_draw_the_same_bytes() -> None:
    assert as_picture(chart_of((0, 1.0), (1, 3.0))) == as_picture(chart_of((0, 1.0), (1, 3.0)))
