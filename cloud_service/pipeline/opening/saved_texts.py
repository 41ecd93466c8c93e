"""Reads the texts of an input once; from then on they are in its workspace, whatever a stream gives on another day.

    evaluation-documents.json      the held-out documents
    calibration.safetensors        the calibration tokens

Costs one look at the files where they are there. Knows nothing about what the texts are for.
"""

from __future__ import annotations

import itertools

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.calibration.sequences import Calibration, read_calibration
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.opening.planned_model import PlannedModel
from cloud_service.pipeline.workspace import Workspace
from cloud_service.sources import SourcePolicy


def read_texts(
    named: NamedInput, source: ResolvedInput, model: PlannedModel, policy: SourcePolicy, workspace: Workspace
) -> tuple[Calibration, list[str]]:
    """Return calibration tokens and evaluation documents, which are kept out of the calibration.

    Raises:
        DataError: A text is too short or malformed.
        NetworkError: A text streams, and the hub does not answer.
        DiskError: The workspace cannot be written.
    """
    documents = _evaluation_documents(named, source, policy, workspace)
    saved = workspace.read_tensors("calibration")
    if saved is not None:
        return Calibration.from_tensors(saved), documents
    is_same_text = source.calibration == source.evaluation
    calibration = read_calibration(
        source.calibration,
        model.encoder,
        named.calibration,
        policy=policy,
        model_type=str(model.outline.architecture["model_type"]),
        held_out=named.evaluation.documents if is_same_text else 0,
    )
    workspace.write_tensors("calibration", calibration.to_tensors(), {})
    return calibration, documents


def _evaluation_documents(
    named: NamedInput, source: ResolvedInput, policy: SourcePolicy, workspace: Workspace
) -> list[str]:
    saved = workspace.read_json("evaluation-documents")
    if saved is not None:
        return [str(document) for document in saved]
    count = named.evaluation.documents
    documents = list(itertools.islice(read_documents(source.evaluation, policy), count)) if count else []
    workspace.write_json("evaluation-documents", documents)
    return documents
