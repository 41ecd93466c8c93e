"""Reads from a server that speaks the OCI distribution API's read half, ours or any registry.

    GET /v2/<name>/manifests/<tag or digest>    GET /v2/<name>/blobs/<digest>    GET /v1/bundles

Here answers are judged: redirects are followed (what we present is dropped when the host changes; https never becomes
http), challenges are answered, statuses become errors, temporary ones are tried again. Neither If-Match nor If-Range is
ever sent: the digest is the validator. Knows nothing about files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from device_client.download.authentication import Access
from device_client.download.reference import origin_of
from device_client.download.registry_answers import ImageIndex, TagList, parse_answer, problem_detail
from device_client.download.retry import Attempts, RetryPolicy, TransientError, parse_retry_after
from shared.api import TAG_PATTERN, BundleList, BundleSummary
from shared.bundle.digest import digest_of_bytes
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor
from shared.errors import (
    BlobMissing,
    BlobTruncated,
    DigestMismatch,
    Forbidden,
    LimitExceeded,
    NetworkError,
    NotFound,
    Unauthorized,
)

if TYPE_CHECKING:
    from device_client.download.transport import Response, Transport

MAX_REDIRECTS = 5
MAX_DAMAGED = 3
MAX_BUNDLE_LIST_BYTES = 16 * 1024 * 1024
MAX_LISTED_BUNDLES = 10_000
"""Where a list ends, however much the server has; a list is also held in memory."""

MAX_REFERRERS = 8
MAX_REFERRERS_BYTES = 1024 * 1024
INDEX_MEDIA_TYPE = "application/vnd.oci.image.index.v1+json"

_PAGE_BUNDLES = 200
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TEMPORARY_REFUSALS = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEY_HINT = (
    "set ZO_DEVICE_API_KEY or give --api-key-file FILE; a registry with users wants --username NAME too, or a login "
    "that docker, podman or skopeo keeps in a file"
)

Outcome = TypeVar("Outcome")


class Registry:
    """One server.

    Args:
        transport: The door to the network.
        server: Base URL without a trailing slash.
        access: What to present to this server, and to no other host; None presents nothing that nobody asked for.
        policy: How patient to be.
        sleep: Waits that many seconds.
        notify: Told why something is tried again.
        wall_clock: Seconds since 1970, for Retry-After dates.
    """

    def __init__(
        self,
        transport: Transport,
        server: str,
        *,
        access: Access | None = None,
        policy: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        notify: Callable[[str], None] = lambda _: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.server = server
        self._transport, self._wall_clock = transport, wall_clock
        self._access = access or Access(transport, server)
        self._policy, self._sleep, self._notify = policy or RetryPolicy(), sleep, notify

    def attempts(self) -> Attempts:
        """Return a fresh count of failures."""
        return Attempts(self._policy, self._sleep, self._notify)

    def manifest(self, name: str, reference: str, *, max_bytes: int) -> bytes:
        """Return the bytes of a manifest as the server has it; whether it is the right one is not checked.

        The server says which digest the manifest of a tag has: where that differs, the line has damaged the bytes.

        Raises:
            NotFound: The server has no such manifest.
            LimitExceeded: It is longer than ``max_bytes``.
            DigestMismatch: It came with other bytes than the server names, several times.
        """
        url, headers = self._url(name, "manifests", reference), {"Accept": MANIFEST_MEDIA_TYPE}
        for _ in range(MAX_DAMAGED):
            data, fields = self._again(lambda: self._read(url, headers, max_bytes))
            named = reference if _DIGEST.fullmatch(reference) else fields.get("docker-content-digest", "")
            if digest_of_bytes(data) == named or not _DIGEST.fullmatch(named):
                return data
            self._notify(f"the manifest {reference} arrived damaged; fetching it again")
        raise DigestMismatch(
            f"{url} answers with the manifest {digest_of_bytes(data)}, {MAX_DAMAGED} times",
            needed=named,
            next_step="run the same command again; if it stays so, do not use this server: ask its operator",
        )

    def small_blob(self, name: str, blob: Descriptor) -> bytes:
        """Return the bytes of a small blob, which have its length and digest.

        Raises:
            BlobMissing: The server does not have it.
            BlobTruncated: It came with another length, several times.
            DigestMismatch: It came with another digest, several times.
        """
        url = self.blob_url(name, blob.digest)
        for _ in range(MAX_DAMAGED):
            try:
                data = self._again(lambda: self._read(url, {}, blob.size)[0])
            except NotFound as error:
                raise missing(blob) from error
            if digest_of_bytes(data) == blob.digest:
                return data
            self._notify(f"blob {blob.digest} arrived damaged; fetching it again")
        if len(data) != blob.size:
            raise BlobTruncated(f"blob {blob.digest} of {len(data)} bytes", needed=f"{blob.size} bytes")
        raise DigestMismatch(f"blob {blob.digest} came with other bytes {MAX_DAMAGED} times", needed=blob.digest)

    def referrers(self, name: str, digest: str, artifact_types: Collection[str]) -> list[str]:
        """Return the digests of artifacts that have a manifest as their subject, at most 8; none where none is known.

        They are asked for by the referrers API, and where the registry has none by the tag that clients keep instead.

        Args:
            name: The bundle's name.
            digest: The manifest's digest.
            artifact_types: Which artifacts count; one of an unknown type does.

        Raises:
            NetworkError: The answer is not a list of manifests.
        """
        headers = {"Accept": INDEX_MEDIA_TYPE}
        urls = [self._url(name, "referrers", digest), self._url(name, "manifests", digest.replace(":", "-"))]
        for url in urls:
            try:
                data = self._again(lambda url=url: self._read(url, headers, MAX_REFERRERS_BYTES)[0])  # type: ignore[misc]
            except NotFound:
                continue
            listed = parse_answer(ImageIndex, data, url).manifests
            if found := [entry.digest for entry in listed if entry.artifact_type in ("", *artifact_types)]:
                return found[:MAX_REFERRERS]
        return []

    def tags(self, name: str) -> list[str]:
        """Return the first tags of a name, without those of signatures.

        Raises:
            NotFound: The server has no such name.
            NetworkError: The answer is not a list of tags.
        """
        url = f"{self.server}/v2/{name}/tags/list?n={_PAGE_BUNDLES}"
        listed = parse_answer(TagList, self._again(lambda: self._read(url, {}, MAX_BUNDLE_LIST_BYTES)[0]), url).tags
        return [tag for tag in listed if re.fullmatch(TAG_PATTERN, tag) and not tag.startswith("sha256-")]

    def bundles(self, *, at_most: int = MAX_LISTED_BUNDLES) -> BundleList:
        """Return what the server has published, page by page; only our service knows this request.

        Returns:
            About ``at_most`` bundles; ``next`` is not None where the server has more.

        Raises:
            NetworkError: The answer is not a list of bundles.
        """
        listed: list[BundleSummary] = []
        after: str | None = None
        while True:
            page = self._bundle_page(after)
            listed += page.bundles
            if page.next is None or len(listed) >= at_most:
                return BundleList(bundles=listed, next=page.next)
            if not page.bundles or page.next == after:
                raise NetworkError(f"{self.server}/v1/bundles repeats a page", next_step="ask the server's operator")
            after = page.next

    def _bundle_page(self, after: str | None) -> BundleList:
        query = urlencode({"limit": _PAGE_BUNDLES} | ({} if after is None else {"after": after}))
        try:
            data = self._again(lambda: self._read(f"{self.server}/v1/bundles?{query}", {}, MAX_BUNDLE_LIST_BYTES)[0])
        except NotFound as error:
            raise NotFound(
                f"{self.server} has no list of bundles",
                needed="a zo-cloud service; other registries do not say which of their images are bundles",
                next_step=f"name the bundle: zo-device pull {self.server}/NAME:TAG",
            ) from error
        return parse_answer(BundleList, data, f"{self.server}/v1/bundles")

    def blob_url(self, name: str, digest: str) -> str:
        """Return the address of a blob."""
        return self._url(name, "blobs", digest)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str]) -> Iterator[Response]:
        """Send one request, following redirects; yields an answer of status 200, 206 or 416.

        Raises:
            TransientError: The failure may be gone at the next attempt.
            NotFound: Status 404.
            Unauthorized: Status 401 or 403.
            NetworkError: Any other status, or too many redirects.
        """
        target, redirects, was_challenged = url, 0, False
        while redirects <= MAX_REDIRECTS:
            is_here = origin_of(target) == origin_of(self.server)
            presented = self._access.authorization if is_here else None
            with self._transport.get(target, _fields(headers, presented)) as answer:
                if answer.status in _REDIRECTS:
                    target, redirects = _redirect_target(target, answer), redirects + 1
                elif (
                    answer.status == 401
                    and is_here
                    and not was_challenged
                    and self._access.learn(answer.headers.get("www-authenticate", ""), rejected=presented)
                ):
                    was_challenged = True
                else:
                    self._judge(answer, target, is_elsewhere=origin_of(target) != origin_of(url))
                    yield answer
                    return
        raise NetworkError(f"{url} redirects more than {MAX_REDIRECTS} times", next_step="ask the server's operator")

    def _judge(self, answer: Response, target: str, *, is_elsewhere: bool) -> None:
        where, status = target.partition("?")[0] + answer.via, answer.status
        if status in (200, 206) and answer.headers.get("content-type", "").startswith("text/html"):
            raise NetworkError(
                f"{where} answers with a web page",
                needed="an answer of the OCI distribution API",
                next_step="open any page in a browser: this network may want you to log in first; else check the "
                "address of the server",
            )
        if status in (200, 206, 416):
            return
        if status in _TEMPORARY_REFUSALS or status >= 500:
            asked = parse_retry_after(answer.headers.get("retry-after"), self._wall_clock())
            raise TransientError(f"{where} answers {status}", retry_after_seconds=asked)
        if is_elsewhere and 400 <= status < 500:
            raise TransientError(f"{where}, where the server redirects to, answers {status} (expired?)")
        found = f"{where} answers {status}{problem_detail(answer)}"
        if status == 401:
            raise Unauthorized(found, needed="a valid API key", next_step=_KEY_HINT)
        if status == 403:
            next_step = f"{_KEY_HINT}; where it is the proxy that refuses, ask who runs it" if answer.via else _KEY_HINT
            raise Forbidden(found, needed="a key with the right to read bundles", next_step=next_step)
        if status == 404:
            raise NotFound(found, needed="something that the server has", next_step="zo-device list --remote")
        raise NetworkError(found, needed="status 200 or 206", next_step="check the address of the server")

    def _read(self, url: str, headers: Mapping[str, str], max_bytes: int) -> tuple[bytes, Mapping[str, str]]:
        """Return a whole body and the fields of the answer."""
        with self.open(url, headers) as answer:
            if answer.status != 200:
                raise TransientError(f"{url} answers {answer.status} to a request for the whole")
            data = bytearray()
            for piece in answer.body:
                data += piece
                if len(data) > max_bytes:
                    raise LimitExceeded(f"{url} sends more than {max_bytes} bytes", needed=f"at most {max_bytes} bytes")
        return bytes(data), answer.headers

    def _again(self, request: Callable[[], Outcome]) -> Outcome:
        attempts = self.attempts()
        while True:
            try:
                return request()
            except TransientError as error:
                attempts.wait_after(error)

    def _url(self, name: str, kind: str, reference: str) -> str:
        return f"{self.server}/v2/{name}/{kind}/{reference}"


def _fields(headers: Mapping[str, str], authorization: str | None) -> dict[str, str]:
    own = {"Accept-Encoding": "identity", "User-Agent": "zo-device", **headers}
    return own if authorization is None else {**own, "Authorization": authorization}


def _redirect_target(url: str, answer: Response) -> str:
    target = urljoin(url, answer.headers.get("location", ""))
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise NetworkError(f"{url} redirects to an unencrypted address", next_step="ask the server's operator")
    if urlsplit(target).scheme not in ("http", "https"):
        raise NetworkError(f"{url} redirects to an address that is no URL", next_step="ask the server's operator")
    return target


def missing(blob: Descriptor) -> BlobMissing:
    """Return the error for a blob that the manifest names and the server does not have."""
    return BlobMissing(
        f"the server has no {blob.title or 'blob'} ({blob.digest})",
        needed="every blob that the manifest names",
        next_step="run the same command again: what the tag names may have changed meanwhile; if it stays so, tell the "
        "server's operator",
    )
