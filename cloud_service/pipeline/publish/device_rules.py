"""Opens a bundle as a device will, before its manifest exists: nothing is signed that a device would refuse.

Costs a network without memory and, where there is a chat template, one process for a second. Knows nothing about blobs:
whoever signs validates those.
"""

from __future__ import annotations

from shared.bundle.config import BundleConfig
from shared.errors import IntegrityError, InvalidRequest, UnsupportedModel
from shared.model.opening import check_opening


def check_devices_open(config: BundleConfig, tokenizer_json: bytes) -> None:
    """Refuse a bundle that a device could not open.

    Args:
        config: What the bundle's tensors mean.
        tokenizer_json: The tokenizer that is published.

    Raises:
        UnsupportedModel: A device would refuse it; the message says what the device would say.
    """
    try:
        check_opening(config, tokenizer_json.decode())
    except (IntegrityError, InvalidRequest) as error:
        raise UnsupportedModel(
            f"a device would refuse the bundle: {error.found}",
            needed=error.needed or "a model that devices of this version open",
            next_step="repair the model folder, or choose another model; nothing was signed",
            param="model",
        ) from error
