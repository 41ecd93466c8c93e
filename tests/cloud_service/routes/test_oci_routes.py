"""What OCI clients rely on besides manifests and blobs: errors, lists, referrers, content negotiation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloud_service.routes.registry import check_accepted, is_unchanged
from cloud_service.storage.keys import Scope
from shared.bundle.signature import signature_tag
from shared.bundle.statement import RELEASE_TYPE

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ZEROS = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/team/tiny/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/team/tiny/manifests/{ZEROS}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/team/tiny/blobs/{ZEROS}", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/absent/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/team/tiny/nothing", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_catalog?n=-1", 422, "UNSUPPORTED"),
        ("POST", "/v2/team/tiny/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PUT", "/v2/team/tiny/manifests/latest", 405, "UNSUPPORTED"),
    ],
)
def test_every_error_of_v2_has_the_form_of_the_specification_and_is_a_problem_too(
    api: Any, method: str, path: str, status: int, code: str
) -> None:
    answer = api.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert set(error) == {"code", "message", "detail"}
    assert error["code"] == code
    assert error["message"] == answer.json()["detail"]


def test_missing_rights_and_bad_ranges_have_that_form_too(api: Any) -> None:
    denied = api.client.get("/v2/", headers=api.headers(Scope.JOBS))
    assert (denied.status_code, denied.json()["errors"][0]["code"]) == (403, "DENIED")
    unauthorized = api.client.get("/v2/", headers={"Authorization": "Bearer zo_x_y"})
    assert (unauthorized.status_code, unauthorized.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    config = json.loads(api.client.get("/v2/team/tiny/manifests/latest").content)["config"]["digest"]
    cut = api.client.get(f"/v2/team/tiny/blobs/{config}", headers={"Range": "bytes=9-3"})
    assert (cut.status_code, cut.json()["errors"][0]["code"]) == (416, "RANGE_INVALID")


def test_tags_are_listed_page_by_page_with_a_link_to_the_next(own_api: Any) -> None:
    own_api.publish("team/tiny", "v1", variant=1)
    signatures = [signature_tag(own_api.digest), signature_tag(own_api.publish("team/tiny", "v2", variant=1))]
    whole = own_api.client.get("/v2/team/tiny/tags/list")
    assert whole.json() == {"name": "team/tiny", "tags": sorted(["latest", "v1", "v2", *signatures])}
    assert "link" not in whole.headers
    listed, url = [], "/v2/team/tiny/tags/list?n=2"
    while url:
        page = own_api.client.get(url)
        listed.append(page.json()["tags"])
        link = page.headers.get("link", "")
        assert link == "" or link.endswith('>; rel="next"')
        url = link.partition(">")[0].removeprefix("<")
    assert [len(tags) for tags in listed] == [2, 2, 1]
    assert [tag for tags in listed for tag in tags] == whole.json()["tags"]
    assert own_api.client.get("/v2/team/tiny/tags/list?n=0").json()["tags"] == []


def test_the_catalog_lists_each_name_once_page_by_page(own_api: Any) -> None:
    for name in ("a", "team/x", "z"):
        own_api.publish(name, "latest")
        own_api.publish(name, "other")
    assert own_api.client.get("/v2/_catalog").json() == {"repositories": ["a", "team/tiny", "team/x", "z"]}
    page = own_api.client.get("/v2/_catalog?n=3")
    assert page.json() == {"repositories": ["a", "team/tiny", "team/x"]}
    assert page.headers["link"] == '</v2/_catalog?n=3&last=team%2Fx>; rel="next"'
    assert own_api.client.get("/v2/_catalog?n=3&last=team%2Fx").json() == {"repositories": ["z"]}


def test_the_signature_of_a_bundle_is_its_referrer(api: Any) -> None:
    answer = api.client.get(f"/v2/team/tiny/referrers/{api.digest}")
    assert answer.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
    index = answer.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (entry,) = index["manifests"]
    assert (entry["mediaType"], entry["artifactType"]) == (MANIFEST, RELEASE_TYPE)
    manifest = api.client.get(f"/v2/team/tiny/manifests/{entry['digest']}")
    assert len(manifest.content) == entry["size"]
    assert manifest.json()["artifactType"] == RELEASE_TYPE
    assert manifest.content == api.client.get(f"/v2/team/tiny/manifests/{signature_tag(api.digest)}").content


def test_referrers_are_filtered_by_type_and_absent_ones_are_an_empty_index(api: Any) -> None:
    url = f"/v2/team/tiny/referrers/{api.digest}"
    for artifact_type, count in [(RELEASE_TYPE, 1), ("application/vnd.example", 0)]:
        answer = api.client.get(url, params={"artifactType": artifact_type})
        assert answer.headers["oci-filters-applied"] == "artifactType"
        assert len(answer.json()["manifests"]) == count
    assert "oci-filters-applied" not in api.client.get(url).headers
    for path in (f"/v2/team/tiny/referrers/{ZEROS}", f"/v2/absent/referrers/{api.digest}"):
        assert api.client.get(path).json()["manifests"] == []


@pytest.mark.parametrize("path", ["/v2/", "/v2/_catalog", "/v2/team/tiny/tags/list", "/v2/team/tiny/referrers/x"])
def test_head_gives_the_headers_of_get(api: Any, path: str) -> None:
    head, get = api.client.head(path), api.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "docker-distribution-api-version"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/*", 200),
        (f"application/vnd.docker.distribution.manifest.v2+json, {MANIFEST};q=0.5", 200),
        ("text/html, */*;q=0.1", 200),
        ("application/vnd.docker.distribution.manifest.v2+json", 406),
        (f"{MANIFEST};q=0", 406),
        ("text/*", 406),
    ],
)
def test_a_manifest_is_served_to_those_who_accept_its_type(api: Any, accept: str, status: int) -> None:
    answer = api.client.get("/v2/team/tiny/manifests/latest", headers={"Accept": accept})
    assert answer.status_code == status
    if status == 406:
        assert answer.json()["type"] == "not-acceptable"


def test_no_accept_header_accepts_everything_and_several_are_one_list() -> None:
    check_accepted([], MANIFEST)
    check_accepted(["text/html", MANIFEST.upper()], MANIFEST)


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, False), ("", False), ('"a"', True), ('"b", "a"', True), ('W/"a"', True), ("*", True), ('"b"', False),
     ("a", False)],
)  # fmt: skip
def test_if_none_match_is_a_list_of_tags(header: str | None, expected: bool) -> None:
    assert is_unchanged(header, '"a"') is expected


def test_a_blob_that_the_client_has_is_not_sent_again(api: Any) -> None:
    etag = api.client.get("/v2/team/tiny/manifests/latest").headers["etag"]
    for header in (f'"x", {etag}', f"W/{etag}", "*"):
        unchanged = api.client.get("/v2/team/tiny/manifests/latest", headers={"If-None-Match": header})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
