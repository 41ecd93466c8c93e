"""The reading part of the OCI distribution API."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cloud_service.routes.registry import requested_span
from cloud_service.storage.keys import Scope


def largest_blob(api: Any) -> tuple[str, bytes]:
    manifest = json.loads(api.client.get("/v2/team/tiny/manifests/latest").content)
    blob = max(manifest["layers"], key=lambda layer: layer["size"])
    return f"/v2/team/tiny/blobs/{blob['digest']}", api.service.bundles.layout.blob_path(blob["digest"]).read_bytes()


def test_a_manifest_is_served_by_tag_and_by_digest_with_its_media_type(api: Any) -> None:
    by_tag = api.client.get("/v2/team/tiny/manifests/latest")
    by_digest = api.client.get(f"/v2/team/tiny/manifests/{api.digest}")
    assert by_tag.content == by_digest.content
    assert "sha256:" + hashlib.sha256(by_tag.content).hexdigest() == api.digest
    for answer in (by_tag, by_digest):
        assert answer.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
        assert answer.headers["docker-content-digest"] == api.digest
    assert by_tag.headers["cache-control"] == "no-cache"
    assert "immutable" in by_digest.headers["cache-control"]


def test_head_tells_length_and_digest_without_the_bytes(api: Any) -> None:
    url, data = largest_blob(api)
    for path in (url, "/v2/team/tiny/manifests/latest"):
        head = api.client.head(path)
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["docker-content-digest"].startswith("sha256:")
    assert int(api.client.head(url).headers["content-length"]) == len(data)


def test_a_blob_is_served_whole_and_may_be_cached_for_ever(api: Any) -> None:
    url, data = largest_blob(api)
    answer = api.client.get(url)
    assert answer.content == data
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]
    unchanged = api.client.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_list_of_etags_over_several_headers_is_understood(api: Any) -> None:
    url, data = largest_blob(api)
    etag = api.client.get(url).headers["etag"]
    for headers in ([f'"other", W/{etag}'], ['"other"', etag], ["*"]):
        lines = [("If-None-Match", header) for header in headers]
        unchanged = api.client.get(url, headers=[*lines, ("Range", "bytes=0-1")])
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert api.client.get(url, headers={"If-None-Match": '"other", "third"'}).content == data


@pytest.mark.parametrize(
    ("header", "first", "end"), [("bytes=0-99", 0, 100), ("bytes=100-", 100, None), ("bytes=-7", -7, None)]
)
def test_a_range_gets_exactly_its_bytes(api: Any, header: str, first: int, end: int | None) -> None:
    url, data = largest_blob(api)
    answer = api.client.get(url, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == data[first:end]
    start = first if first >= 0 else len(data) + first
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(data)}"


def test_the_end_of_a_range_beyond_the_blob_is_cut(api: Any) -> None:
    url, data = largest_blob(api)
    answer = api.client.get(url, headers={"Range": f"bytes=10-{len(data) + 1000}"})
    assert (answer.status_code, answer.content) == (206, data[10:])


def test_a_range_of_another_version_of_the_blob_gets_all_of_it(api: Any) -> None:
    url, data = largest_blob(api)
    same, other = f'"{url.rpartition("/")[2]}"', '"sha256:other"'
    answers = [api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": tag}) for tag in (same, other)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(206, data[:10]), (200, data)]


@pytest.mark.parametrize("header", ["bytes=9-3", "bytes=abc", "bytes", "bytes=-", "bytes=-0", "lines=0-1",
                                    "bytes=0-1,4-5", "bytes=99999999-", "bytes=0x1-2", "bytes=²-3",
                                    f"bytes={'1' * 5000}-", f"bytes=0-{'1' * 5000}",
                                    f"bytes=-{'1' * 5000}"])  # fmt: skip
def test_a_bad_range_is_416_with_the_length_of_the_blob(api: Any, header: str) -> None:
    url, data = largest_blob(api)
    answer = api.client.get(url, headers={"Range": header.encode()})
    assert answer.status_code == 416
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-range"] == f"bytes */{len(data)}"
    assert answer.json()["type"] == "invalid-range"


def test_no_range_of_an_empty_blob_can_be_satisfied() -> None:
    assert requested_span(None, 0) is None
    for header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Exception, match="of 0 bytes"):
            requested_span(header, 0)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/team/tiny/manifests/absent",
        "/v2/team/other/manifests/latest",
        "/v2/team/tiny/manifests/sha256:" + "0" * 64,
        "/v2/team/tiny/blobs/sha256:" + "0" * 64,
        "/v2/team/tiny/blobs/sha256:short",
        "/v2/team/tiny/blobs/..%2f..%2findex.json",
        "/v2/team/tiny/tags",
        "/v1/bundles/team/tiny/report",
        "/v1/bundles/team/absent/report",
    ],
)
def test_what_does_not_exist_is_a_404_problem(api: Any, path: str) -> None:
    answer = api.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "not-found"


def test_the_list_tells_each_bundle_and_its_report(api: Any) -> None:
    (bundle,) = api.client.get("/v1/bundles").json()["bundles"]
    assert (bundle["name"], bundle["tag"], bundle["digest"]) == ("team/tiny", "latest", api.digest)
    assert bundle["base_model"] == "tests/tiny"
    assert bundle["report_url"] is None


def test_reading_needs_the_scope_bundles_and_starting_needs_jobs(api: Any) -> None:
    reader, worker = api.headers(Scope.BUNDLES), api.headers(Scope.JOBS)
    assert api.client.get("/v2/", headers=reader).status_code == 200
    assert api.client.get("/v1/jobs", headers=worker).status_code == 200
    for headers, method, path in [
        (worker, "GET", "/v2/"),
        (worker, "GET", "/v1/bundles"),
        (reader, "GET", "/v1/jobs"),
        (reader, "POST", "/prepare-model"),
    ]:
        answer = api.client.request(method, path, headers=headers)
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "forbidden"
        assert "zo-cloud keys create" in answer.json()["detail"]


def test_basic_authentication_reads_but_does_not_write(api: Any) -> None:
    token = api.headers(Scope.ADMIN)["Authorization"].removeprefix("Bearer ")
    import base64

    basic = {"Authorization": "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()}
    assert api.client.get("/v2/", headers=basic).status_code == 200
    assert api.client.post("/prepare-model", headers=basic, json={"model": "gpt2"}).status_code == 401
    assert api.client.get("/v2/", headers={"Authorization": "Basic !"}).status_code == 401
