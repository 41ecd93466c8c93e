"""Every refused request says what was found, what was needed and what to do next, and ``param`` names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

JSON = {"Content-Type": "application/json"}


def parts_of(answer: Any) -> tuple[str, str, str]:
    """The three lines of a problem: what was found, needed, and to do next."""
    found, needed, following = answer.json()["detail"].split("\n")
    assert needed.startswith("Needed: ")
    assert following.startswith("Next: ")
    return found, needed.removeprefix("Needed: "), following.removeprefix("Next: ")


@pytest.mark.parametrize(
    ("fields", "param", "found", "needed"),
    [
        ({"name": "Upper"}, "name", 'name = "Upper"', "lower-case letters and digits, with single"),
        ({"name": "n" * 201}, "name", 'name = "nnn', "a string of at most 200 characters"),
        ({"tag": ".hidden"}, "tag", 'tag = ".hidden"', "at most 128 letters, digits"),
        ({"tag": "x.sig"}, "tag", 'tag = "x.sig"', "a tag that does not end in .sig"),
        ({"revision": "a..b"}, "revision", 'revision = "a..b"', "a revision without '..'"),
        ({"sparsity": 0}, "sparsity", "sparsity = 0", "a number above 0.0"),
        ({"sparsity": "much"}, "sparsity", 'sparsity = "much"', "a number"),
        ({"scope": "some"}, "scope", 'scope = "some"', "one of 'per_tensor' or 'global'"),
        ({"force": "perhaps"}, "force", 'force = "perhaps"', "true or false"),
        ({"quantizer": {"bits": 5}}, "quantizer.bits", "quantizer.bits = 5", "one of 2, 3, 4 or 8"),
        ({"quantizer": []}, "quantizer", "quantizer = []", "an object"),
        ({"calibration": {"sequences": 1}}, "calibration.sequences", "calibration.sequences = 1", "at least 2"),
        ({"calibration": {"seed": 1.5}}, "calibration.seed", "calibration.seed = 1.5", "a whole number"),
        (
            {"calibration": {"text": "\0"}},
            "calibration.text",
            'calibration.text = "\\u0000"',
            "Unicode text without NUL",
        ),
        ({"calibration": {"task": "SST-2"}}, "calibration", 'calibration = {"task": "SST-2"}', "c4 has no task rows"),
        ({"colour": "red"}, "colour", 'colour = "red"', "a field that exists"),
        ({"model": None}, "model", "model = null", "a string"),
    ],
)
def test_a_field_is_named_with_its_value_and_what_it_needs(
    api: Any, fields: dict[str, Any], param: str, found: str, needed: str
) -> None:
    answer = api.client.post("/prepare-model", json={"model": "tiny", **fields})
    assert (answer.status_code, answer.json()["param"]) == (422, param)
    said = parts_of(answer)
    assert said[0].startswith(found)
    assert needed in said[1]
    assert "/openapi.json" in said[2]
    assert answer.json()["errors"][0] == {"param": param, "message": f"{said[0]}; needed: {said[1]}"}


@pytest.mark.parametrize(
    ("query", "param", "found", "needed"),
    [
        ("/v1/jobs?limit=0", "limit", 'limit = "0"', "a number that is at least 1"),
        ("/v1/jobs?limit=ten", "limit", 'limit = "ten"', "a whole number"),
        ("/v1/jobs?status=odd", "status", 'status = "odd"', "one of 'queued', 'running'"),
        (f"/v1/bundles?after={'x' * 401}", "after", 'after = "xxx', "a string of at most 400 characters"),
    ],
)
def test_so_is_a_part_of_the_address(api: Any, query: str, param: str, found: str, needed: str) -> None:
    answer = api.client.get(query)
    assert (answer.status_code, answer.json()["param"]) == (422, param)
    said = parts_of(answer)
    assert said[0].startswith(found)
    assert needed in said[1]


def test_a_field_that_is_missing_is_said_to_be_missing(api: Any) -> None:
    answer = api.client.post("/prepare-model", json={})
    assert (parts_of(answer)[:2], answer.json()["param"]) == (("no model", "a value for it"), "model")
    assert parts_of(api.client.post("/prepare-model"))[:2] == ("no body", "a value for it")
    tag = f"/v1/bundles/team/tiny/tags/{'latest'}"
    assert parts_of(api.client.post(tag, json={}))[:2] == ("body = {}", "either a digest or back: true")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "line 1 column 2"),
        (b'{"model": "tiny",\n "sparsity": }', "line 2 column 14"),
        (b"\n\n\nmodel", "line 4 column 1"),
        (b"{} {}", "line 1 column 4"),
    ],
)
def test_broken_json_is_located_and_no_field_is_blamed(api: Any, body: bytes, place: str) -> None:
    answer = api.client.post("/prepare-model", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "param" not in answer.json()
    found, needed, _ = parts_of(answer)
    assert found.startswith("a body that is not JSON: ")
    assert found.endswith(place)
    assert needed == "one JSON document"


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"[" * 30_000])
def test_a_body_that_no_parser_reads_says_what_is_needed(api: Any, body: bytes) -> None:
    answer = api.client.post("/prepare-model", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert "JSON" in parts_of(answer)[1]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, "a body without a Content-Type"),
        ({"Content-Type": "text/plain"}, 'a body of Content-Type "text/plain"'),
    ],
)
def test_a_body_that_is_not_sent_as_json_says_which_header_is_needed(api: Any, headers: Any, found: str) -> None:
    answer = api.client.post("/prepare-model", content=b'{"model": "tiny"}', headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (422, "Content-Type")
    assert parts_of(answer)[:2] == (found, "the header Content-Type: application/json")


def test_the_errors_of_the_framework_say_it_too(api: Any) -> None:
    assert parts_of(api.client.get("/nowhere"))[1] == "a route of this service"
    assert parts_of(api.client.delete("/v1/jobs"))[1] == "the method GET"
    assert parts_of(api.client.post("/prepare-model", content=b" " * 70_000, headers=JSON))[1] == "a shorter body"


def test_over_http_the_next_step_is_a_request_or_the_operators(api: Any) -> None:
    tag = "/v1/bundles/team/tiny/tags/latest"
    for answer, step in (
        (api.client.post(tag, json={"back": True}), f"GET {tag}/history"),
        (api.client.post(tag, json={"digest": "sha256:" + "0" * 64}), "GET /v1/bundles?name=team/tiny"),
        (api.client.delete("/v1/bundles/team/tiny/tags/absent"), "GET /v1/bundles?name=team/tiny"),
        (api.client.get("/v1/bundles/nobody/report"), "GET /v1/bundles"),
    ):
        assert answer.status_code == 404
        assert answer.json()["detail"].endswith(f"\nNext: {step}")
    folder = api.client.post("/prepare-model", json={"model": "tiny", "calibration": {"text": "no.txt"}})
    assert "the operator allows" in folder.json()["detail"]


@pytest.mark.attack
def test_what_a_stranger_sent_is_shown_printable_and_of_bounded_length(api: Any) -> None:
    hostile = "\x1b[31m\u202e" + "x" * 50_000
    answers = [
        api.client.post("/prepare-model", json={"model": "tiny", "name": hostile}),
        api.client.post("/prepare-model", json={"model": "tiny", hostile: 1}),
        api.client.post("/prepare-model", json={"model": "tiny", **{f"f{number}": 1 for number in range(5_000)}}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert len(answer.content) < 8_000
        assert all(letter.isprintable() or letter == "\n" for letter in answer.json()["detail"])
    assert len(answers[2].json()["errors"]) == 20
    assert json.loads(answers[0].content)["param"] == "name"
