"""What a shared fine-tune says of itself: strict JSON that a foreign device checks before it believes any of it.

    fine-tune   bundle, method, blocks, settings, how rows were asked, results        the artifact's configuration
    statement   digest of the artifact, bundle, public key                            what the key signs

Digests of the person's rows, by which a guess about them could be confirmed, stay at home, and what is computed from
them; so does the command of a checker. Knows nothing about files.
"""

from __future__ import annotations

import base64
import math
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from device_client.planning.methods import METHODS, MethodName
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.settings import TuneSettings
from shared.bundle.digest import Digest
from shared.bundle.documents import Document
from shared.bundle.signature import fingerprint_of
from shared.bundle.statement import PublicKey

Content = Literal["values", "journal"]
Stage = Literal["bundle", "start", "last", "best"]
ShortText = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Figures(Document):
    """What values score; a loss that is not finite is left out."""

    loss: float | None = None
    accuracy: float | None = None
    score: float | None = None
    rows: Count

    @classmethod
    def of(cls, found: dict[str, Any]) -> Figures:
        """Return those of a run's record."""
        return cls.model_validate({name: found.get(name) for name in cls.model_fields})

    def as_evaluation(self) -> Evaluation:
        """Return them as the loop has them."""
        return Evaluation(math.inf if self.loss is None else self.loss, self.accuracy, self.rows, self.score)


class Validation(Document):
    """A validation of the run: what a replay needs to know when to go back to the best values."""

    steps_done: Count
    figures: Figures


class SharedSettings(Document):
    """What decided the run, as ``TuneSettings`` has it."""

    method: MethodName
    gradient: Literal["zeroth-order", "first-order"]
    steps: Annotated[int, Field(ge=1, lt=2**31)]
    batch_size: Annotated[int, Field(ge=1, lt=2**31)]
    epsilon: float
    epsilon_share: float | None = None
    lr: float | None = None
    step_length: float | None = None
    decay: Literal["constant", "linear"]
    clip_multiple: float
    queries: Annotated[int, Field(ge=1, le=1024)]
    directions: Literal["two-sided", "one-sided"]
    distribution: Literal["gaussian", "rademacher"]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    objective: Literal["candidates", "vocabulary"] | None = None
    metric: Literal["accuracy", "f1", "exact-match", "checker"] | None = None
    answer_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    validate_every: Annotated[int, Field(ge=1, lt=2**31)]
    patience: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    blocks: Annotated[str, Field(pattern=r"^(all|upper:[1-9][0-9]{0,3})$")]

    @classmethod
    def of(cls, identity: dict[str, Any]) -> SharedSettings:
        """Return those of a run's configuration, in which what is usual is left out."""
        usual = {field.name: field.default for field in fields(TuneSettings)}
        stated = {name: identity.get(name, usual[name]) for name in cls.model_fields}
        if stated["lr"] is not None:
            stated["step_length"] = None  # which such a configuration states, although it decides nothing
        return cls(**stated)

    def as_settings(self) -> TuneSettings:
        """Return what the loop takes.

        Raises:
            InvalidRequest: They contradict each other.
        """
        return TuneSettings(**self.model_dump())


class Rendering(Document):
    """How rows were asked, as ``shared.tasks.rendering`` has it."""

    task: ShortText | None = None
    prompt_style: ShortText | None = None
    template: ShortText | None = None
    label_words: (
        Annotated[list[Annotated[list[ShortText], Field(min_length=2, max_length=2)]], Field(max_length=10_000)] | None
    ) = None
    rows: Literal["messages", "completion"] | None = None


class FineTune(Document):
    """A fine-tune of one bundle.

    Attributes:
        content: What the artifact's layer holds.
        name: What its maker called the run.
        bundle: The bundle's digest; it belongs to no other one.
        best_step: Steps behind the values.
        value_count: How many values there are.
        settings_digest: Of the settings and the values, not of the rows; its journal names it too.
        stopped_by: Why the run ended.
        validation: What bundle, last and best values score on the validation rows.
        test: The same on the test rows, where there were some.
        validations: Of a journal: every validation, in order.
    """

    format: Literal[1] = 1
    content: Content
    name: Annotated[str, Field(pattern=RUN_NAME)]
    bundle: Digest
    source_model: ShortText
    best_step: Count
    value_count: Count
    settings: SharedSettings
    settings_digest: Digest
    rendering: Rendering
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    control_tokens: Literal["text", "tokens"]
    row_counts: dict[Literal["training", "validation", "test"], Count]
    stopped_by: Literal["steps", "early stop", "time budget"]
    steps_done: Count
    validation: dict[Stage, Figures]
    test: dict[Stage, Figures] = Field(default_factory=dict)
    validations: list[Validation] = Field(default_factory=list)

    @model_validator(mode="after")
    def _compares_best_with_bundle(self) -> FineTune:
        for stages in (self.validation, self.test or self.validation):
            if not {"bundle", "best"} <= stages.keys():
                raise ValueError("results without those of the bundle and of the best values")
        return self

    @property
    def evaluations(self) -> list[tuple[int, Evaluation]]:
        """Every validation of a journal: steps done, and what was found."""
        return [(each.steps_done, each.figures.as_evaluation()) for each in self.validations]

    def run_config(self) -> dict[str, Any]:
        """Return what a run's config.json says."""
        settings = self.settings.as_settings()
        identity = settings.identity(settings.objective)
        identity |= METHODS[self.settings.method].recorded
        return {
            "bundle_digest": self.bundle,
            "settings": identity,
            "settings_digest": self.settings_digest,
            "rendering": self.rendering.model_dump(exclude_none=True),
            "max_tokens": self.max_tokens,
            "control_tokens": self.control_tokens,
            "source_model": self.source_model,
            "row_counts": dict(self.row_counts),
        }


class Statement(Document):
    """What the key of a fine-tune's maker signs.

    Attributes:
        fine_tune: Digest of the artifact's manifest.
        bundle: Digest of the bundle that it belongs to.
        public_key: The raw Ed25519 key in base64.
    """

    fine_tune: Digest
    bundle: Digest
    public_key: PublicKey

    @property
    def signer(self) -> str:
        """The key's fingerprint."""
        return fingerprint_of(base64.b64decode(self.public_key))
