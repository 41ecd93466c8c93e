"""``zo-device pull``: fetch a bundle, verify all of it, and make it visible last."""

from __future__ import annotations

import argparse
import threading
from typing import Any

from device_client.commands.server_options import add_server_options, connect
from device_client.commands.trust_options import acceptance_rules, add_trust_options, describe
from device_client.console import Console
from device_client.download.pull import PullOptions, pull
from device_client.download.reference import BundleReference, normalized_server, parse_reference
from device_client.download.registry import Registry
from device_client.download.trusted_keys import TrustedKeys
from device_client.settings import Settings
from device_client.store import make_home, resolve_bundle, resolve_reference
from shared.api import BundleList
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest, NetworkError, NotFound, ZoError

NAME = "pull"
HELP = "fetch a bundle, or go on with a download that was cut; run again, it changes nothing"
_SHOWN_BUNDLES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is to be pulled, from where, and how."""
    parser.add_argument(
        "reference",
        nargs="?",
        metavar="REF",
        help="https://host/name:tag, name:tag or name@sha256:…; may be left out where the server has one bundle",
    )
    add_server_options(parser)
    add_trust_options(parser)
    parser.add_argument("--connections", type=int, default=4, metavar="N", help="connections at once (default: 4)")
    parser.add_argument("--max-rate", metavar="SIZE", help="bytes per second at most, for example 2MB")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Pull and return what is in the store now."""
    if not 1 <= arguments.connections <= 64:
        raise InvalidRequest(f"--connections {arguments.connections}", needed="1 … 64", param="connections")
    rate = parse_bytes(arguments.max_rate) if arguments.max_rate else None
    if settings.is_offline:
        return _already_here(arguments.reference, console, settings)
    make_home(settings)
    stop = threading.Event()
    server = _server(arguments.reference, arguments.server or settings.server)
    with connect(arguments, server, console, settings, stop=stop, max_bytes_per_second=rate) as registry:
        reference = _reference(arguments.reference, registry)
        keys = TrustedKeys(settings.trusted_keys)
        rules = acceptance_rules(
            arguments,
            settings,
            reference.source,
            f"{reference.name}:{reference.tag or 'latest'}",
            digest=reference.digest,
        )
        options = PullOptions(connections=arguments.connections, max_bytes_per_second=rate, stop=stop)
        try:
            pulled = pull(reference, rules, registry, settings.store, keys, console, options)
        except NotFound as error:
            raise _with_listing(reference, registry) from error
    return describe(pulled, reference.source, settings, console)


def _already_here(text: str | None, console: Console, settings: Settings) -> dict[str, Any]:
    """Without a network the only pull that can succeed is one that has nothing to fetch."""
    wanted = parse_reference(text, settings.server) if text else None
    local = None
    if wanted is not None:
        local = f"{wanted.name}@{wanted.digest}" if wanted.digest else wanted.local
    try:
        reference, _ = resolve_reference(settings.store, local)
    except NotFound as error:
        raise NetworkError(
            f"{text or 'one bundle'} is not in the store, and --offline forbids to fetch it",
            next_step="run it without --offline, or zo-device import FOLDER",
        ) from error
    bundle = resolve_bundle(settings, reference)
    console.say(
        f"{reference} is here and every byte was checked ({format_bytes(bundle.manifest.size_bytes)}); "
        "whether the server has a newer one was not asked."
    )
    return {
        "reference": reference,
        "digest": bundle.digest,
        "size_bytes": bundle.manifest.size_bytes,
        "fetched_bytes": 0,
        "was_complete": True,
    }


def _server(text: str | None, configured: str | None) -> str:
    if text is None or configured is None:
        server = parse_reference(text, None).server if text else configured
    else:
        server = parse_reference(text, configured).server
    if not server:
        raise InvalidRequest(
            f"{text or 'no reference'}, and no server is set",
            needed="a URL with the bundle's name, or a server for names",
            next_step=f"zo-device pull https://HOST/{text or 'NAME:TAG'}, or set ZO_DEVICE_SERVER",
        )
    return normalized_server(server)


def _reference(text: str | None, registry: Registry) -> BundleReference:
    """Return what to pull; the only bundle of the server where nothing was named."""
    if text is None:
        offered = registry.bundles(at_most=_SHOWN_BUNDLES)
        if len(offered.bundles) != 1 or offered.next is not None:
            raise NotFound(
                f"{len(offered.bundles)}{'' if offered.next is None else ' and more'} bundles on {registry.server}",
                needed=f"a reference, one of: {_listing(offered)}",
                next_step="zo-device pull NAME:TAG",
            )
        text = f"{offered.bundles[0].name}:{offered.bundles[0].tag}"
    return parse_reference(text, registry.server)


def _with_listing(reference: BundleReference, registry: Registry) -> NotFound:
    """Return the error with what the server has instead, where it says so."""
    found = f"no bundle {reference}"
    try:
        listing = _listing(registry.bundles(at_most=_SHOWN_BUNDLES))
        return NotFound(found, needed=f"one of: {listing}", next_step="zo-device list --remote")
    except ZoError:
        pass
    try:
        tags = ", ".join(f"{reference.name}:{tag}" for tag in registry.tags(reference.name)[:_SHOWN_BUNDLES])
    except ZoError:
        tags = ""
    return NotFound(found, needed=f"one of: {tags}" if tags else "", next_step="check the name and the tag")


def _listing(offered: BundleList) -> str:
    names = [f"{bundle.name}:{bundle.tag}" for bundle in offered.bundles]
    is_cut = len(names) > _SHOWN_BUNDLES or offered.next is not None
    return ", ".join(names[:_SHOWN_BUNDLES] + (["…"] if is_cut else [])) or "none is published"
