"""``zo-cloud serve``: the HTTP service. Options win over ``ZO_CLOUD_…`` variables (see ``settings``)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cloud_service.commands.launcher_options import LAUNCHER_OPTIONS
from cloud_service.commands.memory_options import MEMORY_OPTIONS

_OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"type": Path, "help": "folder of database, jobs and bundles (default: ~/.local/share/zo-cloud)"},
    "--host": {"help": "address to listen on (default: 127.0.0.1)"},
    "--port": {"type": int, "help": "port to listen on; 0 takes any free one (default: 8080)"},
    "--workers": {"type": int, "help": "jobs that run at the same time (default: 1)"},
    "--max-attempts": {"type": int, "help": "crashes without progress after which a job fails (default: 5)"},
    "--max-queued-jobs-per-key": {"type": int, "help": "jobs that one key may have waiting (default: 100)"},
    "--model-root": {
        "type": Path, "action": "append", "dest": "model_roots", "metavar": "FOLDER",
        "help": "folder whose models a request may name; may be repeated",
    },
    "--text-root": {
        "type": Path, "action": "append", "dest": "text_roots", "metavar": "FOLDER",
        "help": "folder whose texts a request may name; may be repeated",
    },
    "--immutable-tag": {
        "action": "append", "dest": "immutable_tags", "metavar": "PATTERN",
        "help": "tags such as 'v*' that name the same digest for ever once published; may be repeated",
    },
    "--hub-namespace": {
        "action": "append", "dest": "hub_namespaces", "metavar": "PATTERN",
        "help": "hub ids that need no 'hub:' in front, such as 'meta-llama/*', or '*' for all; may be repeated",
    },
    **{option: {"metavar": "SIZE", "help": text} for option, text in MEMORY_OPTIONS.items()},
    **LAUNCHER_OPTIONS,
    "--job-isolation": {
        "choices": ["auto", "user", "namespace", "landlock", "none"],
        "help": "how jobs are kept from the service's data and the network (default: auto, the strongest that works)",
    },
    "--hub-endpoint": {"metavar": "URL", "help": "the only hub that models and C4 are fetched from"},
    "--tls-cert": {"type": Path, "dest": "tls_certificate", "metavar": "PEM", "help": "certificate chain"},
    "--tls-key": {"type": Path, "metavar": "PEM", "help": "the certificate's private key"},
    "--max-connections": {
        "type": int, "metavar": "NUMBER",
        "help": "connections at the same time; for a new one the oldest without a request is closed (default: 512)",
    },
    "--forwarded-allow-ips": {
        "action": "append", "metavar": "ADDRESS",
        "help": "proxy, or network of proxies, whose X-Forwarded-For is believed; may be repeated (default: none)",
    },
    "--offline": {
        "action": "store_const", "const": True, "dest": "is_offline", "help": "use only what is on this machine",
    },
    "--insecure-public": {
        "action": "store_const", "const": True, "dest": "is_public_without_tls_allowed",
        "help": "serve plain HTTP on a public address, because a proxy in front terminates TLS",
    },
    "--no-auth": {
        "action": "store_const", "const": False, "dest": "is_auth_enabled",
        "help": "need no API keys; loopback addresses only",
    },
}  # fmt: skip


def add_serve_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("serve", help="serve the HTTP API", description=__doc__)
    for option, settings in _OPTIONS.items():
        parser.add_argument(option, **{"default": None, **settings})
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.app import serve
    from cloud_service.settings import Settings, load_settings

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    serve(load_settings(**{name: value for name, value in given.items() if name in Settings.model_fields}))
