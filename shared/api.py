"""Requests and responses of the HTTP API, validated the same way on both sides.

The service answers errors as RFC 9457 problem+json (``Problem``); everything else here is application/json.
Times are UTC, RFC 3339. Sizes are bytes.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.text_types import PlainText, ShownText

PROBLEM_MEDIA_TYPE = "application/problem+json"
BUNDLE_NAME_PATTERN = r"^[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*){0,3}$"
TAG_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

PATTERNS_IN_WORDS = {
    BUNDLE_NAME_PATTERN: "lower-case letters and digits, with single '.', '_' or '-' between them, "
    "in one to four parts with '/' between them, such as team/my-llama",
    TAG_PATTERN: "at most 128 letters, digits, '.', '_' or '-', of which the first is not '.' or '-', such as v1.0",
    REVISION_PATTERN: "at most 128 letters, digits, '.', '_', '/' or '-', of which the first is a letter or digit",
    DIGEST_PATTERN: "sha256: followed by 64 lower-case hexadecimal digits",
}
"""What each pattern asks for, for people whose text does not fit it."""

SIGNATURE_SUFFIX = ".sig"
"""End of the tags that signatures are published under; no bundle may have such a tag."""


def _is_no_signature(tag: str) -> str:
    if tag.endswith(SIGNATURE_SUFFIX):
        raise ValueError(f"a tag that does not end in {SIGNATURE_SUFFIX}: such tags hold signatures")
    return tag


BundleName = Annotated[PlainText, Field(pattern=BUNDLE_NAME_PATTERN, max_length=200)]
Tag = Annotated[PlainText, Field(pattern=TAG_PATTERN), AfterValidator(_is_no_signature)]
GgufFileName = Annotated[PlainText, Field(pattern=r"^[A-Za-z0-9_][^/\\]*\.gguf$", max_length=255)]


class Message(BaseModel):
    """Base of all messages: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobStatus(StrEnum):
    """States of a job; the last three are terminal and never change."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Stage(StrEnum):
    """Stages of a preparation, in order."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    CALIBRATING = "calibrating"
    SELECTING = "selecting"
    QUANTIZING = "quantizing"
    EVALUATING = "evaluating"
    PUBLISHING = "publishing"


OWN_ROWS = "rows"
"""The ``CalibrationSpec.task`` of somebody's own rows, which are no named task's."""

CalibrationTask = Literal["SST-2", "RTE", "CB", "BoolQ", "WSC", "WiC", "COPA", "rows"]


class CalibrationSpec(Message):
    """What the Fisher diagonal is averaged over: sequences of a text, or the rows of a task with their true answers.

    Attributes:
        text: ``c4`` (C4-en, streamed), ``self`` (what the model itself writes, sampled), or the path of a local .jsonl
            (key ``text``) or .txt file. Of a named task: the folder of the tasks' folders, the task's own folder, or
            its file of training rows. Of ``rows``: a .jsonl, .csv or .tsv file of {"text", "label"} or {"prompt",
            "completion"} rows.
        task: None for a text; one of the paper's tasks, prompted as Table 6 does; or ``rows``.
        template: Prompt around labelled ``rows``: text with ``{text}`` and, after it, ``{label}``; None is the default
            of the device.
        label_words: Label → word that stands for it, for labelled ``rows``; None takes the labels as they are.
        sequences: Number of sequences N that the Fisher diagonal is averaged over; of a task, one row each.
        tokens_per_sequence: Tokens of each sequence, shortened to what the model's context allows; of a task, at most.
        seed: Seed of the choice of documents or rows.
    """

    text: Annotated[PlainText, Field(min_length=1, max_length=4096)] = "c4"
    task: CalibrationTask | None = None
    template: Annotated[PlainText, Field(max_length=4096)] | None = None
    label_words: Annotated[dict[PlainText, PlainText], Field(min_length=2, max_length=1000)] | None = None
    sequences: Annotated[int, Field(ge=2, le=65536)] = 128
    tokens_per_sequence: Annotated[int, Field(ge=8, le=32768)] = 512
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("task", mode="before")
    @classmethod
    def _task_in_any_case(cls, task: object) -> object:
        names = {name.lower(): name for name in get_args(CalibrationTask)}
        return names.get(task.lower(), task) if isinstance(task, str) else task

    @field_validator("template")
    @classmethod
    def _template_has_both_places(cls, template: str | None) -> str | None:
        before, _, after = (template or "").partition("{text}")
        if template is not None and (after.count("{label}") != 1 or "{label}" in before or "{text}" in after):
            raise ValueError("a template with {text} once and, after it, {label} once")
        return template

    @field_validator("label_words")
    @classmethod
    def _words_tell_labels_apart(cls, words: dict[str, str] | None) -> dict[str, str] | None:
        if words is not None and (not all(words.values()) or len(set(words.values())) < len(words)):
            raise ValueError("a word of its own for every label")
        return words

    @model_validator(mode="after")
    def _rows_have_a_place(self) -> CalibrationSpec:
        if self.task is not None and self.text in ("c4", "self"):
            what = "a file of rows" if self.task == OWN_ROWS else f"the folder that holds the folder {self.task}"
            raise ValueError(f"a text that is {what}; {self.text} has no task rows")
        if self.task != OWN_ROWS and (self.template is not None or self.label_words is not None):
            raise ValueError("the task 'rows', because template and label_words are for labelled rows")
        return self


class EvaluationSpec(Message):
    """Held-out text for the perplexity before and after.

    Attributes:
        text: Like ``CalibrationSpec.text``; None takes it from the calibration text, or C4 where that is task rows.
        documents: Documents to evaluate on: the first ones of the text. Where the text is the calibration text, the
            calibration leaves them out. Of ``self`` the model writes other sequences for it, at most as many as for
            the calibration. 0 evaluates nothing.
    """

    text: Annotated[PlainText, Field(min_length=1, max_length=4096)] | None = None
    documents: Annotated[int, Field(ge=0, le=100_000)] = 200


_SOURCE_SETTINGS = {"bits": 4, "group_size": 32, "compensation": "none"}


class QuantizerSpec(Message):
    """How the dense weights are quantised.

    Attributes:
        method: ``lut`` (a Fisher-weighted codebook per row), ``shared`` (a codebook per weight matrix, a scale per
            group), ``uniform`` (groups, weighted search of scale and zero), ``rtn`` (groups, plain round to nearest;
            a baseline) or ``source`` (the 4-bit codes of a Q4_0 or Q4_1 GGUF file, exactly as they are; its other
            linear weights as ``uniform``: 4 bits, groups of 32, no compensation).
        bits: 2, 3, 4 or 8.
        group_size: Columns per group for ``shared``, ``uniform`` and ``rtn``; unused by ``lut``.
        compensation: ``gptq`` lets each column's error be made up for by later columns, by the second moments of the
            layer's inputs on the calibration text (Equation 13); with ``rtn`` this is GPTQ as published. ``refit``
            then fits codebooks (or scales) and codes to each other again, by the same second moments.
    """

    method: Literal["lut", "shared", "uniform", "rtn", "source"] = "lut"
    bits: Literal[2, 3, 4, 8] = 4
    group_size: Annotated[int, Field(ge=8, le=4096)] = 64
    compensation: Literal["none", "gptq", "refit"] = "gptq"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_source(cls, given: Any) -> Any:
        return _SOURCE_SETTINGS | given if isinstance(given, dict) and given.get("method") == "source" else given

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.method == "source" and self.model_dump(include=set(_SOURCE_SETTINGS)) != _SOURCE_SETTINGS:
            raise ValueError("source keeps a file's own codes: 4 bits, groups of 32, no compensation; leave these out")
        return self


EmbeddingBits = Literal[16, 8, 4]


class PrepareRequest(Message):
    """Body of ``POST /prepare-model``.

    Attributes:
        model: A folder under one of the service's model roots, or ``hub:`` and a hub id, such as
            ``hub:meta-llama/Llama-2-7b-hf``; the service's setting ``hub_namespaces`` says which ids need no ``hub:``.
        revision: Hub revision; None means the default branch. The commit that was resolved is recorded.
        gguf_file: Name of a GGUF file in the folder or repository: that file is the model. A folder whose only weights
            are one GGUF file needs none, and ``model`` may name the file itself.
        name: Name to publish under; None derives it from the model.
        tag: Tag to publish under.
        sparsity: Share of each linear layer's weights that is sensitive, 0 < sparsity ≤ 0.5.
        scope: ``per_tensor``: exactly k per weight. ``global``: exactly k over all of them (Definition 3).
        mask_source: ``fisher``, or a baseline: ``magnitude`` (the largest weights) or ``random``.
        quantizer: How the dense part is quantised.
        embedding_bits: Bits of each number of the token embedding and the output head; 16 keeps them as they are, which
            devices before 0.2.0 need.
        calibration: Text of the Fisher pass.
        evaluation: Text of the perplexity report.
        allow_untested: Take a model whose family nobody tests; the bundle says so.
        force: Prepare again although the same input was prepared before.
    """

    model: Annotated[PlainText, Field(min_length=1, max_length=4096, examples=["my-llama"])]
    revision: Annotated[PlainText, Field(pattern=REVISION_PATTERN)] | None = None
    gguf_file: GgufFileName | None = None
    name: BundleName | None = None
    tag: Tag = "latest"
    sparsity: Annotated[float, Field(gt=0, le=0.5)] = 0.001
    scope: Literal["per_tensor", "global"] = "per_tensor"
    mask_source: Literal["fisher", "magnitude", "random"] = "fisher"
    quantizer: QuantizerSpec = QuantizerSpec()
    embedding_bits: EmbeddingBits = 8
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    allow_untested: bool = False
    force: bool = False

    @field_validator("revision")
    @classmethod
    def _revision_stays_inside(cls, revision: str | None) -> str | None:
        if revision is not None and ".." in revision:
            raise ValueError("a revision without '..'")
        return revision


class Progress(Message):
    """How far the current stage is."""

    done: Annotated[int, Field(ge=0)] = 0
    total: Annotated[int, Field(ge=0)] = 0
    unit: ShownText = ""

    @model_validator(mode="after")
    def _done_within_total(self) -> Progress:
        if self.total and self.done > self.total:
            raise ValueError(f"progress {self.done} of {self.total}")
        return self


class JobResult(Message):
    """What a succeeded job published."""

    name: str
    tag: str
    digest: str
    size_bytes: int


class JobError(Message):
    """Why a job failed; the fields of ``Problem`` that make sense without a request."""

    type: str
    message: ShownText
    param: ShownText | None = None


class Job(Message):
    """One preparation."""

    id: str
    status: JobStatus
    stage: Stage | None = None
    progress: Progress = Progress()
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    estimated_finish: datetime | None = None
    attempt: int = 0
    input: PrepareRequest
    result: JobResult | None = None
    error: JobError | None = None


class JobList(Message):
    """A page of jobs, newest first; ``next`` is the ``after`` of the next page."""

    jobs: list[Job]
    next: str | None = None


class JobEvent(Message):
    """One change of a job; ``id`` counts up from 1 without holes and is the SSE event id."""

    id: int
    at: datetime
    status: JobStatus
    stage: Stage | None = None
    progress: Progress = Progress()
    message: ShownText = ""


class JobEvents(Message):
    """The events of a job, oldest first."""

    events: list[JobEvent]


class BundleSummary(Message):
    """One published bundle as ``GET /v1/bundles`` lists it."""

    name: str
    tag: str
    digest: str
    size_bytes: int
    base_model: ShownText
    parameter_count: int
    sensitive_count: int
    perplexity_16bit: float | None = None
    perplexity_bundle: float | None = None
    report_url: str | None = None


class BundleList(Message):
    """A page of published bundles, by name and tag; ``next`` is the ``after`` of the next page."""

    bundles: list[BundleSummary]
    next: str | None = None


class TagMove(Message):
    """Body of ``POST /v1/bundles/{name}/tags/{tag}``: the digest that the tag shall name, or ``back``.

    Attributes:
        digest: Of a bundle that was published under that name.
        back: Name again what the tag named before its last change.
    """

    digest: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None
    back: bool = False

    @model_validator(mode="after")
    def _names_one_digest(self) -> TagMove:
        if (self.digest is None) is not self.back:
            raise ValueError("either a digest or back: true")
        return self


class PublishedTag(Message):
    """What a tag names; ``version`` only ever grows, whatever the tag names."""

    name: str
    tag: str
    digest: str
    version: int


class AuditAction(StrEnum):
    """What was changed."""

    IMPORT = "import"
    PUBLISH = "publish"
    RETAG = "retag"
    DELETE_TAG = "delete-tag"
    DELETE_BUNDLE = "delete-bundle"
    CREATE_KEY = "create-key"
    REVOKE_KEY = "revoke-key"


class AuditEntry(Message):
    """One change of what is published, or of the keys.

    Attributes:
        key_id: The key of whoever made it; None at the service's own command line.
        peer: From where: an address, or a word for another place.
        job_id: The job that published.
        digest_before: What the tag named before; None where it named nothing.
        digest_after: What it names since; None where it names nothing.
        subject_key: The key that was created or revoked.
    """

    id: int
    at: datetime
    action: AuditAction
    key_id: str | None = None
    peer: str | None = None
    job_id: str | None = None
    name: str | None = None
    tag: str | None = None
    digest_before: str | None = None
    digest_after: str | None = None
    subject_key: str | None = None


class AuditList(Message):
    """A page of changes, newest first; ``next`` is the ``after`` of the next page."""

    entries: list[AuditEntry]
    next: int | None = None


class Problem(BaseModel):
    """RFC 9457 problem+json: ``type`` is stable, ``detail`` says what was found, needed and to do."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: ShownText = ""
    instance: ShownText | None = None
    param: ShownText | None = None
