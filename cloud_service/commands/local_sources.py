"""What a person at a terminal lets a command read: any local path, and the hub unless offline."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud_service.sources import SourcePolicy


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``local_sources`` reads."""
    parser.add_argument(
        "--hub-endpoint", metavar="URL", help="the hub that models are fetched from (C4: see HF_ENDPOINT)"
    )
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")


def local_sources(arguments: argparse.Namespace) -> SourcePolicy:
    """Return the rules; options win over the settings."""
    from cloud_service.settings import load_settings
    from cloud_service.sources import SourcePolicy

    settings = load_settings()
    sources = SourcePolicy(
        allow_any_local=True,
        is_offline=arguments.offline or settings.is_offline,
        hub_token=settings.hub_token_text,
    )
    endpoint = arguments.hub_endpoint or settings.hub_endpoint
    return sources if endpoint is None else dataclasses.replace(sources, hub_endpoint=endpoint)
