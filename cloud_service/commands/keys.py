"""``zo-cloud keys create | list | revoke``: the service's API keys. Works beside a running service."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import NotFound

if TYPE_CHECKING:
    from cloud_service.settings import Settings
    from cloud_service.storage.keys import ApiKey, KeyStore


def add_keys_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("keys", help="create, list and revoke API keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = _add_action(actions, "create", "make a key and print it once", _create)
    create.add_argument("--name", default="", help="what the key is for")
    create.add_argument(
        "--scope",
        action="append",
        dest="scopes",
        choices=["jobs", "bundles", "admin"],
        help="what it allows: start and read jobs, read bundles, or everything; may be repeated (default: bundles)",
    )
    _add_action(actions, "list", "list the keys, without their secrets", _list)
    revoke = _add_action(actions, "revoke", "make a key worthless", _revoke)
    revoke.add_argument("id", help="the key's id: what stands between the two underscores")


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary)
    parser.add_argument("--data", type=Path, default=None, help="the service's data folder, as given to serve")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def _create(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.keys import Scope

    scopes = [Scope(scope) for scope in arguments.scopes or ["bundles"]]
    settings = _settings(arguments)
    with _key_store(settings) as keys:
        key, secret = keys.create(arguments.name, scopes)
    print(f"Key for the service whose data folder is {settings.data}; it is shown only once:", file=sys.stderr)  # noqa: T201
    _print(arguments, {**_fields(key), "key": secret}, secret)


def _list(arguments: argparse.Namespace) -> None:
    settings = _existing_service(arguments)
    with _key_store(settings) as keys:
        rows = [_fields(key) for key in keys.all()]
    lines = [f"{row['id']}  {','.join(row['scopes']):<14} {row['revoked'] or 'valid':<8} {row['name']}" for row in rows]
    _print(arguments, {"keys": rows}, "\n".join(lines) or f"no keys in {settings.data}")


def _revoke(arguments: argparse.Namespace) -> None:
    with _key_store(_existing_service(arguments)) as keys:
        key = keys.revoke(arguments.id)
    _print(arguments, _fields(key), f"revoked {key.id}")


def _settings(arguments: argparse.Namespace) -> Settings:
    from cloud_service.settings import load_settings

    return load_settings() if arguments.data is None else load_settings(data=arguments.data)


def _existing_service(arguments: argparse.Namespace) -> Settings:
    """Refuse a folder that no service has used: it is a mistyped or forgotten ``--data``."""
    settings = _settings(arguments)
    if not settings.database.is_file():
        raise NotFound(
            f"no service has kept its data in {settings.data}",
            needed="the folder that zo-cloud serve was given as --data",
            next_step=f"zo-cloud keys {arguments.action} --data FOLDER",
            param="data",
        )
    return settings


@contextlib.contextmanager
def _key_store(settings: Settings) -> Iterator[KeyStore]:
    from cloud_service.storage.database import open_database
    from cloud_service.storage.keys import KeyStore

    engine = open_database(settings.database)
    try:
        yield KeyStore(engine)
    finally:
        engine.dispose()


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "created": key.created.isoformat(),
        "revoked": None if key.revoked is None else key.revoked.isoformat(),
    }


def _print(arguments: argparse.Namespace, fields: dict[str, Any], text: str) -> None:
    print(json.dumps(fields) if arguments.json else text)  # noqa: T201
