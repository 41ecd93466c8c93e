"""``zo-cloud keys create | list | revoke``: the service's API keys. Works beside a running service.

``create`` also works before the first ``zo-cloud serve``, in a data folder that exists and is empty.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cloud_service.commands.service_data import add_action, existing_service, opened_database, print_result
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from cloud_service.storage.keys import ApiKey


def add_keys_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("keys", help="create, list and revoke API keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = add_action(actions, "create", "make a key and print it once", _create)
    create.add_argument("--name", default="", help="what the key is for")
    create.add_argument(
        "--scope",
        action="append",
        dest="scopes",
        choices=["jobs", "bundles", "admin"],
        help="what it allows: start and read jobs, read bundles, or everything; may be repeated (default: bundles)",
    )
    create.add_argument(
        "--publishes",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names that a jobs key may publish under, such as 'team/*'; '*' is every name; may be repeated",
    )
    add_action(actions, "list", "list the keys, without their secrets", _list)
    revoke = add_action(actions, "revoke", "make a key worthless", _revoke)
    revoke.add_argument("id", help="the key's id: what stands between the two underscores")


def _create(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.keys import KeyStore, Scope

    scopes = [Scope(scope) for scope in arguments.scopes or ["bundles"]]
    is_publisher = Scope.JOBS in scopes and Scope.ADMIN not in scopes
    if is_publisher is not bool(arguments.publishes):
        raise InvalidRequest(
            f"the scopes {', '.join(scopes)} {'without' if is_publisher else 'with'} --publishes",
            needed="a jobs key says which names it may publish under; other keys publish under none or all",
            next_step="zo-cloud keys create --scope jobs --publishes 'team/*'",
            param="publishes",
        )
    settings = existing_service(arguments, may_be_empty=True)
    with opened_database(settings) as engine:
        key, secret = KeyStore(engine).create(arguments.name, scopes, arguments.publishes)
    print(f"Key for the service whose data folder is {settings.data}; it is shown only once:", file=sys.stderr)  # noqa: T201
    print_result(arguments, {**_fields(key), "key": secret}, secret)


def _list(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.keys import KeyStore

    settings = existing_service(arguments)
    with opened_database(settings) as engine:
        rows = [_fields(key) for key in KeyStore(engine).all()]
    lines = [
        f"{row['id']}  {','.join(row['scopes']):<14} {row['revoked'] or 'valid':<8} "
        f"{','.join(row['publishes']) or '-':<10} {row['name']}"
        for row in rows
    ]
    print_result(arguments, {"keys": rows}, "\n".join(lines) or f"no keys in {settings.data}")


def _revoke(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.keys import KeyStore

    with opened_database(existing_service(arguments)) as engine:
        key = KeyStore(engine).revoke(arguments.id)
    print_result(arguments, _fields(key), f"revoked {key.id}")


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "publishes": list(key.publishes),
        "created": key.created.isoformat(),
        "revoked": None if key.revoked is None else key.revoked.isoformat(),
    }
