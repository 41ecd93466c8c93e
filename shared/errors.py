"""Every error a user can meet, in one tree split by who can act.

    ZoError                              what was found · what was needed · what to do next
    ├── InvalidRequest       fix your call                          exit 2   HTTP 422
    │   ├── InvalidModelId       not a hub id, or outside the allowed folders
    │   └── UnsupportedModel     a family, a checkpoint or a shape that is not served
    ├── Unauthorized         present a key that is valid            exit 3   HTTP 401
    │   └── Forbidden            the key is valid but lacks a scope          HTTP 403
    ├── NotFound             name something that exists             exit 4   HTTP 404
    ├── IntegrityError       fetch again; never load                exit 5
    │   ├── InvalidDigest · DigestMismatch · BlobMissing · BlobTruncated
    │   ├── InvalidManifest · InvalidBundleConfig · LimitExceeded
    │   ├── InvalidTensorHeader · TensorOverlap · TensorMismatch
    │   ├── IndicesUnsorted · IndicesDuplicated · IndicesOutOfRange · RanksInvalid · ValuesNotFinite
    │   ├── SignatureMissing · SignatureInvalid · PublisherChanged
    │   └── StatementMissing · OtherName · StatementExpired · RolledBack · Equivocated
    ├── UpgradeNeeded        install a newer zo-device              exit 5
    ├── SignerUnknown        name the key, if you trust it          exit 5
    ├── NetworkError         try again later                        exit 6   HTTP 502
    ├── DiskError            free disk space or fix permissions     exit 7   HTTP 507
    ├── ResourceError        give more memory, or ask for less      exit 8
    ├── DataError            fix your data                          exit 9   HTTP 422
    ├── Diverged             lower the learning rate                exit 10
    ├── Conflict             the thing exists in another state      exit 11  HTTP 409
    └── Interrupted          run the same command again             exit 130

The command line turns an error into its exit code; the HTTP service turns it into RFC 9457 problem+json. Each names the
next step in its own way: ``next_step`` is for who types commands, ``next_request`` for who calls over HTTP, where an
error reaches both and the two differ. An error that was given no next step has the one of its kind.
"""

from __future__ import annotations

import re
from typing import ClassVar


class ZoError(Exception):
    """An error somebody can act on.

    Args:
        found: What was found, with the offending value.
        needed: What was needed instead.
        next_step: What to do or type next; the usual step of the error's kind where nothing better is known.
        next_request: The same for who calls over HTTP, where it is said in another way.
        param: The request field or option at fault, where there is one.
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    usual_next_step: ClassVar[str] = ""

    def __init__(
        self, found: str, *, needed: str = "", next_step: str = "", next_request: str = "", param: str | None = None
    ) -> None:
        self.found = found
        self.needed = needed
        self.next_step = next_step or self.usual_next_step
        self.next_request = next_request or self.next_step
        self.param = param
        super().__init__(self._text(self.next_step))

    @property
    def http_text(self) -> str:
        """The whole message for who calls over HTTP."""
        return self._text(self.next_request)

    @property
    def slug(self) -> str:
        """The stable problem type, for example ``invalid-model-id``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def _text(self, next_step: str) -> str:
        parts = [self.found, f"Needed: {self.needed}" if self.needed else "", f"Next: {next_step}" if next_step else ""]
        return "\n".join(part for part in parts if part)


class InvalidRequest(ZoError):
    """The call itself is wrong."""

    exit_code = 2
    status = 422
    usual_next_step = "correct the call and try again"


class InvalidModelId(InvalidRequest):
    """The model is neither a hub id nor a folder under an allowed root."""


class UnsupportedModel(InvalidRequest):
    """The model exists but cannot be prepared or run."""

    usual_next_step = "choose another model"


class Unauthorized(ZoError):
    """No key, or a key that is unknown."""

    exit_code = 3
    status = 401
    usual_next_step = "ask the operator of the service for a key"


class Forbidden(Unauthorized):
    """The key is valid but lacks the scope."""

    status = 403


class NotFound(ZoError):
    """The named thing does not exist."""

    exit_code = 4
    status = 404
    usual_next_step = "check the name, and what there is"


class Conflict(ZoError):
    """The named thing is in a state that does not allow the call."""

    exit_code = 11
    status = 409
    usual_next_step = "wait until it is free, or choose another one"


class IntegrityError(ZoError):
    """Bytes are not what their publisher signed; nothing was loaded."""

    exit_code = 5
    usual_next_step = "do not use it; fetch it again, and if that does not help, ask its publisher"


class InvalidDigest(IntegrityError):
    """A digest is not ``sha256:`` followed by 64 lower-case hexadecimal digits."""


class DigestMismatch(IntegrityError):
    """A blob's bytes do not have the digest they are named by."""


class BlobMissing(IntegrityError):
    """A blob that the manifest names is absent."""


class BlobTruncated(IntegrityError):
    """A blob's length differs from the manifest's."""


class InvalidManifest(IntegrityError):
    """The manifest is not valid JSON of the documented form."""


class InvalidBundleConfig(IntegrityError):
    """The bundle configuration is not valid JSON of the documented form."""


class LimitExceeded(IntegrityError):
    """A manifest, header or count is larger than the format allows."""


class InvalidTensorHeader(IntegrityError):
    """A safetensors header is malformed, or its dtype, shape and byte range disagree."""


class TensorOverlap(IntegrityError):
    """Two tensors of a file overlap, or bytes between them belong to none."""


class TensorMismatch(IntegrityError):
    """A tensor is missing, unexpected, or of another shape or dtype than the configuration says."""


class IndicesUnsorted(IntegrityError):
    """Sensitive indices are not in increasing order."""


class IndicesDuplicated(IntegrityError):
    """A sensitive index occurs twice."""


class IndicesOutOfRange(IntegrityError):
    """A sensitive index lies outside its tensor."""


class RanksInvalid(IntegrityError):
    """Sensitivity ranks are not a permutation."""


class ValuesNotFinite(IntegrityError):
    """A 16-bit value is infinite or NaN."""


class SignatureMissing(IntegrityError):
    """The bundle carries no signature."""


class SignatureInvalid(IntegrityError):
    """The signature does not match the manifest and key."""


class PublisherChanged(IntegrityError):
    """The bundle is signed by another key than the one pinned for its source."""


class StatementMissing(IntegrityError):
    """A signature binds a digest alone, where the publisher is known to sign name, tag, version and expiry too."""


class OtherName(IntegrityError):
    """The publisher signed the bundle, but under another name or tag than the one that was asked for."""


class StatementExpired(IntegrityError):
    """What the publisher signed is no longer valid: a server may be offering an old bundle for ever."""


class RolledBack(IntegrityError):
    """The bundle is older than one that this device has already seen under its name and tag."""


class Equivocated(IntegrityError):
    """The publisher signed two different bundles as one version of a name and tag."""


class UpgradeNeeded(ZoError):
    """The bundle was written for a newer reader."""

    exit_code = 5
    usual_next_step = "pip install --upgrade zo-device"


class SignerUnknown(ZoError):
    """A fine-tune is signed by a key that nobody has named here."""

    exit_code = 5
    usual_next_step = "compare the key with whoever shared it, by another way"


class NetworkError(ZoError):
    """The network or the server failed; what was fetched is kept."""

    exit_code = 6
    status = 502
    usual_next_step = "run the same command again later; what was fetched is kept"


class DiskError(ZoError):
    """The disk is full or not writable; what was written is kept."""

    exit_code = 7
    status = 507
    usual_next_step = "free some disk space, or change the permissions, and try again"


class ResourceError(ZoError):
    """Memory or the accelerator does not suffice."""

    exit_code = 8
    usual_next_step = "give it more memory, or ask for less"


class DataError(ZoError):
    """A data file or row is unusable."""

    exit_code = 9
    status = 422
    usual_next_step = "correct the data and try again"


class Diverged(ZoError):
    """Training left the region where the loss is finite and sensible."""

    exit_code = 10
    usual_next_step = "try again with a lower learning rate"


class Interrupted(ZoError):
    """Stopped on request; the same command resumes."""

    exit_code = 130
    usual_next_step = "run the same command again"
