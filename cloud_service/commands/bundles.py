"""``zo-cloud bundles list | retag | delete | history | audit``: what is published. Works beside a running service.

Who works at the service's own machine may change every name; the audit record tells it as ``command line of uid N``.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cloud_service.commands.service_data import add_action, existing_service, opened_database, print_result
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from cloud_service.storage.bundles import BundleStore
    from shared.api import AuditEntry

_PAGE = 200


def add_bundles_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bundles", help="list, retag and delete published bundles", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = add_action(actions, "list", "list the published bundles", _list)
    listed.add_argument("name", nargs="?", help="only those of this name")
    retag = add_action(actions, "retag", "let a tag name another bundle of its name, or what it named before", _retag)
    retag.add_argument("reference", metavar="NAME:TAG", help="the tag, which need not exist yet")
    target = retag.add_mutually_exclusive_group(required=True)
    target.add_argument("digest", nargs="?", metavar="DIGEST", help="sha256:… of a bundle published under that name")
    target.add_argument("--back", action="store_true", help="what the tag named before its last change")
    delete = add_action(actions, "delete", "delete a tag, or a bundle with all its tags", _delete)
    delete.add_argument("reference", metavar="NAME:TAG|NAME@DIGEST", help="the tag, or the bundle")
    history = add_action(actions, "history", "show what a tag named, newest first", _history)
    history.add_argument("reference", metavar="NAME:TAG", help="the tag")
    audit = add_action(actions, "audit", "show every change of bundles and keys, newest first", _audit)
    audit.add_argument("name", nargs="?", help="only changes of this name")
    for shown in (history, audit):
        shown.add_argument("--limit", type=int, default=50, metavar="N", help="changes shown at most (default: 50)")


def _list(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.catalog import Catalog
    from shared.bundle.layout import ImageLayout

    settings = existing_service(arguments)
    rows: list[dict[str, Any]] = []
    with opened_database(settings) as engine:
        catalog, after = Catalog(engine, ImageLayout(settings.store)), None
        while page := catalog.page(after=after, limit=_PAGE, name=arguments.name):
            rows += [summary.model_dump(mode="json") for summary in page]
            after = f"{page[-1].name}:{page[-1].tag}"
    lines = [f"{row['name']}:{row['tag']}  {row['digest']}  {row['size_bytes']}" for row in rows]
    print_result(arguments, {"bundles": rows}, "\n".join(lines) or "no bundle is published")


def _retag(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.audit import operator

    name, tag = _tag(arguments.reference)
    with _bundle_store(arguments) as bundles:
        published = bundles.retag(name, tag, arguments.digest, operator())
    print_result(arguments, published.model_dump(), f"{name}:{tag} is {published.digest}")


def _delete(arguments: argparse.Namespace) -> None:
    from cloud_service.storage.audit import operator

    name, at, digest = arguments.reference.partition("@")
    with _bundle_store(arguments) as bundles:
        if at:
            bundles.delete_bundle(name, digest, operator())
        else:
            bundles.delete_tag(*_tag(arguments.reference), operator())
    print_result(arguments, {"deleted": arguments.reference}, f"deleted {arguments.reference}")


def _history(arguments: argparse.Namespace) -> None:
    name, tag = _tag(arguments.reference)
    _print_changes(arguments, name=name, tag=tag)


def _audit(arguments: argparse.Namespace) -> None:
    _print_changes(arguments, name=arguments.name)


def _print_changes(arguments: argparse.Namespace, *, name: str | None, tag: str | None = None) -> None:
    from cloud_service.storage.audit import AuditLog

    if arguments.limit < 1:
        raise InvalidRequest(
            f"--limit {arguments.limit}", needed="1 or more", next_step="leave --limit out for 50", param="limit"
        )
    with opened_database(existing_service(arguments)) as engine:
        entries = AuditLog(engine).newest(limit=arguments.limit, name=name, tag=tag)
    fields = {"entries": [entry.model_dump(mode="json") for entry in entries]}
    print_result(arguments, fields, "\n".join(map(_line, entries)) or "no change is recorded")


def _line(entry: AuditEntry) -> str:
    what = f"{entry.name}{f':{entry.tag}' if entry.tag else ''}" if entry.name else f"key {entry.subject_key}"
    digests = f"  {entry.digest_before or '-'} → {entry.digest_after or '-'}" if entry.name else ""
    who = f"key {entry.key_id}" if entry.key_id else "no key"
    job = f", job {entry.job_id}" if entry.job_id else ""
    return f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.action:<13} {what}{digests}  by {who} from {entry.peer or '?'}{job}"


def _tag(reference: str) -> tuple[str, str]:
    name, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag or "@" in reference:
        raise InvalidRequest(
            f"reference {reference!r}",
            needed="NAME:TAG",
            next_step="zo-cloud bundles list shows the names and tags",
            param="reference",
        )
    return name, tag


@contextlib.contextmanager
def _bundle_store(arguments: argparse.Namespace) -> Iterator[BundleStore]:
    from cloud_service.storage.bundle_index import last_publisher
    from cloud_service.storage.bundles import BundleStore
    from cloud_service.storage.database import reading
    from cloud_service.storage.signing import BundleSigner
    from cloud_service.storage.signing_keys import open_signing_key
    from shared.bundle.layout import ImageLayout

    settings = existing_service(arguments)
    layout = ImageLayout(settings.store)
    with opened_database(settings) as engine:
        with reading(engine) as connection:
            publisher = last_publisher(connection)
        key = open_signing_key(settings.signing_key, publisher_known=publisher)
        signer = BundleSigner(layout, key, timedelta(days=settings.release_days))
        yield BundleStore(engine, layout, settings.reports, signer, settings.immutable_tags)
