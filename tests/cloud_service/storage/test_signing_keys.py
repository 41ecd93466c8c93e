"""The publisher's key: made once, never replaced silently, replaced on demand in an order that survives a kill."""

from __future__ import annotations

import itertools
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloud_service.storage.signing_keys import open_signing_key, replace_lost_key, rotate_signing_key
from shared.bundle.statement import verify_rotation
from shared.errors import Conflict, DiskError, IntegrityError, InvalidRequest, NotFound

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "signing-key.pem"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_key_is_made_once_for_the_owner_alone_and_found_again(path: Path) -> None:
    made, found = open_signing_key(path), open_signing_key(path)
    assert made.private.private_bytes_raw() == found.private.private_bytes_raw()
    assert mode(path) == 0o600


def test_processes_that_make_a_key_at_the_same_time_get_the_same_one(path: Path) -> None:
    barrier = threading.Barrier(8)

    def make(_: int) -> str:
        barrier.wait()
        return open_signing_key(path).fingerprint

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(8))) == {open_signing_key(path).fingerprint}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["signing-key.pem", "signing-key.publisher.json"]


def test_a_key_that_cannot_be_written_whole_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(DiskError, match="no space left"):
            open_signing_key(tmp_path / "signing.pem")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"no key", generate_private_key(SECP256R1()).private_bytes(*PEM)], ids=["no_key", "key_of_another_kind"]
)
def test_a_file_without_an_ed25519_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="Ed25519"):
        open_signing_key(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("before", [0o644, 0o640, 0o666, 0o755])
def test_a_key_becomes_private_whatever_its_mode_was(path: Path, before: int) -> None:
    fingerprint = open_signing_key(path).fingerprint
    path.chmod(before)
    assert open_signing_key(path).fingerprint == fingerprint
    assert mode(path) == 0o600


@pytest.mark.attack
def test_a_lost_key_is_not_replaced_silently_but_named_with_the_way_back(path: Path) -> None:
    lost = open_signing_key(path).fingerprint
    backup = path.read_bytes()
    path.unlink()
    with pytest.raises(Conflict, match=lost) as caught:
        open_signing_key(path)
    assert "backup" in caught.value.next_step
    assert "rotate --lost" in caught.value.next_step
    assert not path.exists()
    path.write_bytes(backup)
    assert open_signing_key(path).fingerprint == lost


def test_another_key_than_the_one_that_has_published_is_refused_and_both_are_named(path: Path) -> None:
    published = open_signing_key(path).fingerprint
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(*PEM))
    with pytest.raises(Conflict, match=published) as caught:
        open_signing_key(path)
    assert "holds ed25519:" in caught.value.found


def test_a_publisher_that_is_known_otherwise_stands_in_for_a_missing_record(path: Path) -> None:
    with pytest.raises(Conflict, match="no file"):
        open_signing_key(path, publisher_known="ed25519:" + "ab" * 32)
    assert not path.parent.exists()
    key = open_signing_key(path)
    path.with_name("signing-key.publisher.json").unlink()
    assert open_signing_key(path, publisher_known=key.fingerprint).fingerprint == key.fingerprint


def test_a_damaged_record_is_an_error_not_a_fresh_folder(path: Path) -> None:
    open_signing_key(path)
    path.with_name("signing-key.publisher.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"signing-key\.publisher\.json"):
        open_signing_key(path)


def test_a_rotation_is_signed_by_the_old_key_which_is_kept_for_its_owner_alone(path: Path) -> None:
    old = open_signing_key(path)
    new = rotate_signing_key(path, now=NOW)
    (step,) = open_signing_key(path).rotations
    assert open_signing_key(path).fingerprint == new.fingerprint != old.fingerprint
    rotation = verify_rotation(step.envelope).rotation
    assert (rotation.old, rotation.new, rotation.at) == (old.fingerprint, new.fingerprint, "2030-01-01T00:00:00Z")
    retired = path.with_name(f"signing-key-{old.fingerprint[8:16]}.pem.retired")
    assert (mode(path), mode(retired)) == (0o600, 0o600)
    assert not path.with_name("signing-key.pem.next").exists()


def test_the_old_key_is_deleted_on_demand(path: Path) -> None:
    open_signing_key(path)
    rotate_signing_key(path, now=NOW, keeps_old=False)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["signing-key.pem", "signing-key.publisher.json"]


def test_rotations_add_up_to_a_chain_of_which_the_last_sixteen_are_kept(path: Path) -> None:
    fingerprints = [open_signing_key(path).fingerprint]
    fingerprints += [rotate_signing_key(path, now=NOW, keeps_old=False).fingerprint for _ in range(17)]
    chain = [(step.rotation.old, step.rotation.new) for step in open_signing_key(path).rotations]
    assert chain == list(itertools.pairwise(fingerprints[1:]))


def test_nothing_is_rotated_where_there_is_no_key(path: Path) -> None:
    with pytest.raises(NotFound):
        rotate_signing_key(path, now=NOW)


@pytest.mark.parametrize("record_is_written", [False, True])
def test_a_rotation_that_was_killed_leaves_the_old_key_or_the_new_one_in_force(
    path: Path, tmp_path: Path, record_is_written: bool
) -> None:
    """The two states on the disk between the steps, put together from those before and after."""
    old = open_signing_key(path)
    shutil.copytree(path.parent, tmp_path / "before")
    new = rotate_signing_key(path, now=NOW)
    path.rename(path.with_name("signing-key.pem.next"))
    shutil.copy(tmp_path / "before" / path.name, path)
    if not record_is_written:
        shutil.copy(tmp_path / "before" / "signing-key.publisher.json", path.parent)
    found = open_signing_key(path)
    assert found.fingerprint == (new if record_is_written else old).fingerprint
    assert found.rotations == (new if record_is_written else old).rotations
    assert rotate_signing_key(path, now=NOW).rotations[-1].rotation.old == found.fingerprint


def test_a_rotation_that_cannot_be_written_leaves_the_old_key_in_force(path: Path) -> None:
    old = open_signing_key(path).fingerprint
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # room for a key, not for the record
    try:
        with pytest.raises(DiskError):
            rotate_signing_key(path, now=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_signing_key(path).fingerprint == old


def test_a_key_that_was_lost_is_replaced_by_one_that_nothing_vouches_for(path: Path) -> None:
    open_signing_key(path)
    rotate_signing_key(path, now=NOW, keeps_old=False)
    path.unlink()
    new = replace_lost_key(path)
    assert (open_signing_key(path).fingerprint, open_signing_key(path).rotations) == (new.fingerprint, ())


def test_a_key_that_is_there_is_not_lost(path: Path) -> None:
    fingerprint = open_signing_key(path).fingerprint
    with pytest.raises(Conflict, match="not lost"):
        replace_lost_key(path)
    assert open_signing_key(path).fingerprint == fingerprint


def test_another_key_in_the_place_of_the_lost_one_is_kept_aside(path: Path) -> None:
    open_signing_key(path)
    other = Ed25519PrivateKey.generate().private_bytes(*PEM)
    path.write_bytes(other)
    replace_lost_key(path)
    (aside,) = path.parent.glob("*.retired")
    assert (aside.read_bytes(), mode(aside)) == (other, 0o600)
