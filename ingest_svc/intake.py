"""One place where a batch becomes a request to the writer, whichever door it came through."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from opentelemetry.trace import SpanContext, format_trace_id

from ingest_svc import columns as sent_columns
from ingest_svc import dead_letters
from ingest_svc import reading as sent_readings
from ingest_svc.assessment import SeriesFinder, assess
from ingest_svc.columns import SentColumns
from ingest_svc.conversion import to_result
from ingest_svc.dead_letters import Arrival
from ingest_svc.device_message import DeviceMessage
from ingest_svc.device_message import digest as message_digest
from ingest_svc.message_intake import MessageIntake, TakenMessages, message_letter, message_letters
from ingest_svc.outcome import VALUE_REFUSED, Outcome, RefusedContent, Why
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesTable
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit import policy
from meshkit.errors import InvalidArgument
from meshkit.identity import Principal
from telemetry_store.columns import KindColumns
from telemetry_store.requests import DeadLetter, Replay, RequestIdentity, WriteRequest, WriterIdentity

_BACKFILL_PERMISSION = "telemetry:backfill"
# So many series are resolved at a time; asset_svc takes no more devices at once, and
# in between others have their turn.
_RESOLVED_AT_ONCE = 10_000


class Door(StrEnum):
    """A way into the mesh."""

    UNARY = "unary"
    STREAM = "stream"
    MQTT = "mqtt"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch comes from.

    Attributes:
        principal: who sends it.
        identity: what makes it known when it comes again, None when nothing does.
        span: the commit's span links to it.
        door: which way it came.
        replay: the dead letter that it comes from, None from none.
    """

    principal: Principal
    identity: RequestIdentity | WriterIdentity | None
    span: SpanContext | None
    door: Door
    replay: Replay | None = None

    @property
    def trace_id(self) -> str:
        """Return the hexadecimal id of the batch's trace, "" outside of any."""
        return format_trace_id(self.span.trace_id) if self.span is not None else ""


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
        arrival = _arrival(origin, received_us, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        return _request(
            origin,
            digest,
            assessment,
            samples,
            dead_letters.of_readings(arrival, readings, list(assessment.refused.values())),
            lambda: [dead_letters.whole_readings(arrival, readings, VALUE_REFUSED)],
            live_us=0 if backfill_id else received_us,
        )

    async def take_columns(
        self,
        origin: Origin,
        columns: SentColumns,
        series: SeriesTable,
        *,
        all_or_nothing: bool,
        backfill_id: str = "",
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
            backfill_id: its range replaces the live window; "": none.
            received_us: moves the live window, microseconds since the epoch.

        Raises:
            FailedPrecondition: UNKNOWN_ALIAS or BACKFILL_UNKNOWN; nothing is recorded.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the devices may report.
        """
        sent_columns.require_known(columns, series)
        digest = sent_columns.digest(columns, series, all_or_nothing=all_or_nothing)
        arrival = _arrival(origin, received_us, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        try:
            sent_columns.check(columns, series)
        except InvalidArgument as error:
            why = (error.reason, error.message)
            letter = dead_letters.whole_columns(arrival, columns, series, why)
            return _refusing(origin, digest, why, letter)
        await self._resolve(origin.principal.tenant, series, received_us)
        assessed = sent_columns.assess(
            columns,
            series,
            window=await self._window(origin.principal, backfill_id, received_us),
            all_or_nothing=all_or_nothing,
            refused_as_one=origin.replay is not None,
        )
        return _request(
            origin,
            digest,
            assessed,
            assessed.samples,
            dead_letters.of_columns(arrival, assessed.refused, series),
            lambda: [dead_letters.whole_columns(arrival, columns, series, VALUE_REFUSED)],
            live_us=0 if backfill_id else received_us,
        )

    async def take_messages(
        self, origin: Origin, messages: Sequence[DeviceMessage], *, received_us: int
    ) -> tuple[WriteRequest, TakenMessages]:
        """Return the request that stores what is good of messages and keeps chunks, and what they hold.

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
        letters = message_letters(messages, taken, principal=principal, trace_id=origin.trace_id)
        request = _request(
            origin,
            message_digest(messages),
            taken.outcome(),
            taken.samples,
            list(letters.values()),
            lambda: [
                message_letter(message, [VALUE_REFUSED], principal=principal, trace_id=origin.trace_id)
                for message in messages
            ],
            live_us=received_us,
        )
        return replace(request, chunks=taken.chunks), taken

    def refuse(
        self, origin: Origin, refused: RefusedContent, *, backfill_id: str = "", received_us: int
    ) -> WriteRequest:
        """Return the request that stores nothing and records why under the batch's identity.

        Args:
            origin: where it comes from.
            refused: all of it.
            backfill_id: the backfill that it names; "": none.
            received_us: when it came, microseconds since the epoch.
        """
        arrival = _arrival(origin, received_us, all_or_nothing=False, backfill_id=backfill_id)
        return _refusing(origin, refused.digest, refused.why, dead_letters.of_content(arrival, refused))

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


def _arrival(origin: Origin, received_us: int, *, all_or_nothing: bool, backfill_id: str) -> Arrival:
    return Arrival(
        origin.principal.name,
        received_us,
        origin.trace_id,
        all_or_nothing,
        backfill_id,
        is_replay=origin.replay is not None,
    )


def _refusing(origin: Origin, digest: bytes, why: Why, letter: DeadLetter) -> WriteRequest:
    """Return the request of a batch that is refused as a whole, and would be by the database as well."""
    reason, message = why
    outcome = Outcome(refused_samples=letter.sample_count, reason=reason, message=message)
    return _request(origin, digest, outcome, [], [letter], lambda: [letter])


def _request(
    origin: Origin,
    digest: bytes,
    outcome: Outcome,
    samples: Sequence[KindColumns],
    letters: Sequence[DeadLetter],
    refused_letters: Callable[[], Sequence[DeadLetter]],
    *,
    live_us: int = 0,
) -> WriteRequest:
    sequence = origin.identity.sequence if isinstance(origin.identity, WriterIdentity) else 0
    trace_id = origin.trace_id
    recorded = to_result(outcome, sequence, trace_id).SerializeToString()
    return WriteRequest(
        tenant=origin.principal.tenant,
        principal=origin.principal.name,
        identity=origin.identity,
        digest=digest,
        samples=samples,
        outcome=recorded,
        refused_outcome=to_result(_refused_by_database(outcome), sequence, trace_id).SerializeToString()
        if outcome.stored_samples
        else recorded,
        span=origin.span,
        door=origin.door,
        dead_letters=letters,
        refused_dead_letters=refused_letters,
        replay=origin.replay,
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
