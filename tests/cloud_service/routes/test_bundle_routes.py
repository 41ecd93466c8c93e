"""Lists of bundles in pages; who may retag and delete; what every change leaves in the audit record."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_service.storage.keys import Scope

ZEROS = "sha256:" + "0" * 64


def named(api: Any, name: str, tag: str) -> str | None:
    """The digest that a tag names over HTTP."""
    answer = api.client.get(f"/v2/{name}/manifests/{tag}")
    return answer.headers["docker-content-digest"] if answer.status_code == 200 else None


def audit(api: Any) -> list[tuple[Any, ...]]:
    """Action, name, tag and digests of every change but those of keys, newest first."""
    entries = api.client.get("/v1/audit").json()["entries"]
    shown = ("action", "name", "tag", "digest_before", "digest_after")
    return [tuple(entry[field] for field in shown) for entry in entries if entry["name"]]


def test_a_list_comes_in_pages_whose_next_leads_to_the_following(own_api: Any) -> None:
    for tag in ("a", "b", "c"):
        own_api.publish("other", tag)
    pages, after = [], None
    while True:
        query = {"limit": 3} | ({"after": after} if after else {})
        page = own_api.client.get("/v1/bundles", params=query).json()
        pages.append([f"{bundle['name']}:{bundle['tag']}" for bundle in page["bundles"]])
        after = page["next"]
        if after is None:
            break
    assert pages == [["other:a", "other:b", "other:c"], ["team/tiny:latest"]]
    only = own_api.client.get("/v1/bundles", params={"name": "team/tiny"}).json()
    assert [bundle["tag"] for bundle in only["bundles"]] == ["latest"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "after=" + "x" * 401])
def test_a_page_that_cannot_be_is_a_422_problem(api: Any, query: str) -> None:
    answer = api.client.get(f"/v1/bundles?{query}")
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-request")


def test_a_tag_is_moved_and_rolled_back_and_every_step_is_in_the_audit_record(own_api: Any) -> None:
    first = own_api.publish("team/m", "latest")
    second = own_api.publish("team/m", "latest", variant=1)
    url = "/v1/bundles/team/m/tags/latest"
    back = own_api.client.post(url, json={"back": True})
    assert back.status_code == 200
    assert back.json()["digest"] == named(own_api, "team/m", "latest") == first
    forth = own_api.client.post(url, json={"digest": second})
    assert forth.json()["version"] > back.json()["version"]
    assert audit(own_api)[:4] == [
        ("retag", "team/m", "latest", first, second),
        ("retag", "team/m", "latest", second, first),
        ("publish", "team/m", "latest", first, second),
        ("publish", "team/m", "latest", None, first),
    ]
    history = own_api.client.get(f"{url}/history", params={"limit": 1}).json()
    assert [entry["digest_after"] for entry in history["entries"]] == [second]
    rest = own_api.client.get(f"{url}/history", params={"after": history["next"]}).json()
    assert [entry["action"] for entry in rest["entries"]] == ["retag", "publish", "publish"]


def test_the_audit_record_names_the_key_and_the_address(own_api: Any) -> None:
    headers = own_api.headers(Scope.JOBS, publishes=["team/*"])
    own_api.client.post("/v1/bundles/team/tiny/tags/stable", json={"digest": own_api.digest}, headers=headers)
    entry = own_api.client.get("/v1/audit").json()["entries"][0]
    assert entry["action"] == "retag"
    assert entry["key_id"] == headers["Authorization"].split("_")[1]
    assert entry["peer"] == "testclient"
    created = own_api.client.get("/v1/audit").json()["entries"][1]
    assert (created["action"], created["subject_key"]) == ("create-key", entry["key_id"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"digest": ZEROS}, 404),
        ({"back": True}, 404),
        ({}, 422),
        ({"digest": ZEROS, "back": True}, 422),
        ({"digest": "latest"}, 422),
    ],
)
def test_a_tag_can_only_name_what_was_published_under_its_name(own_api: Any, body: dict[str, Any], status: int) -> None:
    own_api.publish("other", "latest", variant=1)
    for tag in ("latest", "new"):
        assert own_api.client.post(f"/v1/bundles/team/tiny/tags/{tag}", json=body).status_code == status
    assert named(own_api, "team/tiny", "latest") == own_api.digest


@pytest.mark.attack
@pytest.mark.parametrize("tag", ["sha256-" + "0" * 64 + ".sig", ".hidden", "x" * 129])
def test_no_tag_can_be_made_that_looks_like_a_signatures_or_is_malformed(own_api: Any, tag: str) -> None:
    answer = own_api.client.post(f"/v1/bundles/team/tiny/tags/{tag}", json={"digest": own_api.digest})
    assert (answer.status_code, answer.json()["param"]) == (422, "tag")


def test_a_deleted_tag_leaves_the_bundle_readable_and_a_deleted_bundle_is_gone(own_api: Any) -> None:
    second = own_api.publish("team/tiny", "latest", variant=1)
    layer = own_api.client.get("/v2/team/tiny/manifests/latest").json()["layers"][0]["digest"]
    assert own_api.client.delete("/v1/bundles/team/tiny/tags/latest").status_code == 204
    assert named(own_api, "team/tiny", "latest") is None
    assert named(own_api, "team/tiny", second) == second
    assert own_api.client.delete(f"/v1/bundles/team/tiny/digests/{second}").status_code == 204
    assert named(own_api, "team/tiny", second) is None
    assert named(own_api, "team/tiny", own_api.digest) == own_api.digest
    assert own_api.client.head(f"/v2/team/tiny/blobs/{layer}").status_code == 200
    assert own_api.client.delete(f"/v1/bundles/team/tiny/digests/{own_api.digest}").status_code == 204
    assert own_api.client.head(f"/v2/team/tiny/blobs/{layer}").status_code == 404
    assert [entry[0] for entry in audit(own_api)[:3]] == ["delete-bundle", "delete-bundle", "delete-tag"]
    for path in ("tags/latest", f"digests/{second}", "digests/latest", "digests/sha256:1"):
        assert own_api.client.delete(f"/v1/bundles/team/tiny/{path}").status_code == 404


def test_deleting_a_bundle_deletes_the_tags_that_name_it(own_api: Any) -> None:
    own_api.publish("team/tiny", "stable")
    other = own_api.publish("team/tiny", "next", variant=1)
    own_api.client.delete(f"/v1/bundles/team/tiny/digests/{own_api.digest}")
    listed = own_api.client.get("/v1/bundles").json()["bundles"]
    assert [(bundle["tag"], bundle["digest"]) for bundle in listed] == [("next", other)]


@pytest.mark.attack
@pytest.mark.parametrize("publishes", [["other/*"], ["team"], ["tea*m"], []])
def test_tags_of_others_are_refused_naming_key_name_and_patterns(own_api: Any, publishes: list[str]) -> None:
    headers = own_api.headers(Scope.JOBS, publishes=publishes)
    key_id, before = headers["Authorization"].split("_")[1], audit(own_api)
    for method, path, body in [
        ("POST", "/v1/bundles/team/tiny/tags/latest", {"digest": own_api.digest}),
        ("POST", "/v1/bundles/team/tiny/tags/latest", {"back": True}),
        ("GET", "/v1/bundles/team/tiny/tags/latest/history", None),
        ("DELETE", "/v1/bundles/team/tiny/tags/latest", None),
        ("DELETE", f"/v1/bundles/team/tiny/digests/{own_api.digest}", None),
        ("POST", "/prepare-model", {"model": "tiny", "name": "team/tiny"}),
    ]:
        answer = own_api.client.request(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
        for word in (key_id, "team/tiny", *publishes, "zo-cloud keys create"):
            assert word in answer.json()["detail"]
    assert audit(own_api) == before
    assert own_api.client.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.attack
def test_a_name_that_a_request_leaves_out_is_checked_as_the_one_it_will_get(own_api: Any) -> None:
    headers = own_api.headers(Scope.JOBS, publishes=["team/*"])
    refused = own_api.client.post("/prepare-model", json={"model": "tiny"}, headers=headers)
    assert refused.status_code == 403
    assert "not 'tiny'" in refused.json()["detail"]
    allowed = own_api.client.post("/prepare-model", json={"model": "tiny", "name": "team/x"}, headers=headers)
    assert allowed.status_code == 202


@pytest.mark.attack
def test_keys_that_read_bundles_or_basic_authentication_change_nothing(own_api: Any) -> None:
    reader = own_api.headers(Scope.BUNDLES)
    assert own_api.client.delete("/v1/bundles/team/tiny/tags/latest", headers=reader).status_code == 403
    assert own_api.client.get("/v1/audit", headers=reader).status_code == 403
    assert own_api.client.get("/v1/audit", headers=own_api.headers(Scope.JOBS)).status_code == 403
    assert named(own_api, "team/tiny", "latest") == own_api.digest


def test_an_immutable_tag_names_one_digest_for_ever(own_api: Any) -> None:
    first = own_api.publish("team/m", "v1")
    second = own_api.publish("team/m", "latest", variant=1)
    answer = own_api.client.post("/v1/bundles/team/m/tags/v1", json={"digest": second})
    assert (answer.status_code, answer.json()["type"], answer.json()["param"]) == (409, "tag-is-immutable", "tag")
    assert own_api.client.post("/v1/bundles/team/m/tags/v1", json={"digest": first}).status_code == 200
    worker = own_api.headers(Scope.JOBS)
    for path in ("tags/v1", f"digests/{first}"):
        assert own_api.client.delete(f"/v1/bundles/team/m/{path}", headers=worker).status_code == 409
    assert named(own_api, "team/m", "v1") == first
    assert own_api.client.delete("/v1/bundles/team/m/tags/v1").status_code == 204
