"""API keys: ``zo_<id>_<secret>``, where the secret is 256 random bits.

Only the secret's SHA-256 is stored: a hash made slow on purpose protects guessable passwords, and nobody guesses 256
random bits. A key is found by its id and its secret compared in constant time. Scopes: ``jobs`` starts and reads jobs,
``bundles`` reads bundles, ``admin`` may do everything.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import sqlalchemy as sa

from cloud_service.storage.database import api_keys, reading, writing
from shared.errors import Forbidden, NotFound, Unauthorized

PREFIX = "zo"


class Scope(StrEnum):
    """What a key allows."""

    JOBS = "jobs"
    BUNDLES = "bundles"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    revoked: datetime | None = None

    def check_scope(self, scope: Scope) -> None:
        """Do nothing where the key allows ``scope``.

        Raises:
            Forbidden: It does not.
        """
        if scope not in self.scopes and Scope.ADMIN not in self.scopes:
            raise Forbidden(
                f"key {self.id} with the scopes {', '.join(self.scopes)}",
                needed=f"the scope {scope}",
                next_step=f"zo-cloud keys create --scope {scope}",
            )


class KeyStore:
    """The keys of one service."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, name: str, scopes: Sequence[Scope]) -> tuple[ApiKey, str]:
        """Make a key and return it with its only full copy."""
        with writing(self._engine) as connection:
            return _insert(connection, name, scopes)

    def create_first(self) -> str | None:
        """Make an admin key where there never was any key and return it; else return None."""
        with writing(self._engine) as connection:
            if connection.scalar(sa.select(sa.func.count()).select_from(api_keys)):
                return None
            return _insert(connection, "first", [Scope.ADMIN])[1]

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first, revoked ones too."""
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created))]

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key worthless from now on; repeating it changes nothing.

        Raises:
            NotFound: There is no such key.
        """
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked.is_(None))
                .values(revoked=datetime.now(UTC))
            )
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        if row is None:
            raise NotFound(f"no key {key_id!r}", next_step="zo-cloud keys list")
        return _key(row)

    def authenticate(self, token: str) -> ApiKey:
        """Return the key that ``token`` is.

        Raises:
            Unauthorized: It is no key, or a revoked one; the message does not say which.
        """
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        stored = row.secret_sha256 if row is not None else "0" * 64
        is_right = hmac.compare_digest(stored, _hash(secret))
        if row is None or not is_right or prefix != PREFIX or row.revoked is not None:
            raise Unauthorized(
                "a key that is not valid here",
                needed="a key of this service that was not revoked",
                next_step="ask the operator for one: zo-cloud keys create",
            )
        return _key(row)


def _insert(connection: sa.Connection, name: str, scopes: Sequence[Scope]) -> tuple[ApiKey, str]:
    key = ApiKey(secrets.token_hex(6), name, tuple(dict.fromkeys(scopes)), datetime.now(UTC))
    secret = secrets.token_urlsafe(32)
    row = {"id": key.id, "name": name, "secret_sha256": _hash(secret), "scopes": list(key.scopes)}
    connection.execute(sa.insert(api_keys).values(**row, created=key.created))
    return key, f"{PREFIX}_{key.id}_{secret}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(row.id, row.name, tuple(Scope(scope) for scope in row.scopes), row.created, row.revoked)
