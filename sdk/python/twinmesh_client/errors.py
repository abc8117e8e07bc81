"""What can stop a gateway client.

    GatewayError
    ├── GatewayClosed          add or flush after the client was left
    ├── TokenFunctionInvalid   what was given to be asked for tokens cannot be
    ├── SpoolError             the spool's folder cannot be used
    │   ├── SpoolInUse         another process has it
    │   ├── SpoolDamaged       a file in it is not what was written
    │   └── SpoolFull          it or its disk has no room for what is left at the end
    └── StreamRefused          the server says no, and asking again would not help
        ├── Unauthenticated    the token
        ├── PermissionDenied   the token's permissions, or the writer belongs to somebody else
        ├── Fenced             another client took the writer over
        ├── SequenceReused     the server has other content under a number of this spool
        ├── SequenceGap        the server misses a number, and opening anew does not help
        ├── ServerAhead        the server has batches that this spool never wrote
        └── ServerBehind       the server lacks batches that it acknowledged

Each is final for this client: it neither sends nor deletes anything any more, and the
spool keeps what was not acknowledged. Whatever may pass by itself (a lost connection, a
server that restarts or is busy, a suspended tenant) is no error here; the client tries again.
"""

from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "twinmesh"
# Operators resume a tenant after hours, not seconds.
_SUSPENDED_RETRY_S = 60.0
# Within a second all of the server knows what was revoked.
_REVOKED_RETRY_S = 2.0
_STATUS_TRAILER = "grpc-status-details-bin"


class GatewayError(Exception):
    """Why the client stopped, in words that say what to do."""


class GatewayClosed(GatewayError):
    """The client was left; samples can no longer be added."""


class TokenFunctionInvalid(GatewayError):
    """The token function is not async, or returns no str."""


class SpoolError(GatewayError):
    """The spool's folder cannot be used."""


class SpoolInUse(SpoolError):
    """Another process has the spool open."""


class SpoolDamaged(SpoolError):
    """A file of the spool is not what was written.

    Attributes:
        path: the file.
        offset: the first byte that is not understood.
    """

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(
            f"{path}, byte {offset}: {what}. Nothing was changed. Restore the file, or move the spool's "
            "folder away and begin with an empty one: samples in it that were not sent yet are then lost"
        )
        self.path = path
        self.offset = offset


class SpoolFull(SpoolError):
    """The spool or its disk has no room; what was being written is not in it."""


class StreamRefused(GatewayError):
    """The server refuses the stream for good.

    Attributes:
        reason: the contract's ErrorReason without its prefix, such as "FENCED"; empty when none was told.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Unauthenticated(StreamRefused):
    """The token is malformed, expired or revoked."""


class PermissionDenied(StreamRefused):
    """The token lacks telemetry:write, or the writer belongs to another principal."""


class Fenced(StreamRefused):
    """Another client took the writer over."""


class SequenceReused(StreamRefused):
    """The server has other content under a sequence of this spool."""


class SequenceGap(StreamRefused):
    """The server expects another sequence, on two streams with nothing durable in between."""


class ServerAhead(StreamRefused):
    """The server committed batches of this writer that the spool does not know."""


class ServerBehind(StreamRefused):
    """The server lacks batches of this writer that were acknowledged as durable."""


class Disconnected(Exception):
    """A stream ended; another one may do better.

    Attributes:
        retry_after_s: the least time to wait, as the server asked.
        was_steady: the stream worked before, so that this is a first failure.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.was_steady = False


class Gap(Disconnected):
    """The server expects another sequence than it got; another Open tells which."""


class TakenOver(Disconnected):
    """Another stream of the writer was opened since; an Open with resume tells whether it was our own."""


_COPIED = (
    "a copy of the spool is in use somewhere, or an old copy was restored. Move this folder away and begin "
    "with an empty one; what only this folder holds is in it"
)
_NO_HELP = (
    "opening anew did not help. Keep the spool, which alone may hold what is not stored yet, and start the "
    "client again; when that does not help either, client and server do not fit"
)
# What the contract says must not be tried again as it is, and what a person does about it.
_REFUSALS: dict[str, tuple[type[StreamRefused], str]] = {
    "FENCED": (
        Fenced,
        "a copy of the spool is in use: find its process and stop it, then start this one again",
    ),
    "SEQUENCE_REUSED": (SequenceReused, _COPIED),
    "SEQUENCE_GAP": (SequenceGap, _NO_HELP),
    "WRITER_NOT_OWNED": (
        PermissionDenied,
        "the spool's writer belongs to another user or API key: use that one's token, or an empty spool",
    ),
    "PERMISSION_MISSING": (PermissionDenied, "give the user or API key a role with telemetry:write"),
}


def from_rpc_error(
    error: grpc.aio.AioRpcError, *, renews_token: bool, was_open: bool, is_resuming: bool, met_gap: bool
) -> StreamRefused | Disconnected:
    """Return what a failed stream means: final, or to be tried again.

    Args:
        error: what the call raised.
        renews_token: whether the next call comes with a new token, so that a refused one is not final.
        was_open: whether the server had taken the stream: then TOKEN_REVOKED does not tell whether the API
            key was revoked or its tenant suspended, which the next Open is told.
        is_resuming: whether it answers an Open with resume, so that FENCED is final.
        met_gap: whether an earlier stream ended as SEQUENCE_GAP and nothing became durable since, so
            that another one is final.
    """
    code, told = error.code(), error.details() or "no details"
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    trailers = error.trailing_metadata() or ()
    for detail in _status([value for key, value in trailers if key == _STATUS_TRAILER]).details:
        for target in (info, retry):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    reason = info.reason if info.domain == _DOMAIN else ""
    if passing := _passing(reason, told, was_open=was_open, is_resuming=is_resuming, met_gap=met_gap):
        return passing
    if code is grpc.StatusCode.UNAUTHENTICATED and not renews_token:
        return Unauthenticated(f"{told}: give the client a token that is valid", reason=info.reason)
    if info.domain == _DOMAIN and info.reason in _REFUSALS:
        kind, advice = _REFUSALS[info.reason]
        return kind(f"{told}: {advice}", reason=info.reason)
    # Without the contract's own reason it may be a proxy that talks, which can be mended meanwhile.
    if info.domain == _DOMAIN and code in _FINAL:
        return StreamRefused(
            f"{told} ({info.reason}): this client and the server do not fit", reason=info.reason
        )
    return Disconnected(f"{code.name}: {told}", retry_after_s=retry.retry_delay.ToTimedelta().total_seconds())


def _passing(
    reason: str, told: str, *, was_open: bool, is_resuming: bool, met_gap: bool
) -> Disconnected | None:
    """Return what the contract's own reason means if it may pass by itself, else None."""
    match reason:
        case "TOKEN_REVOKED" if was_open:
            return Disconnected(told, retry_after_s=_REVOKED_RETRY_S)
        case "TENANT_SUSPENDED":
            return Disconnected(f"{told}; until then the spool keeps all", retry_after_s=_SUSPENDED_RETRY_S)
        case "FENCED" if not is_resuming:
            return TakenOver(told)
        case "SEQUENCE_GAP" if not met_gap:
            return Gap(told)
    return None


_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}


def _status(packed: list[str | bytes]) -> status_pb2.Status:
    return status_pb2.Status.FromString(b"".join(value for value in packed if isinstance(value, bytes)))
