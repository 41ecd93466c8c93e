"""What a request may name, checked before a job is made: no model is opened, nothing is fetched.

A model is a hub id (``owner/name`` or ``name``) or a folder under a model root; a text is ``c4`` or a file under a text
root. A path is resolved (links followed) before it is compared with the roots. The pipeline checks the same again when
it opens them, because links may change in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shared.api import PrepareRequest
from shared.errors import InvalidModelId, InvalidRequest

_PART = r"[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MAX_HUB_ID = 96
_NEEDED_MODEL = "a hub id such as meta-llama/Llama-2-7b-hf, or a folder under one of the service's model roots"


def check_request(request: PrepareRequest, *, model_roots: Sequence[Path], text_roots: Sequence[Path]) -> None:
    """Refuse a request that names what this service does not open.

    Raises:
        InvalidModelId: The model is neither a hub id nor a folder under a model root.
        InvalidRequest: A text is neither ``c4`` nor a file under a text root; ``param`` names the field.
    """
    check_model(request.model, model_roots)
    check_text(request.calibration.text, text_roots, "calibration.text")
    if request.evaluation.text is not None:
        check_text(request.evaluation.text, text_roots, "evaluation.text")


def check_model(model: str, roots: Sequence[Path]) -> None:
    """Refuse a model that is neither a hub id nor an existing folder under a root.

    Raises:
        InvalidModelId: It is neither.
    """
    _refuse_unsafe(model, InvalidModelId, "model", _NEEDED_MODEL)
    is_folder = any(path.is_dir() for path in _paths_under(model, roots))
    is_hub_id = len(model) <= _MAX_HUB_ID and _HUB_ID.fullmatch(model) is not None and not model.endswith(".git")
    if not is_folder and not is_hub_id:
        raise InvalidModelId(
            f"model {model[:120]!r}, which is neither",
            needed=_NEEDED_MODEL,
            next_step="check the spelling; zo-cloud serve --model-root FOLDER allows the models in FOLDER",
            param="model",
        )


def check_text(text: str, roots: Sequence[Path], param: str) -> None:
    """Refuse a text that is neither ``c4`` nor an existing file under a root.

    Raises:
        InvalidRequest: It is neither.
    """
    needed = "c4, or a text file under one of the service's text roots"
    _refuse_unsafe(text, InvalidRequest, param, needed)
    if text != "c4" and not any(_paths_under(text, roots)):
        raise InvalidRequest(
            f"{param} {text[:120]!r}, which is neither",
            needed=needed,
            next_step="check the spelling; zo-cloud serve --text-root FOLDER allows the texts in FOLDER",
            param=param,
        )


def _paths_under(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return what exists under a root: ``name`` may be relative to the root, or absolute and inside it."""
    paths = [((root / name).resolve(), root.resolve()) for root in roots]
    return [path for path, root in paths if path != root and path.is_relative_to(root) and path.exists()]


def _refuse_unsafe(value: str, error: type[InvalidRequest], param: str, needed: str) -> None:
    if ".." in Path(value).parts or "\x00" in value or _URL.match(value):
        raise error(f"{param} {value[:120]!r}", needed=needed, param=param)
