"""One place where a batch becomes a request to the writer, whichever door it came through."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from opentelemetry.trace import SpanContext

from ingest_svc import columns as sent_columns
from ingest_svc import reading as sent_readings
from ingest_svc.assessment import SeriesFinder, assess
from ingest_svc.columns import SentColumns
from ingest_svc.conversion import to_result
from ingest_svc.device_message import DeviceMessage, digest
from ingest_svc.message_intake import MessageIntake, dead_letter, dead_letters
from ingest_svc.outcome import VALUE_REFUSED, Outcome, RefusedContent
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesTable
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit import policy
from meshkit.errors import InvalidArgument
from meshkit.identity import Principal
from telemetry_store.columns import KindColumns
from telemetry_store.requests import RequestIdentity, WriteRequest, WriterIdentity

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


class Intake:
    """Takes batches: decides about their samples, and makes their outcomes.

    The outcome of every request, and what is recorded in its place when PostgreSQL
    refuses the content, is a serialized twinmesh.ingest.v1.BatchResult (sequence 0 when
    the batch has none), whichever door the batch came through.

    Args:
        profiles: finds what devices may report.
        series_finder: finds ids of series.
        backfills: finds declared backfills.
        live_window: event times taken without a backfill.
        messages: reads messages.
    """

    def __init__(
        self,
        *,
        profiles: ProfileCache,
        series_finder: SeriesFinder,
        backfills: Backfills,
        live_window: LiveWindow,
        messages: MessageIntake,
    ) -> None:
        self._profiles = profiles
        self._series_finder = series_finder
        self._backfills = backfills
        self._live_window = live_window
        self._messages = messages

    async def take_readings(
        self,
        origin: Origin,
        readings: Sequence[Reading],
        *,
        all_or_nothing: bool,
        backfill_id: str = "",
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of readings.

        Args:
            origin: where they come from.
            readings: by the rules of the contract.
            all_or_nothing: one refusal refuses the batch.
            backfill_id: its range replaces the live window; "": none.
            received_us: stands in for absent times, microseconds since the epoch.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the devices may report.
        """
        tenant = origin.principal.tenant
        assessment = assess(
            readings,
            profiles=await self._profiles.find(tenant, {reading.device_id for reading in readings}),
            window=await self._window(origin.principal, backfill_id, received_us),
            received_us=received_us,
            all_or_nothing=all_or_nothing,
        )
        samples: list[KindColumns] = []
        if assessment.series:
            samples = assessment.columns(
                await self._series_finder.resolve(tenant, assessment.series, assessment.metrics)
            )
        digest = sent_readings.digest(readings, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        live_us = 0 if backfill_id else received_us
        return _request(origin, digest, assessment, samples, live_us=live_us)

    async def take_columns(
        self,
        origin: Origin,
        columns: SentColumns,
        series: SeriesTable,
        *,
        all_or_nothing: bool,
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of columns.

        Columns whose lengths disagree are refused as a whole, by a request that records
        just this. Nothing is awaited while profiles and series ids are remembered.

        Args:
            origin: where they come from.
            columns: as sent.
            series: the stream's; resolved here as far as it is not. One call at a time.
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
            return self.refuse(origin, RefusedContent((error.reason, error.message), len(columns), digest))
        await self._resolve(origin.principal.tenant, series, received_us)
        assessed = sent_columns.assess(
            columns, series, window=self._live_window.at(received_us), all_or_nothing=all_or_nothing
        )
        return _request(origin, digest, assessed, assessed.samples, live_us=received_us)

    async def take_messages(
        self, origin: Origin, messages: Sequence[DeviceMessage], *, received_us: int
    ) -> WriteRequest:
        """Return the request that stores what is good of messages, and keeps chunks.

        What is refused is kept as dead letters as well.

        Args:
            origin: where they come from.
            messages: by the rules of the contract.
            received_us: moves the live window, microseconds since the epoch.

        Raises:
            ResourceExhausted: CHUNK_STORAGE_FULL; nothing is recorded.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        tenant, principal = origin.principal.tenant, origin.principal.name
        profiles = await self._profiles.find(tenant, {message.device_id for message in messages})
        taken = await self._messages.take(tenant, messages, profiles, now_us=received_us, wait_when_full=True)
        return replace(
            _request(origin, digest(messages), taken.outcome(), taken.samples, live_us=received_us),
            dead_letters=list(dead_letters(messages, taken, principal=principal).values()),
            refused_dead_letters=lambda: [
                dead_letter(message, [VALUE_REFUSED], principal=principal) for message in messages
            ],
            chunks=taken.chunks,
        )

    def refuse(self, origin: Origin, refused: RefusedContent) -> WriteRequest:
        """Return the request that stores nothing and records why under the batch's identity."""
        reason, message = refused.why
        outcome = Outcome(refused_samples=refused.samples, reason=reason, message=message)
        return _request(origin, refused.digest, outcome, [])

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


def _request(
    origin: Origin, digest: bytes, outcome: Outcome, samples: Sequence[KindColumns], *, live_us: int = 0
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
        if outcome.stored_samples
        else recorded,
        span=origin.span,
        door=origin.door,
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
    )
