"""What a request may name, checked before a job is made: no model is opened, nothing is fetched. See ``sources``."""

from __future__ import annotations

from cloud_service.bundle_names import bundle_name
from cloud_service.sources import SourcePolicy, locate_calibration, locate_model, locate_text
from shared.api import PrepareRequest


def check_request(request: PrepareRequest, policy: SourcePolicy) -> str:
    """Refuse a request that names what this service does not open; return the name that it would publish under.

    Raises:
        InvalidModelId: The model is neither a folder under a model root nor a hub id that may be named so.
        InvalidRequest: A text is neither ``c4`` nor a text under a text root; ``param`` names the field.
    """
    model = locate_model(request.model, request.revision, policy, gguf_file=request.gguf_file)
    locate_calibration(request.calibration, policy)
    if request.evaluation.text is not None:
        locate_text(request.evaluation.text, policy, param="evaluation.text")
    return request.name or bundle_name(model.id)
