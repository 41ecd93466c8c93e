"""``If-None-Match`` as RFC 9110 writes it."""

from __future__ import annotations

import pytest

from cloud_service.routes.conditional import is_unchanged

ETAG = '"sha256:ab"'


@pytest.mark.parametrize(
    "header",
    [
        '"sha256:ab"',
        'W/"sha256:ab"',
        '"other", "sha256:ab"',
        '"other","sha256:ab","third"',
        'W/"other" , W/"sha256:ab"',
        '"a,b", "sha256:ab"',
        ', ,"sha256:ab",',
        "*",
        " * ",
    ],
)
def test_a_list_that_holds_the_tag_or_a_star_matches(header: str) -> None:
    assert is_unchanged(header, ETAG)
    assert is_unchanged(header, f"W/{ETAG}")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        ",",
        '"other"',
        '"sha256:ab',
        "sha256:ab",
        '"x sha256:ab"',
        'w/"sha256:ab"',
        '"other" "sha256:ab"',
        '"sha256:ab";q=1',
        '*, "other"',
        '"a, "sha256:ab", b"',
    ],
)
def test_other_tags_and_malformed_lists_do_not(header: str | None) -> None:
    assert not is_unchanged(header, ETAG)


def test_a_long_malformed_list_costs_no_more_than_its_length() -> None:
    assert not is_unchanged('"a" , ' * 100_000 + "x", ETAG)
    assert not is_unchanged("," * 100_000 + " " * 100_000 + "x", ETAG)
