"""The one table between domain errors and google.rpc.Status, used by both ends."""

from collections.abc import Sequence
from typing import TypeVar, cast

import asyncpg
import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from meshkit import errors
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

ERROR_DOMAIN = "twinmesh"
_REASON_PREFIX = "ERROR_REASON_"
# A status travels in headers, once as text and once with its details, and gRPC's clients refuse headers of
# more than 8 KiB: the answer would look like a broken connection.
_TEXT_BYTES = 500  # up to three times as many on the way
_DETAILS_BYTES = 3072

_CODES: dict[type[errors.DomainError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
}
_Detail = TypeVar("_Detail", error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)


def code_of(error: errors.DomainError) -> grpc.StatusCode:
    """Return the status code of a domain error."""
    return _CODES[type(error)]


def reason_name(reason: ErrorReason.ValueType) -> str:
    """Return a reason as it stands in ErrorInfo, such as "NOT_FOUND"."""
    return ErrorReason.Name(reason).removeprefix(_REASON_PREFIX)


def _number(code: grpc.StatusCode) -> int:
    value: tuple[int, str] = code.value
    return value[0]


_TYPES = {_number(code): error for error, code in _CODES.items()}


def _packed(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.QuotaFailure
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def to_status(error: errors.DomainError) -> status_pb2.Status:
    """Return the google.rpc.Status of a domain error, with its details, small enough for headers.

    What quotes a caller may be of any length: texts are cut, and of violations the first are told.
    """
    status = status_pb2.Status(code=_number(code_of(error)), message=_cut(error.message))
    info = error_details_pb2.ErrorInfo(
        reason=reason_name(error.reason),
        domain=ERROR_DOMAIN,
        metadata={name: _cut(value) for name, value in error.metadata.items()},
    )
    status.details.append(_packed(info))
    if error.violations:
        status.details.append(_packed(_bad_request(error.violations)))
    if error.quota is not None:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(
            subject=error.quota.subject,
            description=error.quota.description,
            quota_metric=error.quota.name,
            quota_value=error.quota.limit,
        )
        status.details.append(_packed(failure))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def _bad_request(violations: Sequence[errors.FieldViolation]) -> error_details_pb2.BadRequest:
    told = error_details_pb2.BadRequest()
    for violation in violations:
        one = told.field_violations.add(
            field=_cut(violation.field), description=_cut(violation.description), reason=violation.rule
        )
        if told.ByteSize() > _DETAILS_BYTES:
            told.field_violations.remove(one)
            break
    return told


def _cut(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= _TEXT_BYTES:
        return text
    return encoded[: _TEXT_BYTES - 3].decode(errors="ignore") + "…"


def internal_status(trace_id: str) -> status_pb2.Status:
    """Return the neutral status for what nobody foresaw; the log has the rest."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=ERROR_DOMAIN, metadata={"traceId": trace_id})
    return status_pb2.Status(
        code=_number(grpc.StatusCode.INTERNAL),
        message=f"internal error; quote trace {trace_id}" if trace_id else "internal error",
        details=[_packed(info)],
    )


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status that a failed call carries, None when it carries none."""
    status: status_pb2.Status | None = rpc_status.from_call(cast("grpc.Call", error))
    return status


def error_info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Return the ErrorInfo that a failed call carries, an empty one when it carries none."""
    return _detail(status_of(error) or status_pb2.Status(), error_details_pb2.ErrorInfo())


def _detail(status: status_pb2.Status, kind: _Detail) -> _Detail:
    """Fill a message with what a status has of its kind, and return it."""
    for detail in status.details:
        detail.Unpack(kind)
    return kind


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str) -> errors.DomainError:
    """Return the domain error that a peer answered, or Unavailable when it did not answer.

    Args:
        error: what the call raised.
        peer: the peer's name, for errors without details.
    """
    return from_status(status_of(error) or status_pb2.Status(), peer=peer)


def from_status(status: status_pb2.Status, *, peer: str) -> errors.DomainError:
    """Return the domain error that `to_status` made a status of, Unavailable for any other status.

    Args:
        status: it.
        peer: the name of the peer that told it.
    """
    kind = _TYPES.get(status.code)
    info = _detail(status, error_details_pb2.ErrorInfo())
    name = _REASON_PREFIX + info.reason
    if kind is None or name not in ErrorReason.keys():  # noqa: SIM118 - the enum wrapper is no mapping
        return errors.dependency_unavailable(peer)
    retry = _detail(status, error_details_pb2.RetryInfo())
    return kind(
        status.message,
        reason=ErrorReason.Value(name),
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
    )


def from_driver_error(error: BaseException) -> errors.DomainError | None:
    """Return the domain error of a PostgreSQL failure that a retry can mend, or None.

    Lost connections, shutdown, exhausted resources (53xxx), cancelled statements,
    serialization failures and lock time-outs are transient: nothing was consumed.
    """
    transient = (
        OSError,
        asyncpg.InterfaceError,
        # What the driver says when a connection is lost just as it is used.
        asyncpg.InternalClientError,
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.TransactionRollbackError,
        asyncpg.LockNotAvailableError,
        asyncpg.TransactionTimeoutError,
        asyncpg.IdleInTransactionSessionTimeoutError,
    )
    if isinstance(error, transient):
        return errors.dependency_unavailable("postgresql")
    return None
