"""IngestService: requests in, the store's answers out."""

from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from ingest_svc import conversion
from ingest_svc.assessment import Assessment, assess, refuse_rest
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading, digest
from ingest_svc.store import BackfillStore
from ingest_svc.window import LiveWindow, TimeWindow, require_backfill_range
from meshkit import policy
from meshkit.clock import Clock
from meshkit.errors import not_built_yet
from meshkit.identity import Principal, current_principal
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.columns import KindColumns
from telemetry_store.requests import WriteRequest
from telemetry_store.writer import TelemetryWriter
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_BACKFILL_PERMISSION = "telemetry:backfill"
_BUILT_ACK_LEVELS = (ingest_pb2.ACK_LEVEL_UNSPECIFIED, ingest_pb2.ACK_LEVEL_DURABLE)


class IngestServicer(ingest_grpc.IngestServiceServicer):
    """Serves twinmesh.ingest.v1.IngestService.

    Args:
        profiles: finds what devices may report.
        catalog: finds ids of series.
        writer: commits batches.
        backfills: declares and finds backfills.
        live_window: event times taken without a backfill.
        clock: fills in absent times and moves the live window.
    """

    def __init__(
        self,
        *,
        profiles: ProfileCache,
        catalog: SeriesCatalog,
        writer: TelemetryWriter,
        backfills: BackfillStore,
        live_window: LiveWindow,
        clock: Clock,
    ) -> None:
        self._profiles = profiles
        self._catalog = catalog
        self._writer = writer
        self._backfills = backfills
        self._live_window = live_window
        self._clock = clock

    async def IngestTelemetry(
        self, request: ingest_pb2.IngestTelemetryRequest, context: Any
    ) -> ingest_pb2.IngestTelemetryResponse:
        received_us = self._clock.now_us()
        principal = current_principal()
        _require_built(request.ack_level)
        all_or_nothing = request.mode == ingest_pb2.MODE_ALL_OR_NOTHING
        readings = conversion.to_readings(request.readings)
        assessment = assess(
            readings,
            profiles=await self._profiles.find(principal.tenant, {reading.device_id for reading in readings}),
            window=await self._window(principal, request.backfill_id, received_us),
            received_us=received_us,
            all_or_nothing=all_or_nothing,
        )
        response = conversion.to_response(assessment)
        identity = conversion.to_identity(request)
        if identity is None and not assessment.series:
            return response  # There is nothing to store and nothing to remember.
        outcome = response.SerializeToString()
        result = await self._writer.write(
            WriteRequest(
                tenant=principal.tenant,
                principal=principal.name,
                identity=identity,
                digest=digest(readings, all_or_nothing=all_or_nothing, backfill_id=request.backfill_id),
                samples=await self._columns(principal.tenant, assessment),
                outcome=outcome,
                refused_outcome=_refused_by_database(readings, assessment, outcome),
                span=_span(),
            )
        )
        if result.outcome != outcome:
            response = ingest_pb2.IngestTelemetryResponse.FromString(result.outcome)
        response.duplicate = result.duplicate
        return response

    async def CreateBackfill(
        self, request: ingest_pb2.CreateBackfillRequest, context: Any
    ) -> ingest_pb2.Backfill:
        principal = current_principal()
        start_us = conversion.to_micros(request.start_time)
        end_us = conversion.to_micros(request.end_time)
        require_backfill_range(start_us, end_us)
        return conversion.to_backfill(
            await self._backfills.declare(
                tenant=principal.tenant, principal=principal.name, start_us=start_us, end_us=end_us
            )
        )

    async def StreamTelemetry(
        self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
    ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
        raise not_built_yet("StreamTelemetry")
        yield  # Makes it a generator, as handlers of streams must be.

    async def _columns(self, tenant: str, assessment: Assessment) -> list[KindColumns]:
        if not assessment.series:
            return []
        return assessment.columns(await self._catalog.resolve(tenant, assessment.series))

    async def _window(self, principal: Principal, backfill_id: str, now_us: int) -> TimeWindow:
        if not backfill_id:
            return self._live_window.at(now_us)
        policy.require(_BACKFILL_PERMISSION, principal, method="telemetry with a backfill_id")
        return await self._backfills.window(principal.tenant, backfill_id)


def _require_built(ack_level: ingest_pb2.AckLevel.ValueType) -> None:
    if ack_level not in _BUILT_ACK_LEVELS:
        raise not_built_yet(f"ack_level {ingest_pb2.AckLevel.Name(ack_level)}")


def _refused_by_database(readings: list[Reading], assessment: Assessment, outcome: bytes) -> bytes:
    """Return the outcome for the case that PostgreSQL refuses the content."""
    if not assessment.stored_samples:
        return outcome
    refused = refuse_rest(
        readings,
        assessment,
        reason=ErrorReason.ERROR_REASON_VALUE_REFUSED,
        message="the database refuses a value of this batch",
    )
    return conversion.to_response(refused).SerializeToString()


def _span() -> SpanContext | None:
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None
