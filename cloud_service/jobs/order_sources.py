"""What an order's request names: the rules for reading it, and whether the network is needed for it."""

from __future__ import annotations

from dataclasses import replace

from cloud_service.jobs.messages import JobOrder
from cloud_service.sources import C4, HubModel, SourcePolicy, locate_calibration, locate_model, locate_text
from shared.errors import ZoError


def source_policy(order: JobOrder) -> SourcePolicy:
    """Return what a preparation for the order may read."""
    policy = SourcePolicy(
        model_roots=order.model_roots,
        text_roots=order.text_roots,
        hub_namespaces=order.hub_namespaces,
        is_offline=order.is_offline,
        hub_token=order.hub_token,
    )
    return policy if order.hub_endpoint is None else replace(policy, hub_endpoint=order.hub_endpoint)


def names_hub(order: JobOrder) -> bool:
    """Whether the model or a text of the request is the hub's, cached or not.

    A request that names nothing that may be read needs no hub: its job fails, and says why.
    """
    policy, request = source_policy(order), order.request
    try:
        model = locate_model(request.model, request.revision, policy, gguf_file=request.gguf_file)
        texts = [locate_calibration(request.calibration, policy)]
        default_text = C4 if request.calibration.task else request.calibration.text
        texts.append(locate_text(request.evaluation.text or default_text, policy, param="evaluation.text"))
    except ZoError:
        return False
    return isinstance(model, HubModel) or any(text.is_hubs for text in texts)
