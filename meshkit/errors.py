"""Errors that rules raise; they know nothing of gRPC.

    DomainError
    ├── InvalidArgument      the request itself is wrong
    ├── Unauthenticated      no valid credential
    ├── PermissionDenied     a valid credential without the permission
    ├── NotFound             absent, or another tenant's
    ├── AlreadyExists
    ├── FailedPrecondition   right request, wrong state
    ├── Aborted              somebody else was first
    ├── ResourceExhausted    a limit; retry later
    ├── Unavailable          a dependency is away; retry later
    ├── DeadlineExceeded
    ├── DataLoss             what was stored is missing or damaged
    └── Unimplemented        in the contract, not built yet

`meshkit.status` is the one table that turns them into google.rpc.Status and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks a rule: its path, and what to do about it."""

    field: str
    description: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """A limit that is reached: whose, which, its size, and the same to read."""

    subject: str
    name: str
    limit: int
    description: str


class DomainError(Exception):
    """What went wrong, in words a user can act on, and the reason to program by."""

    def __init__(
        self,
        message: str,
        *,
        reason: ErrorReason.ValueType,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        quota: QuotaViolation | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.quota = quota
        self.retry_after_s = retry_after_s


class InvalidArgument(DomainError):
    """The request itself is wrong; do not retry it as it is."""


class Unauthenticated(DomainError):
    """No valid credential came with the request."""


class PermissionDenied(DomainError):
    """The caller is known and may not do this."""


class NotFound(DomainError):
    """The resource is absent, or another tenant's."""


class AlreadyExists(DomainError):
    """A resource with this id exists."""


class FailedPrecondition(DomainError):
    """The system is not in the state that the request needs."""


class Aborted(DomainError):
    """A concurrent change won; read again and retry."""


class ResourceExhausted(DomainError):
    """A limit is reached; retry after the time stated."""


class Unavailable(DomainError):
    """A dependency is away; retry after the time stated."""


class DeadlineExceeded(DomainError):
    """The time allowed ran out."""


class DataLoss(DomainError):
    """What was stored is missing or damaged; retrying does not help."""


class Unimplemented(DomainError):
    """The contract has it, the code does not yet."""


def invalid_field(field: str, description: str) -> InvalidArgument:
    """Return the error for one field that breaks a rule the contract cannot state."""
    return InvalidArgument(
        f"{field}: {description}",
        reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
        violations=[FieldViolation(field, description)],
    )


def not_found(resource: str, resource_id: str) -> NotFound:
    """Return the error for a resource that the caller's tenant does not have."""
    return NotFound(
        f"{resource} {resource_id!r} does not exist",
        reason=ErrorReason.ERROR_REASON_NOT_FOUND,
        metadata={"resource": resource, "id": resource_id},
    )


def dependency_unavailable(dependency: str, *, retry_after_s: float = 1.0) -> Unavailable:
    """Return the error for a part of the mesh that is away."""
    return Unavailable(
        f"{dependency} is not available; retry",
        reason=ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": dependency},
        retry_after_s=retry_after_s,
    )
