"""One place where a batch becomes a request to the writer, whichever door it came through."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
from opentelemetry.trace import SpanContext

from ingest_svc import columns as sent_columns
from ingest_svc import event as sent_events
from ingest_svc import reading as sent_readings
from ingest_svc.assessment import assess
from ingest_svc.asset_cache import AssetCache
from ingest_svc.columns import SentColumns
from ingest_svc.conversion import to_result
from ingest_svc.event import SentEvent
from ingest_svc.outcome import VALUE_REFUSED, Outcome, RefusedContent
from ingest_svc.profile import MetricProfile
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesTable
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit import policy
from meshkit.errors import InvalidArgument
from meshkit.identity import Principal
from telemetry_store.columns import KindColumns
from telemetry_store.requests import Event, RequestIdentity, WriteRequest, WriterIdentity
from telemetry_store.series import SeriesKey

_BACKFILL_PERMISSION = "telemetry:backfill"
# So many series are resolved at a time; asset_svc takes no more devices at once, and
# in between others have their turn.
_RESOLVED_AT_ONCE = 10_000


class Door(StrEnum):
    """A way into the mesh."""

    UNARY = "unary"
    STREAM = "stream"
    MQTT = "mqtt"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch comes from.

    Attributes:
        principal: who sends it.
        identity: what makes it known when it comes again, None when nothing does.
        span: the commit's span links to it.
        door: which way it came.
    """

    principal: Principal
    identity: RequestIdentity | WriterIdentity | None
    span: SpanContext | None
    door: Door


class Backfills(Protocol):
    """Where declared backfills are found."""

    async def window(self, tenant: str, backfill_id: str) -> TimeWindow:
        """Return the event times that a tenant's backfill takes.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            Unavailable: nobody can tell now.
        """
        ...


class SeriesFinder(Protocol):
    """Where ids of series are found."""

    async def resolve(
        self, tenant: str, keys: Sequence[SeriesKey], metrics: Sequence[MetricProfile]
    ) -> npt.NDArray[np.int32]:
        """Return the ids of series, as Processing does."""
        ...


class Intake:
    """Takes batches: decides about their samples, and makes their outcomes.

    The outcome of every request, and what is recorded in its place when PostgreSQL
    refuses the content, is a serialized twinmesh.ingest.v1.BatchResult (sequence 0 when
    the batch has none), whichever door the batch came through.

    Args:
        profiles: finds what devices may report.
        assets: finds which assets exist.
        series_finder: finds ids of series.
        backfills: finds declared backfills.
        live_window: event times taken without a backfill.
    """

    def __init__(
        self,
        *,
        profiles: ProfileCache,
        assets: AssetCache,
        series_finder: SeriesFinder,
        backfills: Backfills,
        live_window: LiveWindow,
    ) -> None:
        self._profiles = profiles
        self._assets = assets
        self._series_finder = series_finder
        self._backfills = backfills
        self._live_window = live_window

    async def take_readings(
        self,
        origin: Origin,
        readings: Sequence[Reading],
        *,
        events: Sequence[SentEvent] = (),
        all_or_nothing: bool,
        backfill_id: str = "",
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of readings and events.

        Args:
            origin: where they come from.
            readings: by the rules of the contract.
            events: of the same batch, likewise.
            all_or_nothing: one refusal refuses the batch.
            backfill_id: its range replaces the live window; "": none.
            received_us: stands in for absent times, microseconds since the epoch.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the devices may report.
        """
        tenant = origin.principal.tenant
        window = await self._window(origin.principal, backfill_id, received_us)
        assessment = assess(
            readings,
            profiles=await self._profiles.find(tenant, {reading.device_id for reading in readings}),
            window=window,
            received_us=received_us,
            all_or_nothing=all_or_nothing,
        )
        samples: list[KindColumns] = []
        if assessment.series:
            samples = assessment.columns(
                await self._series_finder.resolve(tenant, assessment.series, assessment.metrics)
            )
        digest = sent_readings.digest(readings, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        return await self._request(
            origin,
            digest,
            assessment,
            samples,
            events=events,
            window=window,
            received_us=received_us,
            live_us=0 if backfill_id else received_us,
            all_or_nothing=all_or_nothing,
        )

    async def take_events(
        self,
        origin: Origin,
        events: Sequence[SentEvent],
        *,
        all_or_nothing: bool,
        backfill_id: str,
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of events.

        Args:
            origin: where they come from.
            events: by the rules of the contract.
            all_or_nothing: one refusal refuses the batch.
            backfill_id: its range replaces the live window; "": none.
            received_us: stands in for absent times, microseconds since the epoch.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell which devices and assets exist.
        """
        assessed = await self._assess_events(
            origin.principal.tenant,
            events,
            window=await self._window(origin.principal, backfill_id, received_us),
            received_us=received_us,
        )
        told = sent_events.join(
            Outcome(),
            assessed,
            len(events),
            all_or_nothing=all_or_nothing,
            most_refusals=sent_events.MAX_EVENTS,
        )
        digest = sent_events.digest(events, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        return _request(origin, digest, told, [], assessed.events)

    async def take_columns(
        self,
        origin: Origin,
        columns: SentColumns,
        series: SeriesTable,
        *,
        events: Sequence[SentEvent] = (),
        all_or_nothing: bool,
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of columns and events.

        Columns whose lengths disagree are refused as a whole, by a request that records
        just this. Nothing is awaited while profiles and series ids are remembered.

        Args:
            origin: where they come from.
            columns: as sent.
            series: the stream's; resolved here as far as it is not. One call at a time.
            events: of the same batch, by the rules of the contract.
            all_or_nothing: one refusal refuses the batch.
            received_us: moves the live window, microseconds since the epoch.

        Raises:
            FailedPrecondition: UNKNOWN_ALIAS; nothing is recorded.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the devices may report.
        """
        sent_columns.require_known(columns, series)
        digest = sent_columns.digest(columns, series, all_or_nothing=all_or_nothing)
        try:
            sent_columns.check(columns, series)
        except InvalidArgument as error:
            digest = _digest_beside(digest, events, all_or_nothing=all_or_nothing)
            why = error.reason, error.message
            return self.refuse(origin, RefusedContent(why, len(columns), digest, len(events)))
        await self._resolve(origin.principal.tenant, series, received_us)
        window = self._live_window.at(received_us)
        assessed = sent_columns.assess(columns, series, window=window, all_or_nothing=all_or_nothing)
        return await self._request(
            origin,
            digest,
            assessed,
            assessed.samples,
            events=events,
            window=window,
            received_us=received_us,
            live_us=received_us,
            all_or_nothing=all_or_nothing,
        )

    def refuse(self, origin: Origin, refused: RefusedContent) -> WriteRequest:
        """Return the request that stores nothing and records why under the batch's identity."""
        reason, message = refused.why
        outcome = Outcome(
            refused_samples=refused.samples, refused_events=refused.events, reason=reason, message=message
        )
        return _request(origin, refused.digest, outcome, [])

    async def _request(
        self,
        origin: Origin,
        digest: bytes,
        outcome: Outcome,
        samples: Sequence[KindColumns],
        *,
        events: Sequence[SentEvent],
        window: TimeWindow,
        received_us: int,
        live_us: int,
        all_or_nothing: bool,
    ) -> WriteRequest:
        """Return the request of a batch, with its events if it has any."""
        if not events:
            return _request(origin, digest, outcome, samples, live_us=live_us)
        assessed = await self._assess_events(
            origin.principal.tenant, events, window=window, received_us=received_us
        )
        told = sent_events.join(
            outcome,
            assessed,
            len(events),
            all_or_nothing=all_or_nothing,
            most_refusals=sent_columns.MAX_REFUSALS,
        )
        digest = _digest_beside(digest, events, all_or_nothing=all_or_nothing)
        kept = samples if told.stored_samples else []
        return _request(origin, digest, told, kept, assessed.events, live_us=live_us)

    async def _assess_events(
        self, tenant: str, events: Sequence[SentEvent], *, window: TimeWindow, received_us: int
    ) -> sent_events.AssessedEvents:
        return sent_events.assess(
            events,
            profiles=await self._profiles.find(
                tenant, {event.device_id for event in events if event.device_id}
            ),
            assets=await self._assets.find(tenant, {event.asset_id for event in events if event.asset_id}),
            window=window,
            received_us=received_us,
        )

    async def _resolve(self, tenant: str, series: SeriesTable, now_us: int) -> None:
        # Asked before the profiles are, so that a change in between is seen the next time.
        series.outdate(version=self._profiles.version(tenant), now_us=now_us)
        while aliases := series.unresolved(_RESOLVED_AT_ONCE):
            devices = {series.definition(alias).device_id for alias in aliases}
            good = series.judge(aliases, await self._profiles.find(tenant, devices))
            keys, metrics = [key for key, _ in good.values()], [metric for _, metric in good.values()]
            series.settle(aliases, list(good), await self._series_finder.resolve(tenant, keys, metrics))
            if len(aliases) == _RESOLVED_AT_ONCE:
                await asyncio.sleep(0)

    async def _window(self, principal: Principal, backfill_id: str, now_us: int) -> TimeWindow:
        if not backfill_id:
            return self._live_window.at(now_us)
        policy.require(_BACKFILL_PERMISSION, principal, method="telemetry with a backfill_id")
        return await self._backfills.window(principal.tenant, backfill_id)


def _digest_beside(samples: bytes, events: Sequence[SentEvent], *, all_or_nothing: bool) -> bytes:
    if not events:
        return samples
    return sent_events.digest_beside(samples, sent_events.digest(events, all_or_nothing=all_or_nothing))


def _request(
    origin: Origin,
    digest: bytes,
    outcome: Outcome,
    samples: Sequence[KindColumns],
    events: Sequence[Event] = (),
    *,
    live_us: int = 0,
) -> WriteRequest:
    sequence = origin.identity.sequence if isinstance(origin.identity, WriterIdentity) else 0
    recorded = to_result(outcome, sequence).SerializeToString()
    return WriteRequest(
        tenant=origin.principal.tenant,
        principal=origin.principal.name,
        identity=origin.identity,
        digest=digest,
        samples=samples,
        outcome=recorded,
        refused_outcome=to_result(_refused_by_database(outcome), sequence).SerializeToString()
        if outcome.stored_samples or outcome.stored_events
        else recorded,
        span=origin.span,
        door=origin.door,
        events=events if outcome.stored_events else (),
        received_us=live_us,
    )


def _refused_by_database(outcome: Outcome) -> Outcome:
    """Return the outcome for the case that PostgreSQL refuses the content."""
    reason, message = VALUE_REFUSED
    return Outcome(
        refusals=outcome.refusals,
        refused_samples=outcome.stored_samples + outcome.refused_samples,
        reason=reason,
        message=message,
        refused_events=outcome.stored_events + outcome.refused_events,
        event_refusals=outcome.event_refusals,
    )
