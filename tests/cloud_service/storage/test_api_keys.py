"""API keys: what is stored, what is accepted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_service.storage.database import open_database
from cloud_service.storage.keys import KeyStore, Scope
from shared.errors import Forbidden, NotFound, Unauthorized


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    engine = open_database(tmp_path / "jobs.sqlite3")
    yield KeyStore(engine)
    engine.dispose()


def test_a_key_holds_256_random_bits_and_the_database_only_their_hash(keys: KeyStore, tmp_path: Path) -> None:
    key, token = keys.create("laptop", [Scope.BUNDLES])
    match = re.fullmatch(r"zo_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", token)
    assert match is not None
    assert match[1] == key.id
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert match[2].encode() not in stored
    assert hashlib.sha256(match[2].encode()).hexdigest().encode() in stored


def test_a_key_is_accepted_until_it_is_revoked(keys: KeyStore) -> None:
    key, token = keys.create("", [Scope.JOBS])
    assert keys.authenticate(token) == key
    revoked = keys.revoke(key.id)
    assert keys.revoke(key.id) == revoked
    with pytest.raises(Unauthorized):
        keys.authenticate(token)
    with pytest.raises(NotFound):
        keys.revoke("unknown")


def test_what_is_no_key_is_refused_in_the_same_words(keys: KeyStore) -> None:
    key, token = keys.create("", [Scope.ADMIN])
    wrong = [
        "",
        "zo_",
        token[:-1],
        token + "x",
        f"zo_{key.id}_",
        f"ab_{token[3:]}",
        "zo_unknown_" + token[-43:],
        "ü_ü_ü",
    ]
    messages = set()
    for guess in wrong:
        with pytest.raises(Unauthorized) as caught:
            keys.authenticate(guess)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_scopes_allow_only_themselves_and_admin_allows_all(keys: KeyStore) -> None:
    reader, _ = keys.create("", [Scope.BUNDLES])
    reader.check_scope(Scope.BUNDLES)
    for scope in (Scope.JOBS, Scope.ADMIN):
        with pytest.raises(Forbidden, match=f"scope {scope}"):
            reader.check_scope(scope)
    admin, _ = keys.create("", [Scope.ADMIN])
    for scope in Scope:
        admin.check_scope(scope)


def test_the_first_key_is_made_once(keys: KeyStore) -> None:
    token = keys.create_first()
    assert token is not None
    assert keys.authenticate(token).scopes == (Scope.ADMIN,)
    assert keys.create_first() is None
    keys.revoke(keys.all()[0].id)
    assert keys.create_first() is None
