"""API keys: ``zo_<id>_<secret>``, where the secret is 256 random bits.

Only the secret's SHA-256 is stored: a hash made slow on purpose protects guessable passwords, and nobody guesses 256
random bits. A key is found by its id and its secret compared in constant time. Scopes: ``jobs`` starts and reads jobs
and publishes under names that fit the key's patterns, ``bundles`` reads bundles, ``admin`` may do everything.
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

from cloud_service.bundle_names import check_name_patterns, matches_any
from cloud_service.storage import audit
from cloud_service.storage.audit import Author
from cloud_service.storage.database import api_keys, reading, writing
from shared.api import AuditAction
from shared.errors import Forbidden, NotFound, Unauthorized

PREFIX = "zo"
LOCAL_CALLER = "local"
"""Who calls a service whose keys are switched off."""


class Scope(StrEnum):
    """What a key allows."""

    JOBS = "jobs"
    BUNDLES = "bundles"
    ADMIN = "admin"


_PUBLISHES = {Scope.JOBS: " --publishes PATTERN"}
"""What else a key of a scope needs."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    revoked: datetime | None = None
    publishes: tuple[str, ...] = ()

    def check_scope(self, scope: Scope) -> None:
        """Do nothing where the key allows ``scope``.

        Raises:
            Forbidden: It does not.
        """
        if scope not in self.scopes and Scope.ADMIN not in self.scopes:
            raise Forbidden(
                f"key {self.id} with the scopes {', '.join(self.scopes)}",
                needed=f"the scope {scope}",
                next_step=f"ask the operator for one: zo-cloud keys create --scope {scope}{_PUBLISHES.get(scope, '')} "
                "--data FOLDER",
            )

    def check_name(self, name: str) -> None:
        """Do nothing where the key may publish under ``name``.

        Raises:
            Forbidden: It may not, or was revoked.
        """
        if self.revoked is not None:
            raise Forbidden(f"key {self.id}, which was revoked", needed="a valid key", param="name")
        if Scope.ADMIN in self.scopes:
            return
        self.check_scope(Scope.JOBS)
        if not matches_any(name, self.publishes):
            raise Forbidden(
                f"key {self.id} publishes {', '.join(self.publishes) or 'nothing'}, not {name[:200]!r}",
                needed="a name that fits one of the key's patterns",
                next_step="give another name, or ask the operator for a key: zo-cloud keys create --scope jobs "
                "--publishes PATTERN",
                param="name",
            )


class KeyStore:
    """The keys of one service."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(
        self, name: str, scopes: Sequence[Scope], publishes: Sequence[str] = (), author: Author | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with its only full copy.

        Args:
            name: What the key is for.
            scopes: What it allows.
            publishes: Patterns of the names that it may publish under.
            author: Who makes it; None is the operator at this machine.

        Raises:
            InvalidRequest: One of ``publishes`` is not a pattern of names.
        """
        check_name_patterns(publishes, param="publishes")
        with writing(self._engine) as connection:
            return _insert(connection, name, scopes, publishes, author or audit.operator())

    def create_first(self) -> str | None:
        """Make an admin key where there never was one and return it; else return None.

        Keys with fewer rights do not count: with them alone nobody could administer the service over HTTP.
        """
        with writing(self._engine) as connection:
            if any(Scope.ADMIN in scopes for scopes in connection.scalars(sa.select(api_keys.c.scopes))):
                return None
            return _insert(connection, "first", [Scope.ADMIN], (), Author(peer="first start"))[1]

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first, revoked ones too."""
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created))]

    def revoke(self, key_id: str, author: Author | None = None) -> ApiKey:
        """Make a key worthless from now on; repeating it changes nothing.

        Args:
            key_id: The key.
            author: Who revokes it; None is the operator at this machine.

        Raises:
            NotFound: There is no such key.
        """
        is_valid = sa.and_(api_keys.c.id == key_id, api_keys.c.revoked.is_(None))
        with writing(self._engine) as connection:
            if connection.execute(sa.update(api_keys).where(is_valid).values(revoked=datetime.now(UTC))).rowcount:
                audit.record(connection, AuditAction.REVOKE_KEY, author or audit.operator(), subject_key=key_id)
            row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        if row is None:
            raise NotFound(f"no key {key_id!r}", next_step="zo-cloud keys list")
        return _key(row)

    def check_name(self, key_id: str, name: str) -> None:
        """Do nothing where the key may publish under ``name``; see ``check_may_publish``."""
        with reading(self._engine) as connection:
            check_may_publish(connection, key_id, name)

    def check_owner(self, key_id: str, owner_key: str | None) -> None:
        """Do nothing where the key may change what ``owner_key`` began: it is that key, or an admin's.

        Raises:
            Forbidden: It is neither; what nobody's key began is an admin's alone.
        """
        if key_id == owner_key:
            return
        with reading(self._engine) as connection:
            if not is_admin(connection, key_id):
                raise Forbidden(
                    f"key {key_id}, and what it shall change was begun by {owner_key or 'nobody with a key'}",
                    needed="the key that began it, or an admin key",
                    next_step="ask its owner, or the operator",
                )

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


def check_may_publish(connection: sa.Connection, key_id: str | None, name: str) -> None:
    """Do nothing where the owner of a key may publish under ``name``; None and ``LOCAL_CALLER`` need no key.

    Raises:
        Forbidden: The key's patterns do not fit the name, or it is revoked or unknown.
    """
    if key_id in (None, LOCAL_CALLER):
        return
    row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    if row is None:
        raise Forbidden(f"key {key_id}, which is unknown", needed="a key of this service", param="name")
    _key(row).check_name(name)


def is_admin(connection: sa.Connection, key_id: str | None) -> bool:
    """Whether the owner of a key may do everything; None and ``LOCAL_CALLER`` need no key."""
    if key_id in (None, LOCAL_CALLER):
        return True
    scopes = connection.scalar(sa.select(api_keys.c.scopes).where(api_keys.c.id == key_id))
    return Scope.ADMIN in (scopes or ())


def _insert(
    connection: sa.Connection, name: str, scopes: Sequence[Scope], publishes: Sequence[str], author: Author
) -> tuple[ApiKey, str]:
    key = ApiKey(
        id=secrets.token_hex(6),
        name=name,
        scopes=tuple(dict.fromkeys(scopes)),
        created=datetime.now(UTC),
        publishes=tuple(dict.fromkeys(publishes)),
    )
    secret = secrets.token_urlsafe(32)
    row = {"id": key.id, "name": name, "secret_sha256": _hash(secret), "scopes": list(key.scopes)}
    connection.execute(sa.insert(api_keys).values(**row, created=key.created, publishes=list(key.publishes)))
    audit.record(connection, AuditAction.CREATE_KEY, author, subject_key=key.id)
    return key, f"{PREFIX}_{key.id}_{secret}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        created=row.created,
        revoked=row.revoked,
        publishes=tuple(row.publishes or ()),
    )
