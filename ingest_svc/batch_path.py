"""A batch's path on a stream: from message to flow, to a request, to the writer, and its outcome back.

Batch ──▶ BatchFlow.take ──▶ Intake ──▶ Writer.submit ──▶ BatchFlow.answer
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span

from ingest_svc import conversion
from ingest_svc.columns import SentColumns
from ingest_svc.event import InvalidEvent, SentEvent
from ingest_svc.event_messages import to_stream_events
from ingest_svc.flow import BatchFlow, Taken, is_transient
from ingest_svc.intake import Door, Intake, Origin
from ingest_svc.limiter import NO_CHARGE, Charge, Connection, Limiter, Sent
from ingest_svc.message_intake import TakenMessages
from ingest_svc.outcome import Outcome, RefusedContent
from ingest_svc.raw_trail import BatchTrail, StreamTrail
from ingest_svc.reading import Reading, samples_by_device
from ingest_svc.series_table import SeriesTable
from meshkit.clock import Clock
from meshkit.errors import DomainError, InvalidArgument
from meshkit.identity import Principal
from meshkit.telemetry import remote_span, tracer
from telemetry_store.requests import DeviceSet, WriteRequest, WriteResult, WriterIdentity
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_BATCH_BYTES = 2 * 1024 * 1024
# Told that an outcome has come, and why the stream must end; None as long as it need not.
Answered = Callable[[Exception | None], object]
_Content = SentColumns | list[Reading] | RefusedContent | TakenMessages


class BatchWriter(Protocol):
    """Where batches become durable."""

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        """Let a batch in, or raise why not; return its outcome to come."""
        ...


class BatchPath:
    """The path of one stream's batches.

    Args:
        flow: decides which are taken, and is told what became of them.
        series: what their aliases stand for.
        trail: keeps them as they came.
        intake: makes of them what the writer takes.
        limiter: lets them in as far as limits allow.
        writer: commits them.
        clock: tells when they were received.
        tenant: whose they are.
        writer_id: who numbers them.
        epoch: of the Open that they came behind.
    """

    __slots__ = (
        "_clock",
        "_connection",
        "_epoch",
        "_flow",
        "_intake",
        "_limiter",
        "_series",
        "_tenant",
        "_trail",
        "_writer",
        "_writer_id",
    )

    def __init__(
        self,
        *,
        flow: BatchFlow,
        series: SeriesTable,
        trail: StreamTrail,
        intake: Intake,
        limiter: Limiter,
        writer: BatchWriter,
        clock: Clock,
        tenant: str,
        writer_id: str,
        epoch: int,
    ) -> None:
        self._flow = flow
        self._series = series
        self._trail = trail
        self._intake = intake
        self._limiter = limiter
        self._connection = Connection(tenant=tenant, writer_id=writer_id)
        self._writer = writer
        self._clock = clock
        self._tenant = tenant
        self._writer_id = writer_id
        self._epoch = epoch

    async def take(self, batch: ingest_pb2.Batch, principal: Principal, *, answered: Answered) -> None:
        """Bring a batch to the writer, unless the client has to send it again.

        Args:
            batch: the next message; one call at a time.
            principal: who sends it.
            answered: called when its outcome has come.

        Raises:
            DomainError: the stream has to end, as the contract says.
        """
        size = batch.ByteSize()
        if size > MAX_BATCH_BYTES:
            raise InvalidArgument(
                f"batch {batch.sequence} has {size} bytes, of {MAX_BATCH_BYTES} at most; split it",
                reason=ErrorReason.ERROR_REASON_BATCH_TOO_LARGE,
                metadata={"limit": str(MAX_BATCH_BYTES), "size": str(size)},
            )
        taken = self._flow.take(batch.sequence, size)
        if taken is not None:
            await self._submit(taken, batch, principal, answered)

    async def _submit(
        self, taken: Taken, batch: ingest_pb2.Batch, principal: Principal, answered: Answered
    ) -> None:
        taken.span = _span(batch)
        charge = NO_CHARGE
        try:
            request, content, trail = await self._to_request(batch, taken, principal)
            charge = await self._admit(content, taken, principal)
            if taken.dropped:  # Meanwhile one before it has to come again, and so has this one.
                charge.undo()
                return
            written = self._writer.submit(request)
        except DomainError as error:
            charge.undo()
            if not is_transient(error):
                raise
            self._flow.throw_back(taken, error)
        else:
            self._flow.accept(taken, written)
            self._trail.sent(trail)
            written.add_done_callback(charge.settle)
            written.add_done_callback(partial(self._trail_written, trail))
            written.add_done_callback(partial(self._written, taken, answered))

    async def _admit(self, content: _Content, taken: Taken, principal: Principal) -> Charge:
        limits = self._limiter.limits_of(self._tenant)
        if limits is None:
            return NO_CHARGE
        devices: Mapping[str, int] = {}
        if limits.has_devices:
            devices = await self._intake.charged_devices(principal, self._devices(content))
        sent = Sent(
            tenant=self._tenant,
            principal=principal.name,
            samples=_count(content),
            size=taken.size,
            devices=devices,
            writer_id=self._writer_id,
            sequence=taken.sequence,
        )
        return await self._limiter.admit(limits, sent, self._connection)

    def _devices(self, content: _Content) -> Mapping[str, int]:
        if isinstance(content, RefusedContent):
            return {}
        if isinstance(content, SentColumns):
            if len(content.aliases) != len(content.run_lengths):
                return {}  # Refused as a whole, and no device's.
            return self._series.samples_by_device(content.aliases, content.run_lengths)
        return samples_by_device(content.readings if isinstance(content, TakenMessages) else content)

    async def _to_request(
        self, batch: ingest_pb2.Batch, taken: Taken, principal: Principal
    ) -> tuple[WriteRequest, _Content, BatchTrail]:
        received_us = self._clock.now_us()
        origin = Origin(
            principal,
            WriterIdentity(self._writer_id, batch.sequence, self._epoch),
            taken.span.get_span_context() if taken.span is not None else None,
            Door.STREAM,
        )
        content: _Content
        if batch.messages:
            request, content = await self._take_messages(batch, origin, received_us)
        else:
            content = sent = conversion.to_content(batch)
            request = await self._take_content(
                sent,
                to_stream_events(batch.events),
                origin,
                all_or_nothing=batch.mode == ingest_pb2.MODE_ALL_OR_NOTHING,
                backfill_id=batch.backfill_id,
                received_us=received_us,
            )
        # It is known, and so is its trail; or somebody has a recording, which needs none.
        if batch.sequence <= self._flow.last_committed or batch.backfill_id:
            return request, content, BatchTrail()
        trail = await self._trail.of_batch(batch, _named(content), received_us)
        return replace(request, raw=trail.messages), content, trail

    async def _take_messages(
        self, batch: ingest_pb2.Batch, origin: Origin, received_us: int
    ) -> tuple[WriteRequest, TakenMessages | RefusedContent]:
        """Return the request of a batch of messages, and what becomes of them."""
        messages = conversion.to_messages(batch, arrival_us=received_us)
        if isinstance(messages, RefusedContent):
            events = to_stream_events(batch.events)
            return self._intake.refuse(origin, messages, events=events, received_us=received_us), messages
        return await self._intake.take_messages(origin, messages, received_us=received_us)

    async def _take_content(
        self,
        content: SentColumns | list[Reading] | RefusedContent,
        events: Sequence[SentEvent | InvalidEvent],
        origin: Origin,
        *,
        all_or_nothing: bool,
        backfill_id: str,
        received_us: int,
    ) -> WriteRequest:
        if isinstance(content, RefusedContent):
            return self._intake.refuse(
                origin, content, events=events, backfill_id=backfill_id, received_us=received_us
            )
        if isinstance(content, SentColumns):
            return await self._intake.take_columns(
                origin,
                content,
                self._series,
                events=events,
                all_or_nothing=all_or_nothing,
                backfill_id=backfill_id,
                received_us=received_us,
            )
        return await self._intake.take_readings(
            origin,
            content,
            events=events,
            all_or_nothing=all_or_nothing,
            backfill_id=backfill_id,
            received_us=received_us,
        )

    def _trail_written(self, trail: BatchTrail, written: asyncio.Future[WriteResult]) -> None:
        if written.cancelled() or written.exception() is not None or written.result().duplicate:
            self._trail.lost(trail)

    def _written(self, taken: Taken, answered: Answered, written: asyncio.Future[WriteResult]) -> None:
        if written.cancelled():
            return
        error = written.exception()
        if error is None:
            result = written.result()
            taken.commit = result.commit
            self._flow.answer(taken, result.outcome)
        elif isinstance(error, DomainError) and error.reason == ErrorReason.ERROR_REASON_OUTCOME_EXPIRED:
            expired = Outcome(reason=error.reason, message=error.message)
            self._flow.answer(taken, conversion.to_result(expired, taken.sequence).SerializeToString())
        elif isinstance(error, Exception):
            self._flow.answer(taken, error)
        answered(self._flow.failure)


def _count(content: _Content) -> int:
    if isinstance(content, RefusedContent):
        return content.samples
    if isinstance(content, SentColumns):
        return len(content)
    readings = content.readings if isinstance(content, TakenMessages) else content
    return sum(len(reading.samples) for reading in readings)


def _named(content: _Content) -> SentColumns | list[Reading] | RefusedContent | DeviceSet:
    """Return what a batch holds, of messages the devices that they speak of."""
    if not isinstance(content, TakenMessages):
        return content
    return DeviceSet.of(device_id for devices in content.devices for device_id in devices)


def _span(batch: ingest_pb2.Batch) -> Span | None:
    """Begin the span of a batch whose sender records its trace."""
    sent_in = remote_span(batch.traceparent)
    if sent_in is None or not (sent_in.is_valid and sent_in.trace_flags.sampled):
        return None
    return tracer.start_span(
        "ingest.batch",
        context=trace.set_span_in_context(NonRecordingSpan(sent_in)),
        attributes={"twinmesh.sequence": batch.sequence},
    )
