"""The rules for statements: names, keys, expiry and versions, each as a function of values."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from simulated_server import KEY, OTHER_KEY, fingerprint

from device_client.download.publisher_memory import PublisherMemory
from device_client.download.trusted_bundle import AcceptanceRules, AcceptedSignature
from device_client.download.trusted_release import check_not_expired, path_to_publisher
from shared.bundle.signature_artifact import SignatureDocuments
from shared.bundle.statement import SignedRelease, SignedRotation, sign_release, sign_rotation
from shared.errors import Equivocated, OtherName, PublisherChanged, RolledBack, StatementExpired

SOURCE = "http://models.test/tiny"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DIGESTS = ["sha256:" + letter * 64 for letter in "abc"]
RULES = AcceptanceRules(SOURCE, "tiny", "latest", NOW)
CHAIN = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 19)]
ROTATIONS = [sign_rotation(old, new, at=NOW) for old, new in itertools.pairwise(CHAIN)]


def release(
    version: int = 1,
    *,
    name: str = "tiny",
    tag: str = "latest",
    digest: str = DIGESTS[0],
    expires: datetime = NOW,
    key: Ed25519PrivateKey = KEY,
) -> SignedRelease:
    return sign_release(key, name=name, tag=tag, version=version, digest=digest, expires=expires)


def accept(rules: AcceptanceRules, *releases: SignedRelease, digest: str = DIGESTS[0]) -> AcceptedSignature:
    documents = SignatureDocuments(releases=tuple(release.envelope for release in releases))
    accepted = rules.accept_signature(documents, digest)
    assert accepted is not None
    return accepted


def rules(**changes: object) -> AcceptanceRules:
    fields = {name: getattr(RULES, name) for name in RULES.__slots__}
    return AcceptanceRules(**(fields | changes))


def path(
    trusted: Ed25519PrivateKey, publisher: Ed25519PrivateKey, rotations: list[SignedRotation], memory: PublisherMemory
) -> tuple[SignedRotation, ...]:
    return path_to_publisher(fingerprint(publisher), {fingerprint(trusted)}, rotations, memory, SOURCE, RULES.command)


def test_a_statement_is_valid_until_it_expires_and_five_minutes_longer() -> None:
    statement = release().statement
    check_not_expired(statement, NOW + timedelta(minutes=5))
    with pytest.raises(StatementExpired) as caught:
        check_not_expired(statement, NOW + timedelta(minutes=5, seconds=1))
    assert "2030-01-01T00:00:00Z" in caught.value.found
    assert "2030-01-01T00:05:01Z" in caught.value.found
    assert "clock" in caught.value.next_step


@pytest.mark.parametrize("time", [datetime.min, datetime.max])
def test_a_clock_that_is_far_off_is_no_crash(time: datetime) -> None:
    now = time.replace(tzinfo=UTC) + (timedelta(minutes=5) if time == datetime.min else timedelta())
    statement = release(expires=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)).statement
    check_not_expired(statement, now)


@pytest.mark.parametrize("signed", [{"name": "big"}, {"tag": "v1"}], ids=str)
def test_a_statement_for_another_name_or_tag_is_refused_and_names_both(signed: dict[str, str]) -> None:
    other = release(**signed)
    with pytest.raises(OtherName, match=f"{other.statement.name}:{other.statement.tag}") as caught:
        accept(RULES, other)
    assert "tiny:latest" in caught.value.needed


def test_whoever_names_a_digest_needs_its_name_signed_but_neither_tag_nor_age() -> None:
    memory = PublisherMemory().with_release(SOURCE, "latest", release(9).statement, [])
    by_digest = rules(digest=DIGESTS[0], tag=None, memory=memory, now=NOW + timedelta(days=999))
    accepted = accept(by_digest, release(3, tag="v1"), release(2, tag="v2"))
    assert accepted.release == release(3, tag="v1")
    assert by_digest.remembering(accepted).releases == memory.releases
    with pytest.raises(OtherName):
        accept(by_digest, release(name="big"))


def test_the_key_is_the_pinned_one_or_the_required_one() -> None:
    for trusted in ({"pinned": frozenset({fingerprint(KEY)})}, {"required": fingerprint(KEY)}):
        assert accept(rules(**trusted), release()).publisher == fingerprint(KEY)
        with pytest.raises(PublisherChanged, match=fingerprint(OTHER_KEY)):
            accept(rules(**trusted), release(key=OTHER_KEY))


def test_a_new_key_is_reached_by_sixteen_rotations_and_not_by_seventeen() -> None:
    assert path(CHAIN[0], CHAIN[16], ROTATIONS, PublisherMemory()) == tuple(ROTATIONS[:16])
    with pytest.raises(PublisherChanged):
        path(CHAIN[0], CHAIN[17], ROTATIONS, PublisherMemory())


def test_a_gap_in_the_rotations_is_another_publisher() -> None:
    with pytest.raises(PublisherChanged):
        path(CHAIN[0], CHAIN[3], [ROTATIONS[0], ROTATIONS[2]], PublisherMemory())


def test_a_rotation_does_not_lead_backwards() -> None:
    with pytest.raises(PublisherChanged):
        path(CHAIN[1], CHAIN[0], ROTATIONS, PublisherMemory())


def test_rotations_in_a_circle_end() -> None:
    circle = [sign_rotation(CHAIN[0], CHAIN[1], at=NOW), sign_rotation(CHAIN[1], CHAIN[0], at=NOW)]
    with pytest.raises(PublisherChanged):
        path(CHAIN[0], KEY, circle, PublisherMemory())


def test_a_replaced_key_is_not_trusted_again_even_at_first_contact_or_if_it_is_required() -> None:
    memory = PublisherMemory(successors={fingerprint(CHAIN[0]): fingerprint(CHAIN[1])})
    for trusted in (set(), {fingerprint(CHAIN[0])}):
        with pytest.raises(PublisherChanged, match="has replaced"):
            path_to_publisher(fingerprint(CHAIN[0]), trusted, [], memory, SOURCE, RULES.command)
    assert path(CHAIN[0], CHAIN[1], [], memory) == ()


def test_a_new_keys_versions_begin_anew() -> None:
    """Otherwise a stolen key could keep devices from all later bundles by a version that nothing reaches."""
    memory = PublisherMemory().with_release(SOURCE, "latest", release(2**53 - 1, key=CHAIN[0]).statement, [])
    pinned = rules(pinned=frozenset({fingerprint(CHAIN[0])}), memory=memory)
    documents = SignatureDocuments(None, (release(5, key=CHAIN[1]).envelope,), (ROTATIONS[0].envelope,))
    accepted = pinned.accept_signature(documents, DIGESTS[0])
    assert accepted is not None
    after = pinned.remembering(accepted)
    assert after.successors == {fingerprint(CHAIN[0]): fingerprint(CHAIN[1])}
    assert after.releases[SOURCE]["latest"].version == 5


offers = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(DIGESTS)), max_size=30)


@given(offers)
def test_whatever_is_offered_accepted_versions_never_fall_and_none_has_two_digests(
    offered: list[tuple[int, str]],
) -> None:
    memory, accepted = PublisherMemory(), []
    for version, digest in offered:
        now = rules(memory=memory)
        highest = max((known for known, _ in accepted), default=0)
        try:
            memory = now.remembering(accept(now, release(version, digest=digest), digest=digest))
        except RolledBack:
            assert version < highest
        except Equivocated:
            assert version == highest
            assert (version, digest) not in accepted
        else:
            accepted.append((version, digest))
    versions = [version for version, _ in accepted]
    assert versions == sorted(versions)
    assert len(set(accepted)) == len(set(versions))


@given(offers)
def test_what_was_accepted_last_is_accepted_again(offered: list[tuple[int, str]]) -> None:
    memory = PublisherMemory()
    for version, digest in sorted(dict(offered).items()):
        for _ in range(2):
            now = rules(memory=memory)
            memory = now.remembering(accept(now, release(version, digest=digest), digest=digest))
