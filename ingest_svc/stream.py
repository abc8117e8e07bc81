"""A gateway's stream: requests in, responses out, from Open to its end.

One task reads what the client sends; the iterator of responses sends what there is to
tell whenever the transport takes something. Between them stands the flow of batches.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

import structlog

from ingest_svc.applied import Applied, AppliedProgress
from ingest_svc.batch_path import BatchPath, BatchWriter
from ingest_svc.budget import Budgets
from ingest_svc.definitions import Definitions
from ingest_svc.flow import MAX_INFLIGHT_BYTES, BatchFlow
from ingest_svc.intake import Intake
from ingest_svc.limiter import NO_CHARGE, Charge, Limiter, Sent
from ingest_svc.open_streams import LAST_ACKS_US, OpenStreams, notice_us
from ingest_svc.raw_trail import RawTrail, StreamTrail
from ingest_svc.responses import Acks, to_go_away, to_opened, to_throttle
from meshkit import policy
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import (
    DeadlineExceeded,
    DomainError,
    InvalidArgument,
    dependency_unavailable,
    invalid_field,
)
from meshkit.identity import Principal
from meshkit.open_calls import OpenCall
from telemetry_store.cursors import fenced
from telemetry_store.requests import OpenedCursor
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_OPEN_WITHIN_US = 10 * MICROS_PER_SECOND
_PERMISSION = "telemetry:write"


class Writer(BatchWriter, Protocol):
    """Where batches become durable, once their writer was opened."""

    async def open_writer(
        self, *, tenant: str, principal: str, writer_id: str, session_id: str, resume: bool
    ) -> OpenedCursor:
        """Raise a writer's epoch and return its place, or raise why not."""
        ...


class Credentials(Protocol):
    """What proves who somebody is."""

    def verify(self, credential: str, *, address: str) -> Awaitable[Principal]:
        """Return the principal that an access token or API key proves, shown by somebody at an address."""
        ...


class TelemetryStream:
    """One stream.

    Args:
        call: by which it was opened, and with whose credential it ends.
        intake: makes of batches what the writer takes.
        limiter: lets it and its batches in as far as limits allow.
        writer: commits them.
        raw: keeps them as they came.
        applied: tells when twins have applied them.
        credentials: verifies what Reauthenticate brings.
        streams: all those of this process.
        budgets: shared with them.
        clock: tells when a batch was received, and when the stream's time has come.

    Attributes:
        due_us: when `act` is to be called next, microseconds since the epoch.
        epoch: raised by each Open of its writer; 0 before.
    """

    __slots__ = (
        "_acks",
        "_applied",
        "_budgets",
        "_call",
        "_charge",
        "_clock",
        "_closing",
        "_credentials",
        "_definitions",
        "_drain_by_us",
        "_ends_us",
        "_failure",
        "_flow",
        "_go_away",
        "_intake",
        "_lifetime_us",
        "_limiter",
        "_news",
        "_opened",
        "_over",
        "_path",
        "_raw",
        "_reader",
        "_streams",
        "_writer",
        "_writer_id",
        "due_us",
        "epoch",
    )

    def __init__(
        self,
        *,
        call: OpenCall,
        intake: Intake,
        limiter: Limiter,
        writer: Writer,
        raw: RawTrail,
        applied: Applied,
        credentials: Credentials,
        streams: OpenStreams,
        budgets: Budgets,
        clock: Clock,
    ) -> None:
        self._call = call
        self._intake = intake
        self._limiter = limiter
        self._charge: Charge = NO_CHARGE
        self._writer = writer
        self._raw = raw
        self._applied = applied
        self._credentials = credentials
        self._streams = streams
        self._budgets = budgets
        self._clock = clock
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._definitions = Definitions(budget=budgets.definitions.share(call.principal.tenant))
        self._flow: BatchFlow | None = None
        self._path: BatchPath | None = None
        self._acks = Acks()
        self._writer_id = ""
        # What is to be told next.
        self._opened: ingest_pb2.Opened | None = None
        self._go_away: ingest_pb2.GoAway | None = None
        self._failure: Exception | None = None
        # How far it has come.
        self._closing = False
        self._over = False
        self._drain_by_us: int | None = None
        started_us = clock.now_us()
        self._lifetime_us = streams.lifetime_us()
        self._ends_us = started_us + self._lifetime_us
        self.epoch = 0
        self.due_us: float = started_us + _OPEN_WITHIN_US
        call.on_end(self._fail)

    async def responses(
        self, requests: AsyncIterator[ingest_pb2.StreamTelemetryRequest]
    ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
        """Serve the stream and yield what the client is to be told.

        However the iteration ends, the stream is left; whoever drops the iterator calls
        `leave`.

        Args:
            requests: what the client sends, by the rules of the contract.

        Raises:
            DomainError: the stream has to end, as the contract says.
        """
        self._streams.add(self)
        self._reader = asyncio.create_task(self._read(requests), name="telemetry-stream")
        try:
            while True:
                response = self._next_response()
                if response is not None:
                    yield response
                elif self._failure is not None:
                    raise self._failure
                elif self._over or (self._closing and not self._busy()):
                    self._over = True
                    return
                else:
                    self._news.clear()
                    await self._news.wait()
        finally:
            self.leave()

    def leave(self) -> None:
        """Give back all that the stream holds; once is enough."""
        if self._reader is None:
            return
        self._reader.cancel()
        self._reader = None
        self._acks.close()
        if self._flow is not None:
            self._flow.close()
        self._definitions.close()
        self._charge.end()
        self._streams.remove(self, (self._call.principal.tenant, self._writer_id) if self.epoch else None)
        _log.info(
            "stream ended",
            why=self._told_why(),
            writer_id=self._writer_id,
            epoch=self.epoch,
            batches=self._acks.batches,
            samples=self._acks.samples,
        )

    def act(self, now_us: int) -> None:
        """Do what is due: ask the client to leave, stop waiting for it."""
        if now_us < self.due_us:
            return
        if self._over:
            # The client does not read: the iteration does not come to its end by itself.
            self.due_us = math.inf
            self._call.cut_off(self._failure if isinstance(self._failure, DomainError) else _unread())
        elif self._flow is None:
            self._fail(
                DeadlineExceeded(
                    f"no Open came within {_OPEN_WITHIN_US // MICROS_PER_SECOND} s",
                    reason=ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
                )
            )
        elif self._drain_by_us is None:
            self.go_away(self._ends_us)
        elif not self._closing:
            self._closing = True
            self.due_us = now_us + LAST_ACKS_US
        else:
            self._over = True
            self.due_us = now_us + LAST_ACKS_US
        self._news.set()

    def go_away(self, drain_by_us: int) -> None:
        """Ask the client to reconnect elsewhere, and end at this time."""
        if self._flow is None:
            self._fail(dependency_unavailable("ingest_svc"))
        elif not self._over and (self._drain_by_us is None or drain_by_us < self._drain_by_us):
            self._drain_by_us = drain_by_us
            self._go_away = to_go_away(drain_by_us)
            self.due_us = drain_by_us
            self._news.set()

    def fence(self) -> None:
        """End: a later stream of the writer was opened."""
        self._fail(fenced(self._writer_id))

    def _fail(self, failure: Exception) -> None:
        """Take nothing more, and end once what has its outcome was acknowledged."""
        if self._over:
            return
        self._failure = failure
        self._closing = self._over = True
        self._go_away = None
        if self._flow is not None:
            self._flow.abandon()
        self.due_us = self._clock.now_us() + LAST_ACKS_US
        self._news.set()

    def _answered(self, failure: Exception | None) -> None:
        if failure is not None:
            self._fail(failure)
        self._news.set()

    def _busy(self) -> bool:
        return self._flow is not None and self._flow.busy

    def _told_why(self) -> str:
        if isinstance(self._failure, DomainError):
            return ErrorReason.Name(self._failure.reason)
        if self._failure is not None:
            return type(self._failure).__name__
        if not self._over:
            return "the client is gone"
        return "closed" if self._drain_by_us is None else "drained"

    # What the client is told.

    def _next_response(self) -> ingest_pb2.StreamTelemetryResponse | None:
        flow = self._flow
        if flow is None:
            return None
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return ingest_pb2.StreamTelemetryResponse(opened=opened)
        ack = self._acks.next(flow)
        if ack is not None:
            return ingest_pb2.StreamTelemetryResponse(ack=ack)
        if flow.refusal is not None:
            refusal, flow.refusal = flow.refusal, None
            return ingest_pb2.StreamTelemetryResponse(throttle=to_throttle(refusal))
        if self._go_away is not None:
            go_away, self._go_away = self._go_away, None
            return ingest_pb2.StreamTelemetryResponse(go_away=go_away)
        return None

    # What the client sends.

    async def _read(self, requests: AsyncIterator[ingest_pb2.StreamTelemetryRequest]) -> None:
        try:
            async for request in requests:
                await self._take(request)
                if self._closing:
                    break
        except Exception as error:
            self._fail(error)
        self._closing = True
        self._news.set()

    async def _take(self, request: ingest_pb2.StreamTelemetryRequest) -> None:
        kind = request.WhichOneof("message")
        path = self._path
        if self._closing:
            return
        if kind == "open":
            await self._take_open(request.open)
        elif path is None:
            raise InvalidArgument(
                "the first message of a stream is Open",
                reason=ErrorReason.ERROR_REASON_STREAM_NOT_OPENED,
            )
        elif kind == "close":
            self._closing = True
        elif kind == "batch":
            await path.take(request.batch, self._call.principal, answered=self._answered)
            self._news.set()
        elif kind == "series_defs":
            await self._definitions.take(request.series_defs)
        elif kind == "reauthenticate":
            await self._reauthenticate(request.reauthenticate.token)
        else:
            raise invalid_field("message", "holds nothing that this server knows")

    async def _take_open(self, message: ingest_pb2.Open) -> None:
        if self._writer_id:
            raise InvalidArgument(
                "a stream is opened once; open another stream for another writer",
                reason=ErrorReason.ERROR_REASON_STREAM_OPENED_TWICE,
            )
        self._writer_id = message.writer_id
        self._acks.tells_accepted = message.ack_level == ingest_pb2.ACK_LEVEL_ACCEPTED
        self.due_us = self._ends_us - notice_us(self._lifetime_us)
        tenant = self._call.principal.tenant
        self._charge = await self._limiter.open_stream(
            Sent(tenant, self._call.principal.name, samples=0, size=0, writer_id=message.writer_id)
        )
        cursor = await self._writer.open_writer(
            tenant=tenant,
            principal=self._call.principal.name,
            writer_id=message.writer_id,
            session_id=message.session_id,
            resume=message.resume,
        )
        self.epoch = cursor.epoch
        max_inflight_bytes = self._limiter.connection_inflight_bytes(tenant, most=MAX_INFLIGHT_BYTES)
        self._flow = BatchFlow(
            last_committed=cursor.last_sequence,
            budget=self._budgets.inflight_bytes.share(tenant),
            max_bytes=max_inflight_bytes,
        )
        self._path = BatchPath(
            flow=self._flow,
            series=self._definitions.table,
            trail=StreamTrail(trail=self._raw, tenant=tenant, series=self._definitions.table),
            intake=self._intake,
            limiter=self._limiter,
            writer=self._writer,
            clock=self._clock,
            tenant=tenant,
            writer_id=message.writer_id,
            epoch=cursor.epoch,
        )
        if message.ack_level == ingest_pb2.ACK_LEVEL_APPLIED:
            self._acks.applied = AppliedProgress(applied=self._applied, advanced=self._answered)
            self._acks.applied.begin(cursor.last_sequence)
        self._opened = to_opened(
            cursor,
            lifetime_us=self._lifetime_us,
            now_us=self._clock.now_us(),
            max_inflight_bytes=max_inflight_bytes,
        )
        self._streams.opened(self, (tenant, message.writer_id))
        self._news.set()

    async def _reauthenticate(self, credential: str) -> None:
        principal = await self._credentials.verify(credential, address=self._call.address)
        policy.require(_PERMISSION, principal, method="a gateway stream")
        self._call.renew(principal)


def _unread() -> DomainError:
    return DeadlineExceeded(
        "the client did not read what it was told; open a new stream, and read all the time",
        reason=ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
    )
