"""Reads the texts of an input once; from then on they are in its workspace, whatever a stream gives on another day.

    evaluation-documents.json      the held-out documents
    calibration.safetensors        the calibration tokens
    written-<use>.safetensors      what the model has written of a text of its own so far

Costs one look at the files where they are there; a text that the model writes is sampled token by token. Knows nothing
about what the texts are for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.calibration.sequences import Calibration, read_calibration
from cloud_service.pipeline.calibration.written_text import write_sequences
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput
from cloud_service.pipeline.opening.planned_model import PlannedModel
from cloud_service.pipeline.workspace import Workspace
from cloud_service.progress import ProgressSink
from cloud_service.sources import SourcePolicy
from shared.api import Stage

_EVALUATED_TOKENS = 512


@dataclass(frozen=True, slots=True)
class SavedTexts:
    """The texts of an input.

    Attributes:
        named: What was asked for.
        source: What that turned out to be.
        model: The model, which may have to write a text.
        policy: What may be read.
        workspace: Where the texts are kept.
        progress: Told what the model writes; may raise ``Interrupted``.
    """

    named: NamedInput
    source: ResolvedInput
    model: PlannedModel
    policy: SourcePolicy
    workspace: Workspace
    progress: ProgressSink

    def calibration(self) -> Calibration:
        """Return the calibration tokens; evaluation documents are not among them.

        Raises:
            DataError: The text is too short or malformed.
            NetworkError: It streams, and the hub does not answer.
            UnsupportedModel: The model shall write it, and cannot.
            DiskError: The workspace cannot be written.
        """
        if (saved := self.workspace.read_tensors("calibration")) is not None:
            return Calibration.from_tensors(saved)
        spec, text = self.named.calibration, self.source.calibration
        if text.is_written:
            tokens = self._written("calibration", spec.sequences, spec.tokens_per_sequence, spec.seed)
            calibration = Calibration.of_windows(tokens)
        else:
            calibration = read_calibration(
                text,
                self.model.encoder,
                spec,
                policy=self.policy,
                model_type=str(self.model.outline.architecture["model_type"]),
                held_out=self.named.evaluation.documents if text == self.source.evaluation else 0,
            )
        self.workspace.write_tensors("calibration", calibration.to_tensors(), {})
        return calibration

    def evaluation_documents(self) -> list[str]:
        """Return the documents that perplexity is measured on.

        Raises:
            ZoError: As ``calibration`` does.
        """
        if (saved := self.workspace.read_json("evaluation-documents")) is not None:
            return [str(document) for document in saved]
        count, text = self.named.evaluation.documents, self.source.evaluation
        if not count:
            documents = []
        elif text.is_written:
            spec = self.named.calibration
            tokens = self._written("evaluation", min(count, spec.sequences), _EVALUATED_TOKENS, spec.seed + 1)
            documents = [self.model.encoder.tokenizer.decode(row, False) for row in tokens[:, 1:].tolist()]
        else:
            documents = list(itertools.islice(read_documents(text, self.policy), count))
        self.workspace.write_json("evaluation-documents", documents)
        return documents

    def _written(self, use: str, count: int, length: int, seed: int) -> Tensor:
        """Return sequences that the model writes, beginning with those that the workspace has."""
        saved = self.workspace.read_tensors(f"written-{use}")

        def after_batch(tokens: Tensor) -> None:
            self.workspace.write_tensors(f"written-{use}", {"tokens": tokens}, {})
            self.progress.advance(len(tokens))

        self.progress.note(f"the model writes {count} sequences for the {use}")
        self.progress.stage(Stage.CALIBRATING, total=count, unit="written sequences")
        # Beside the network the Fisher pass, which is planned for, keeps sums of the weights of one pass at least.
        spare = 4 * sum(self.model.outline.linear_sizes.values()) // len(self.model.plan.passes)
        return write_sequences(
            self.model.load(),
            self.model.encoder,
            count,
            min(length, self.model.encoder.settings.context_length),
            seed,
            cache_bytes=spare,
            written=None if saved is None else saved["tokens"],
            after_batch=after_batch,
        )
