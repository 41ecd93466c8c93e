"""``zo-cloud signing-key show | rotate``: the key that devices trust, and how another one takes its place.

A rotation is signed by the old key, so devices that pinned it follow. Back the key up: one that is lost can only be
replaced by one that every device has to be told of.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloud_service.commands.service_data import settings_of
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.file_lock import exclusive


def add_signing_key_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("signing-key", help="show or replace the key that bundles are signed by",
                                 description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_action(actions, "show", "print the key's fingerprint and the keys it has replaced", _show)
    rotate = _add_action(actions, "rotate", "make a new key that the old one vouches for", _rotate)
    rotate.add_argument("--delete-old", action="store_true", help="do not keep the old key beside the new one")
    rotate.add_argument("--lost", action="store_true", help="the old key is lost: make one that nothing vouches for")
    rotate.add_argument(
        "--yes-every-device-must-be-told",
        action="store_true",
        dest="is_understood",
        help="with --lost: devices refuse the new key until they are given its fingerprint",
    )


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--data", type=Path, default=None, help="the service's data folder, as given to serve")
    place.add_argument("--signing-key", type=Path, metavar="PEM", help="a key elsewhere, as given to prepare")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def _show(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.signing_keys import open_signing_key

    path = _path(arguments)
    key = open_signing_key(path)
    _print(arguments, path, key.fingerprint, [step.rotation.old for step in key.rotations])


def _rotate(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.signing_keys import replace_lost_key, rotate_signing_key

    path = _path(arguments)
    if arguments.lost and not arguments.is_understood:
        raise InvalidRequest(
            "--lost makes a key that every device refuses until it is given the new fingerprint",
            needed="--yes-every-device-must-be-told",
            next_step=f"restore {path} from its backup instead, or repeat with --yes-every-device-must-be-told",
            param="lost",
        )
    with _no_service(path):
        if arguments.lost:
            key = replace_lost_key(path)
        else:
            key = rotate_signing_key(path, now=datetime.now(UTC), keeps_old=not arguments.delete_old)
    _print(arguments, path, key.fingerprint, [step.rotation.old for step in key.rotations])


def _path(arguments: argparse.Namespace) -> Path:
    """Return where the key lies, or lay before it was lost with its record.

    Raises:
        NotFound: There never was one.
    """
    from cloud_service.storage.signing_keys import has_signing_key

    settings = settings_of(arguments)
    path = settings.signing_key if arguments.signing_key is None else Path(arguments.signing_key)
    is_lost = getattr(arguments, "lost", False) and path == settings.signing_key and settings.database.is_file()
    if not is_lost and not has_signing_key(path):
        raise NotFound(
            f"no signing key {path}",
            needed="the data folder of a service, or the file that zo-cloud prepare was given as --signing-key",
            next_step=f"zo-cloud signing-key {arguments.action} --data FOLDER; zo-cloud serve makes a key",
            param="data" if arguments.signing_key is None else "signing-key",
        )
    return path


def _no_service(path: Path) -> contextlib.AbstractContextManager[None]:
    """Keep services away while the key changes: a running one would continue to sign with the old key."""
    busy = Conflict(
        f"a service is running on {path.parent}",
        needed="a stopped service",
        next_step="stop it, run this command again, and start it",
    )
    return exclusive(path.parent / "service.lock", busy=busy)


def _print(arguments: argparse.Namespace, path: Path, fingerprint: str, replaced: list[str]) -> None:
    fields = {"signing_key": str(path), "fingerprint": fingerprint, "replaced": replaced}
    lines = [f"key        {path}", f"publisher  ZO_DEVICE_TRUSTED_KEY={fingerprint}"]
    lines += [f"replaced   {old}" for old in replaced]
    print(json.dumps(fields) if arguments.json else "\n".join(lines))  # noqa: T201
