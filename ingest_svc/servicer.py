"""IngestService: requests in, the store's answers out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from ingest_svc import conversion, event_messages
from ingest_svc.applied import Applied
from ingest_svc.intake import Door, Intake, Origin
from ingest_svc.limiter import NO_CHARGE, Charge, Limiter, Sent
from ingest_svc.raw_trail import RawTrail
from ingest_svc.reading import Reading, samples_by_device
from ingest_svc.store import BackfillStore
from ingest_svc.stream import TelemetryStream
from ingest_svc.window import require_backfill_range
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import DomainError
from meshkit.identity import current_principal
from meshkit.open_calls import OpenCall, current_call
from meshkit.updates import fields_set
from telemetry_store.requests import RequestIdentity, WriteRequest, WriteResult
from telemetry_store.writer import TelemetryWriter
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

_log = structlog.get_logger()
_APPLIED_WITHIN_S = 2.0
_Request = (
    ingest_pb2.IngestTelemetryRequest | ingest_pb2.IngestMessageRequest | ingest_pb2.IngestEventsRequest
)


class IngestServicer(ingest_grpc.IngestServiceServicer):
    """Serves twinmesh.ingest.v1.IngestService.

    Args:
        intake: makes of requests what the writer takes.
        limiter: lets them in as far as limits allow.
        writer: commits batches.
        raw: keeps requests as they came.
        applied: tells when twins have applied them.
        backfills: declares backfills.
        clock: tells when a request was received.
        new_stream: makes a gateway stream of the call that opened it.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        limiter: Limiter,
        writer: TelemetryWriter,
        raw: RawTrail,
        applied: Applied,
        backfills: BackfillStore,
        clock: Clock,
        new_stream: Callable[[OpenCall], TelemetryStream],
    ) -> None:
        self._intake = intake
        self._limiter = limiter
        self._writer = writer
        self._raw = raw
        self._applied = applied
        self._backfills = backfills
        self._clock = clock
        self._new_stream = new_stream

    async def IngestTelemetry(
        self, request: ingest_pb2.IngestTelemetryRequest, context: Any
    ) -> ingest_pb2.IngestTelemetryResponse:
        received_us = self._clock.now_us()
        readings = conversion.to_readings(request.readings)
        batch = await self._intake.take_readings(
            Origin(current_principal(), conversion.to_identity(request), _span(), Door.UNARY),
            readings,
            all_or_nothing=request.mode == ingest_pb2.MODE_ALL_OR_NOTHING,
            backfill_id=request.backfill_id,
            received_us=received_us,
        )
        batch = replace(batch, raw=self._raw.of_request(batch.tenant, request, readings, received_us))
        charge = await self._admit(request, readings)
        if request.ack_level == ingest_pb2.ACK_LEVEL_ACCEPTED:
            self._submit(batch, charge).add_done_callback(partial(_log_lost, batch))
            result = WriteResult(batch.outcome, duplicate=False)
        else:
            result = await self._submit(batch, charge)
        ack_level = request.ack_level or ingest_pb2.ACK_LEVEL_DURABLE
        response = conversion.to_response(result, readings, ack_level=ack_level)
        if (
            ack_level == ingest_pb2.ACK_LEVEL_APPLIED
            and response.stored_samples
            and not await self._applied.passed_within(result.commit, _APPLIED_WITHIN_S)
        ):
            response.ack_level = ingest_pb2.ACK_LEVEL_DURABLE
        return response

    async def IngestMessage(
        self, request: ingest_pb2.IngestMessageRequest, context: Any
    ) -> ingest_pb2.IngestMessageResponse:
        received_us = self._clock.now_us()
        message = conversion.to_message(request, arrival_us=received_us)
        identity = RequestIdentity(request.request_id) if request.request_id else None
        batch, taken = await self._intake.take_messages(
            Origin(current_principal(), identity, _span(), Door.UNARY), [message], received_us=received_us
        )
        raw = self._raw.of_messages(batch.tenant, taken.contents([message]), received_us)
        batch = replace(batch, raw=raw)
        charge = await self._admit(request, taken.readings)
        return conversion.to_message_response(await self._submit(batch, charge))

    async def IngestEvents(
        self, request: ingest_pb2.IngestEventsRequest, context: Any
    ) -> ingest_pb2.IngestEventsResponse:
        received_us = self._clock.now_us()
        batch = await self._intake.take_events(
            Origin(current_principal(), conversion.to_identity(request), _span(), Door.UNARY),
            event_messages.to_events(request.events),
            all_or_nothing=request.mode == ingest_pb2.MODE_ALL_OR_NOTHING,
            backfill_id=request.backfill_id,
            received_us=received_us,
        )
        batch = replace(batch, raw=self._raw.of_events(batch.tenant, request, received_us))
        charge = await self._admit(request)
        return event_messages.to_events_response(await self._submit(batch, charge))

    async def _admit(self, request: _Request, readings: Sequence[Reading] = ()) -> Charge:
        principal = current_principal()
        limits = self._limiter.limits_of(principal.tenant)
        if limits is None:
            return NO_CHARGE
        devices: Mapping[str, int] = {}
        if limits.has_devices:
            devices = await self._intake.charged_devices(principal, samples_by_device(readings))
        # A message has no writer.
        numbered = None if isinstance(request, ingest_pb2.IngestMessageRequest) else request
        sent = Sent(
            tenant=principal.tenant,
            principal=principal.name,
            samples=sum(len(reading.samples) for reading in readings),
            size=request.ByteSize(),
            devices=devices,
            writer_id="" if numbered is None else numbered.writer_id,
            sequence=None if numbered is None else numbered.sequence or None,
        )
        return await self._limiter.admit(limits, sent)

    def _submit(self, batch: WriteRequest, charge: Charge) -> asyncio.Future[WriteResult]:
        try:
            written = self._writer.submit(batch)
        except DomainError:
            charge.undo()
            raise
        written.add_done_callback(charge.settle)
        return written

    async def CreateBackfill(
        self, request: ingest_pb2.CreateBackfillRequest, context: Any
    ) -> ingest_pb2.Backfill:
        principal = current_principal()
        start_us = conversion.to_micros(request.start_time)
        end_us = conversion.to_micros(request.end_time)
        require_backfill_range(start_us, end_us)
        audit.changed(fields_set(request))
        return conversion.to_backfill(
            await self._backfills.declare(
                tenant=principal.tenant, principal=principal.name, start_us=start_us, end_us=end_us
            )
        )

    def StreamTelemetry(
        self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
    ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
        stream = self._new_stream(current_call())
        # A call that ends while a response is being written never comes back to the iterator.
        context.add_done_callback(lambda _: stream.leave())
        return stream.responses(request_iterator)


def _log_lost(batch: WriteRequest, written: asyncio.Future[WriteResult]) -> None:
    """Tell the operator what nobody waits for: that an accepted batch was not committed."""
    error = None if written.cancelled() else written.exception()
    if error is not None:
        _log.warning(
            "accepted batch was not committed",
            tenant=batch.tenant,
            principal=batch.principal,
            samples=sum(map(len, batch.samples)),
            error=str(error),
        )


def _span() -> SpanContext | None:
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None
