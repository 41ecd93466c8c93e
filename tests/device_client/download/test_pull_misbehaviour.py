"""Pulling from a server that misbehaves: what repairs itself, what is refused, and what is visible afterwards."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from simulated_server import (
    Answer,
    InMemoryTransport,
    Request,
    SimulatedServer,
    break_after,
    flip_byte,
    instead,
    is_blob,
    sign_reference,
)

from device_client.download.partial import Disk
from device_client.download.pull import PullOptions
from shared.bundle.digest import digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest
from shared.bundle.read import read_bundle
from shared.errors import (
    BlobMissing,
    BlobTruncated,
    Conflict,
    DigestMismatch,
    DiskError,
    NetworkError,
    NotFound,
    Unauthorized,
)

CHUNK = 4096
SERVER, ELSEWHERE = "http://models.test", "http://cdn.test"


def layer_bytes(layout: ImageLayout) -> int:
    manifest = parse_manifest(layout.read_blob(layout.resolve("tiny:latest").digest, max_bytes=1 << 20))
    return sum(layer.size for layer in manifest.layers)


def is_visible(device: Any) -> bool:
    reference = device.layout.references().get("tiny:latest")
    return reference is not None and read_bundle(device.layout, reference.digest) is not None


def test_a_pull_makes_the_whole_bundle_visible_and_fetches_every_layer_byte_once(device, server, published) -> None:
    pulled = device.pull()
    assert is_visible(device)
    assert server.layer_bytes_sent() == pulled.fetched_bytes == layer_bytes(published)
    assert (pulled.is_first_contact, pulled.was_complete) == (True, False)


def test_pulling_again_fetches_no_layer_byte_and_says_so(device, server) -> None:
    device.pull()
    before = server.layer_bytes_sent()
    pulled = device.pull()
    assert (pulled.was_complete, pulled.fetched_bytes, pulled.is_first_contact) == (True, 0, False)
    assert server.layer_bytes_sent() == before


def test_no_request_carries_if_match_or_if_range(device, server) -> None:
    device.pull()
    names = {name.lower() for request, _ in server.answers for name in request.headers}
    assert not names & {"if-match", "if-range", "if-none-match"}


def test_a_chunk_damaged_in_transit_is_refetched_alone(device, server, published, trunk: Descriptor) -> None:
    server.misbehave(is_blob(trunk.digest, begin=2 * CHUNK), flip_byte(100))
    device.pull()
    assert is_visible(device)
    assert server.layer_bytes_sent() == layer_bytes(published) + CHUNK


def test_a_connection_cut_within_a_chunk_goes_on_at_that_byte(device, server, published, trunk: Descriptor) -> None:
    server.misbehave(is_blob(trunk.digest, begin=CHUNK), break_after(1500))
    device.pull()
    assert is_visible(device)
    assert server.layer_bytes_sent() == layer_bytes(published)
    assert any(request.span == (CHUNK + 1500, 2 * CHUNK - 1) for request, _ in server.answers)


def test_a_line_that_drops_every_1000_bytes_still_gets_to_the_end(device, server, published) -> None:
    server.misbehave(lambda request: request.span is not None, break_after(1000), times=10_000)
    device.pull(retries=1)
    assert is_visible(device)


def test_a_body_that_ends_early_without_an_error_is_taken_up(device, server, trunk: Descriptor) -> None:
    server.misbehave(
        is_blob(trunk.digest, begin=0),
        lambda _, answer: replace(
            answer, body=answer.body[:10], headers={"Content-Range": answer.headers["Content-Range"]}
        ),
    )
    device.pull()
    assert is_visible(device)


def test_a_server_that_ignores_range_is_read_once_per_blob(device, server, published) -> None:
    server.ignores_range = True
    device.pull(options=PullOptions(connections=1))
    assert is_visible(device)
    whole = [request for request, answer in server.answers if request.is_for_blob and not request.span]
    assert len(whole) == len({request.path for request in whole})


def test_a_damaged_chunk_of_a_server_that_ignores_range_is_fetched_again(device, server, trunk: Descriptor) -> None:
    server.ignores_range = True
    server.misbehave(lambda r: r.path.endswith(trunk.digest) and r.span is None, flip_byte(CHUNK + 1))
    server.misbehave(lambda r: r.path.endswith(trunk.digest) and r.span is None, break_after(3 * CHUNK))
    device.pull()
    assert is_visible(device)


def test_an_answer_for_another_range_is_not_written(device, server, trunk: Descriptor) -> None:
    def shifted(request: Request, answer: Answer) -> Answer:
        return replace(answer, headers={"Content-Range": f"bytes 0-{CHUNK - 1}/{trunk.size}"})

    server.misbehave(is_blob(trunk.digest, begin=CHUNK), shifted)
    device.pull()
    assert is_visible(device)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_temporary_status_is_tried_again(device, server, trunk: Descriptor, status: int) -> None:
    server.misbehave(is_blob(trunk.digest), instead(Answer(status)), times=2)
    device.pull()
    assert is_visible(device)
    assert device.waits


def test_retry_after_is_waited_for(device, server) -> None:
    server.misbehave(lambda r: "/manifests/latest" in r.path, instead(Answer(503, {"Retry-After": "17"})))
    server.misbehave(
        lambda r: "/manifests/latest" in r.path, instead(Answer(429, {"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}))
    )
    device.pull()
    assert device.waits == [17.0, 60.0]


def test_a_server_that_stays_down_ends_in_a_network_error_and_keeps_what_was_fetched(
    device, server, published, trunk: Descriptor
) -> None:
    server.misbehave(is_blob(trunk.digest, begin=3 * CHUNK), instead(Answer(500)), times=100)
    with pytest.raises(NetworkError, match="500"):
        device.pull(options=PullOptions(connections=1))
    assert device.is_empty()
    server.faults.clear()
    sent_before = server.layer_bytes_sent()
    device.pull(options=PullOptions(connections=1))
    assert is_visible(device)
    assert server.layer_bytes_sent() == layer_bytes(published)
    assert sent_before >= 3 * CHUNK


def test_a_redirect_is_followed_without_the_key_when_the_host_changes(device, server, published) -> None:
    cdn = SimulatedServer(published)
    server.api_key = "zo_secret"
    device.transport = InMemoryTransport({SERVER: server, ELSEWHERE: cdn})
    server.misbehave(
        lambda r: r.is_for_blob,
        lambda request, _: Answer(307, {"Location": ELSEWHERE + request.path + "?token=short-lived"}),
        times=10_000,
    )
    device.pull(api_key="zo_secret")
    assert is_visible(device)
    assert cdn.answers
    assert not any("Authorization" in request.headers for request, _ in cdn.answers)
    assert all(request.headers["Authorization"] == "Bearer zo_secret" for request, _ in server.answers)


def test_a_redirect_within_the_host_keeps_the_key(device, server) -> None:
    server.api_key = "zo_secret"
    server.misbehave(lambda r: r.path.endswith("/latest"), lambda r, _: Answer(302, {"Location": r.path + "?again"}))
    device.pull(api_key="zo_secret")
    assert is_visible(device)


def test_an_expired_redirect_is_asked_for_anew(device, server, published, trunk: Descriptor) -> None:
    cdn = SimulatedServer(published)
    cdn.misbehave(is_blob(trunk.digest), instead(Answer(403)), times=2)
    device.transport = InMemoryTransport({SERVER: server, ELSEWHERE: cdn})
    server.misbehave(
        is_blob(trunk.digest), lambda request, _: Answer(307, {"Location": ELSEWHERE + request.path}), times=10_000
    )
    device.pull()
    assert is_visible(device)


def test_endless_redirects_end(device, server) -> None:
    server.misbehave(lambda _: True, lambda r, _: Answer(302, {"Location": r.url}), times=10_000)
    with pytest.raises(NetworkError, match="redirects more than"):
        device.pull()


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://models.test/x"])
def test_a_redirect_away_from_http_is_refused(device, server, location: str) -> None:
    server.misbehave(lambda _: True, instead(Answer(302, {"Location": location})), times=10_000)
    with pytest.raises(NetworkError, match="no URL"):
        device.pull()


def test_a_swapped_blob_is_refused_after_three_attempts(device, server, published, trunk: Descriptor) -> None:
    published.blob_path(trunk.digest).write_bytes(bytes(trunk.size))
    with pytest.raises(DigestMismatch, match="3 times"):
        device.pull()
    assert device.is_empty()


def test_a_truncated_blob_is_refused_at_once(device, published, trunk: Descriptor) -> None:
    path = published.blob_path(trunk.digest)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BlobTruncated, match=f"{trunk.size - 1} bytes on the server"):
        device.pull()
    assert device.is_empty()


def test_416_names_the_length_that_the_server_has(device, server, trunk: Descriptor) -> None:
    server.misbehave(
        is_blob(trunk.digest), instead(Answer(416, {"Content-Range": "bytes */5000"})), times=100
    )  # fmt: skip
    with pytest.raises(BlobTruncated, match="5000 bytes"):
        device.pull()


def test_416_without_a_length_falls_back_to_the_whole_blob(device, server, trunk: Descriptor) -> None:
    server.misbehave(lambda r: r.path.endswith(trunk.digest) and r.span is not None, instead(Answer(416)), times=100)
    device.pull()
    assert is_visible(device)


def test_a_blob_that_the_server_lacks_is_an_integrity_error(device, published, trunk: Descriptor) -> None:
    published.blob_path(trunk.digest).unlink()
    with pytest.raises(BlobMissing, match="trunk"):
        device.pull()
    assert device.is_empty()


def test_endless_data_is_cut_off(device, server, trunk: Descriptor) -> None:
    def endless(request: Request, answer: Answer) -> Answer:
        return replace(answer, body=answer.body + bytes(1_000_000), headers={
            "Content-Range": answer.headers["Content-Range"]})  # fmt: skip

    server.misbehave(is_blob(trunk.digest), endless, times=100)
    pulled = device.pull()
    assert is_visible(device)
    assert pulled.fetched_bytes < 1_000_000


def test_no_key_where_one_is_needed_is_unauthorized_with_a_hint(device, server) -> None:
    server.api_key = "zo_secret"
    with pytest.raises(Unauthorized, match="ZO_DEVICE_API_KEY"):
        device.pull()


def test_an_unknown_tag_is_not_found(device) -> None:
    with pytest.raises(NotFound):
        device.pull("tiny:v2")


def test_a_bundle_is_pulled_by_digest(device, published) -> None:
    digest = published.resolve("tiny:latest").digest
    pulled = device.pull(f"tiny@{digest}")
    assert pulled.digest == digest
    assert device.layout.references()[f"tiny:sha256-{digest[7:19]}"].digest == digest


def test_a_full_disk_is_named_with_both_numbers_before_the_start(device, server, published) -> None:
    full = Disk(free_bytes=lambda _: 1234)
    with pytest.raises(DiskError, match="1234 bytes") as caught:
        device.pull(options=PullOptions(disk=full))
    assert str(layer_bytes(published)) in caught.value.needed
    assert server.layer_bytes_sent() == 0
    assert device.is_empty()


def test_a_disk_that_fills_up_while_space_is_reserved_keeps_the_partials(device, server, published) -> None:
    server.misbehave(lambda r: r.span is not None and r.span[0] == 2 * CHUNK, instead(Answer(500)), times=100)
    with pytest.raises(NetworkError):
        device.pull(options=PullOptions(connections=1))
    kept = {path.name: path.read_bytes() for path in (device.layout.root / "partial").glob("*.part")}
    assert kept

    def no_space(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="no space left"):
        device.pull(options=PullOptions(disk=Disk(reserve=no_space)))
    assert {
        path.name: path.read_bytes() for path in (device.layout.root / "partial").glob("*.part")
    }.items() >= kept.items()
    server.faults.clear()
    device.pull()
    assert server.layer_bytes_sent() == layer_bytes(published)


def test_a_damaged_blob_in_the_store_is_repaired_by_fetching_one_chunk(device, server, published, trunk) -> None:
    device.pull()
    path = device.layout.blob_path(trunk.digest)
    data = bytearray(path.read_bytes())
    data[CHUNK + 7] ^= 1
    path.write_bytes(bytes(data))
    pulled = device.pull()
    assert pulled.fetched_bytes == CHUNK
    assert not pulled.was_complete
    assert is_visible(device)


def test_a_damaged_configuration_in_the_store_is_repaired(device, published) -> None:
    device.pull()
    manifest = parse_manifest(published.read_blob(published.resolve("tiny:latest").digest, max_bytes=1 << 20))
    device.layout.blob_path(manifest.config.digest).write_bytes(b"{}")
    device.pull()
    assert is_visible(device)


def test_killed_just_before_the_reference_is_written_the_next_pull_fetches_nothing(device, server) -> None:
    device.pull()
    (device.layout.root / "index.json").unlink()
    before = server.layer_bytes_sent()
    pulled = device.pull()
    assert is_visible(device)
    assert server.layer_bytes_sent() == before
    assert not pulled.was_complete


def test_killed_between_the_last_piece_and_the_rename_the_next_pull_fetches_nothing(device, server, trunk) -> None:
    device.pull()
    (device.layout.root / "index.json").unlink()
    partial = device.layout.root / "partial" / trunk.digest[7:]
    data = device.layout.blob_path(trunk.digest).read_bytes()
    partial.with_suffix(".part").write_bytes(data)
    pieces = [(begin, min(begin + CHUNK, trunk.size)) for begin in range(0, trunk.size, CHUNK)]
    partial.with_suffix(".journal").write_text(
        "".join(f"{begin} {end} {digest_of_bytes(data[begin:end])}\n" for begin, end in pieces)
    )
    device.layout.blob_path(trunk.digest).unlink()
    before = server.layer_bytes_sent()
    device.pull()
    assert is_visible(device)
    assert server.layer_bytes_sent() == before


def test_bundles_that_share_blobs_share_the_download(device, server, published) -> None:
    device.pull()
    before = server.layer_bytes_sent()
    manifest = json.loads(published.read_blob(published.resolve("tiny:latest").digest, max_bytes=1 << 20))
    manifest["annotations"] = {"edition": "second"}
    data = json.dumps(manifest).encode()
    published.tag("tiny:second", published.add_bytes(data, manifest["mediaType"]))
    sign_reference(published, "tiny:second")
    device.pull("tiny:second")
    assert server.layer_bytes_sent() == before
    assert set(device.layout.references()) >= {"tiny:latest", "tiny:second"}


def test_two_pulls_at_once_are_refused_by_name(device, server) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(request: Request, answer: Answer) -> Answer:
        entered.set()
        leave.wait(10)
        return answer

    server.misbehave(lambda r: r.span is not None, wait)
    first = threading.Thread(target=device.pull)
    first.start()
    assert entered.wait(10)
    with pytest.raises(Conflict, match="another zo-device"):
        device.pull()
    leave.set()
    first.join()
    assert is_visible(device)


def test_a_rate_limit_makes_the_whole_download_wait_as_long_as_its_bytes_need(device, published) -> None:
    class Waiting(threading.Event):
        waited = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            Waiting.waited += timeout or 0.0
            return self.is_set()

    options = PullOptions(connections=1, max_bytes_per_second=1000, clock=lambda: Waiting.waited, stop=Waiting())
    device.pull(options=options)
    assert Waiting.waited == pytest.approx(layer_bytes(published) / 1000)
