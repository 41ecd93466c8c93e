"""What a request may name, checked before a job is made: no model is opened, nothing is fetched. See ``sources``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloud_service.sources import SourcePolicy, locate_calibration, locate_model, locate_text
from shared.api import PrepareRequest


def check_request(
    request: PrepareRequest,
    *,
    model_roots: Sequence[Path],
    text_roots: Sequence[Path],
    hub_namespaces: Sequence[str] = (),
) -> None:
    """Refuse a request that names what this service does not open.

    Raises:
        InvalidModelId: The model is neither a folder under a model root nor a hub id that may be named so.
        InvalidRequest: A text is neither ``c4`` nor a text under a text root; ``param`` names the field.
    """
    policy = SourcePolicy(tuple(model_roots), tuple(text_roots), hub_namespaces=tuple(hub_namespaces))
    locate_model(request.model, request.revision, policy)
    locate_calibration(request.calibration, policy)
    if request.evaluation.text is not None:
        locate_text(request.evaluation.text, policy, param="evaluation.text")
