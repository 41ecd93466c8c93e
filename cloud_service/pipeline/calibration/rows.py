"""Task rows to calibrate on: N rows drawn without replacement, in tokens as a device would train on them.

Prompts, answers and the cut of prompts that are too long are ``shared.tasks``; so a mask made from a task's rows sees
exactly what tuning will see. The choice depends on the rows, the seed and N alone. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud_service.pipeline.model.tokenization import TextEncoder
from shared.api import OWN_ROWS, CalibrationSpec
from shared.errors import DataError, InvalidRequest
from shared.tasks.datasets import Record, draw_rows
from shared.tasks.examples import Example, encode_rows
from shared.tasks.named_tasks import named_task, prompt_style
from shared.tasks.rendering import NamedTaskRenderer, RowRenderer, UserRowRenderer
from shared.tasks.templates import DEFAULT_TEMPLATE, label_template, row_kind


def calibration_examples(
    records: Sequence[Record], encoder: TextEncoder, spec: CalibrationSpec, *, model_type: str
) -> list[Example]:
    """Return N of the rows in tokens, in the order drawn; a prompt that is too long loses its beginning.

    Args:
        records: All rows of the file.
        encoder: The model's tokenizer.
        spec: N, T (prompt and longest answer together), the seed, and what the rows are.
        model_type: The model's family: it decides the prompts of a named task.

    Raises:
        InvalidRequest: A template or label words are given for rows without labels.
        DataError: There are fewer than N rows, or a row is unusable.
    """
    if len(records) < spec.sequences:
        raise DataError(
            f"the calibration has {len(records)} rows",
            needed=f"{spec.sequences}: one row for each sequence",
            next_step=f"give more rows, or at most --sequences {len(records)}",
            param="calibration.sequences",
        )
    drawn = draw_rows(records, spec.sequences, spec.seed)
    rows = _renderer(records, spec, model_type).render(drawn)
    return encode_rows(rows, _RowEncoder(encoder), max_tokens=spec.tokens_per_sequence)


def _renderer(records: Sequence[Record], spec: CalibrationSpec, model_type: str) -> RowRenderer:
    if spec.task is not None and spec.task != OWN_ROWS:
        return NamedTaskRenderer(named_task(spec.task).name, prompt_style(model_type))
    if row_kind(records[0]) == "labelled":
        template = spec.template or DEFAULT_TEMPLATE
        return UserRowRenderer(_NoConversations(), label_template(records, template, spec.label_words))
    if spec.template is not None or spec.label_words is not None:
        raise InvalidRequest(
            "a template or label words for rows without labels",
            needed='{"text", "label"} rows',
            next_step="leave them out",
            param="calibration.template",
        )
    return UserRowRenderer(_NoConversations(), None)


@dataclass(frozen=True, slots=True)
class _RowEncoder:
    """The tokenizer in the form that ``shared.tasks`` asks for."""

    encoder: TextEncoder

    @property
    def bos_ids(self) -> list[int]:
        return self.encoder.bos

    @property
    def eos_ids(self) -> list[int]:
        return list(self.encoder.settings.eos_token_ids)

    @property
    def context_length(self) -> int:
        return self.encoder.settings.context_length

    def encode(self, text: str) -> list[int]:
        return self.encoder.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.encoder.tokenizer.decode(list(ids), skip_special_tokens=True))


class _NoConversations:
    """Refuses conversations: their chat template is a foreign program, which only devices render."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],  # noqa: ARG002
        *,
        add_generation_prompt: bool = True,  # noqa: ARG002
        tools: Sequence[Mapping[str, Any]] | None = None,  # noqa: ARG002
    ) -> str:
        raise DataError(
            "the calibration's rows are conversations",
            needed='{"text", "label"} or {"prompt", "completion"} rows',
            next_step="write each conversation as a prompt with its completion",
            param="calibration.text",
        )
