"""One place where a batch becomes a request to the writer, whichever door it came through."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Protocol

from opentelemetry.trace import SpanContext, format_trace_id

from ingest_svc import columns as sent_columns
from ingest_svc import dead_letters
from ingest_svc import event as sent_events
from ingest_svc import reading as sent_readings
from ingest_svc.assessment import SeriesFinder, assess
from ingest_svc.asset_cache import AssetCache
from ingest_svc.columns import SentColumns
from ingest_svc.conversion import to_result
from ingest_svc.dead_letters import Arrival
from ingest_svc.device_message import DeviceMessage
from ingest_svc.device_message import digest as message_digest
from ingest_svc.event import InvalidEvent, SentEvent
from ingest_svc.message_intake import MessageIntake, TakenMessages, message_letter, message_letters
from ingest_svc.outcome import BATCH_REFUSED, VALUE_REFUSED, Outcome, RefusedContent, Why
from ingest_svc.profile import DeviceProfile, as_seen_in
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesTable
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit import policy
from meshkit.errors import InvalidArgument
from meshkit.identity import Principal, PrincipalKind
from meshkit.scope import Scope
from telemetry_store.columns import KindColumns
from telemetry_store.requests import DeadLetter, Event, Replay, RequestIdentity, WriteRequest, WriterIdentity

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
        earliest_us: bounds the live window, where the store has no more room for what is older.
        first_scope: devices that the principal is bound to that sent it first, when it is a replay.
    """

    principal: Principal
    identity: RequestIdentity | WriterIdentity | None
    span: SpanContext | None
    door: Door
    replay: Replay | None = None
    earliest_us: int = 0
    first_scope: Scope | None = None

    @property
    def scope(self) -> Scope | None:
        """Return the devices that whoever has sent it is bound to, whoever replays it; None: to none."""
        return self.principal.scope if self.replay is None else self.first_scope

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
        assets: finds which assets exist.
        series_finder: finds ids of series.
        backfills: finds declared backfills.
        live_window: event times that a tenant takes without a backfill.
        messages: reads messages.
    """

    def __init__(
        self,
        *,
        profiles: ProfileCache,
        assets: AssetCache,
        series_finder: SeriesFinder,
        backfills: Backfills,
        live_window: Callable[[str], LiveWindow],
        messages: MessageIntake,
    ) -> None:
        self._profiles = profiles
        self._assets = assets
        self._series_finder = series_finder
        self._backfills = backfills
        self._live_window = live_window
        self._messages = messages

    async def take_readings(
        self,
        origin: Origin,
        readings: Sequence[Reading],
        *,
        events: Sequence[SentEvent | InvalidEvent] = (),
        all_or_nothing: bool,
        backfill_id: str = "",
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of readings and events.

        Args:
            origin: where they come from.
            readings: by the rules of the contract.
            events: of the same batch.
            all_or_nothing: one refusal refuses the batch.
            backfill_id: its range replaces the live window; "": none.
            received_us: stands in for absent times, microseconds since the epoch.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the devices may report.
        """
        tenant = origin.principal.tenant
        window = await self.window(origin, backfill_id, received_us)
        assessment = assess(
            readings,
            profiles=await self._profiles_of(origin, {reading.device_id for reading in readings}),
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
        arrival = _arrival(origin, received_us, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        taken = _Taken(
            digest,
            assessment,
            samples,
            dead_letters.of_readings(arrival, readings, list(assessment.refused.values())),
            partial(dead_letters.whole_readings, arrival, readings),
            live_us=0 if backfill_id else received_us,
            bulk=bool(backfill_id),
        )
        if events:
            taken = await self._beside_events(origin, taken, events, window, arrival)
        return _request(origin, taken)

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
        window = await self.window(origin, backfill_id, received_us)
        assessed = await self._assess_events(origin, events, window, received_us)
        told = sent_events.join(
            Outcome(),
            assessed,
            len(events),
            all_or_nothing=all_or_nothing,
            most_refusals=sent_events.MAX_EVENTS,
        )
        digest = sent_events.digest(events, all_or_nothing=all_or_nothing, backfill_id=backfill_id)
        return _request(origin, _Taken(digest, told, events=assessed.events))

    async def take_columns(
        self,
        origin: Origin,
        columns: SentColumns,
        series: SeriesTable,
        *,
        events: Sequence[SentEvent | InvalidEvent] = (),
        all_or_nothing: bool,
        backfill_id: str = "",
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores what is good of columns and events.

        Columns whose lengths disagree are refused as a whole, by a request that records
        just this. Nothing is awaited while profiles and series ids are remembered.

        Args:
            origin: where they come from.
            columns: as sent.
            series: the stream's; resolved here as far as it is not. One call at a time.
            events: of the same batch.
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
            return _refusing(origin, digest, why, letter, events, all_or_nothing=all_or_nothing)
        await self._resolve(origin, series, received_us)
        window = await self.window(origin, backfill_id, received_us)
        assessed = sent_columns.assess(
            columns,
            series,
            window=window,
            all_or_nothing=all_or_nothing,
            refused_as_one=origin.replay is not None,
        )
        taken = _Taken(
            digest,
            assessed,
            assessed.samples,
            dead_letters.of_columns(arrival, assessed.refused, series),
            partial(dead_letters.whole_columns, arrival, columns, series),
            live_us=0 if backfill_id else received_us,
            bulk=bool(backfill_id),
        )
        if events:
            taken = await self._beside_events(origin, taken, events, window, arrival)
        return _request(origin, taken)

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
        profiles = await self._profiles_of(
            origin, {message.device_id for message in messages}, in_messages=True
        )
        taken = await self._messages.take(
            tenant,
            messages,
            profiles,
            window=self._live_window(tenant).at(received_us),
            now_us=received_us,
            wait_when_full=True,
        )
        letters = message_letters(messages, taken, principal=principal, trace_id=origin.trace_id)
        request = _request(
            origin,
            _Taken(
                message_digest(messages),
                taken.outcome(),
                taken.samples,
                list(letters.values()),
                live_us=received_us,
            ),
        )
        whole = [
            partial(message_letter, message, [VALUE_REFUSED], principal=principal, trace_id=origin.trace_id)
            for message in messages
        ]
        return replace(
            request, chunks=taken.chunks, refused_dead_letters=lambda: [letter() for letter in whole]
        ), taken

    def refuse(
        self,
        origin: Origin,
        refused: RefusedContent,
        *,
        events: Sequence[SentEvent | InvalidEvent] = (),
        backfill_id: str = "",
        received_us: int,
    ) -> WriteRequest:
        """Return the request that stores nothing and records why under the batch's identity.

        Args:
            origin: where it comes from.
            refused: all of its samples.
            events: of the same batch, which are refused with them.
            backfill_id: the backfill that it names; "": none.
            received_us: when it came, microseconds since the epoch.
        """
        arrival = _arrival(origin, received_us, all_or_nothing=False, backfill_id=backfill_id)
        letter = dead_letters.of_content(arrival, refused)
        return _refusing(origin, refused.digest, refused.why, letter, events, all_or_nothing=False)

    async def _beside_events(
        self,
        origin: Origin,
        taken: "_Taken",
        events: Sequence[SentEvent | InvalidEvent],
        window: TimeWindow,
        arrival: Arrival,
    ) -> "_Taken":
        """Return what becomes of samples and events of one batch."""
        assessed = await self._assess_events(origin, events, window, arrival.received_us)
        told = sent_events.join(
            taken.outcome,
            assessed,
            len(events),
            all_or_nothing=arrival.all_or_nothing,
            most_refusals=sent_columns.MAX_REFUSALS,
        )
        digest = _digest_beside(taken.digest, events, all_or_nothing=arrival.all_or_nothing)
        if taken.outcome.stored_samples and not told.stored_samples:
            letters = [taken.whole(BATCH_REFUSED)] if taken.whole is not None else []
            return replace(taken, digest=digest, outcome=told, samples=(), letters=letters)
        return replace(taken, digest=digest, outcome=told, events=assessed.events)

    async def _assess_events(
        self,
        origin: Origin,
        events: Sequence[SentEvent | InvalidEvent],
        window: TimeWindow,
        received_us: int,
    ) -> sent_events.AssessedEvents:
        return sent_events.assess(
            events,
            profiles=await self._profiles_of(origin, sent_events.devices_of(events)),
            assets=await self._assets_of(origin, sent_events.assets_of(events)),
            window=window,
            received_us=received_us,
        )

    async def charged_devices(self, principal: Principal, samples: Mapping[str, int]) -> Mapping[str, int]:
        """Return samples by the device whose limits they count against.

        Against its own where somebody sends for it who may; otherwise against the device that sends, if one
        does, so that none uses up what another may send.

        Args:
            principal: who sends.
            samples: by the device that they name.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell whose child a device is.
        """
        scope = principal.scope
        if scope is None:
            return samples
        found = await self._profiles.find(principal.tenant, samples.keys())
        charged = Counter[str]()
        for device_id, count in samples.items():
            if scope.holds(device_id, found[device_id].parent_id if device_id in found else ""):
                charged[device_id] += count
            elif principal.kind is PrincipalKind.DEVICE:
                charged[principal.subject] += count
        return charged

    async def _profiles_of(
        self, origin: Origin, device_ids: Collection[str], *, in_messages: bool = False
    ) -> Mapping[str, DeviceProfile]:
        found = await self._profiles.find(origin.principal.tenant, device_ids)
        return as_seen_in(origin.scope, device_ids, found, in_messages=in_messages)

    async def _assets_of(self, origin: Origin, asset_ids: Collection[str]) -> Collection[str]:
        """Return the assets that exist; to whoever is bound to devices none does."""
        if origin.scope is not None:
            return ()
        return await self._assets.find(origin.principal.tenant, asset_ids)

    async def _resolve(self, origin: Origin, series: SeriesTable, now_us: int) -> None:
        tenant = origin.principal.tenant
        # Asked before the profiles are, so that a change in between is seen the next time.
        series.outdate(version=self._profiles.version(tenant), now_us=now_us)
        while aliases := series.unresolved(_RESOLVED_AT_ONCE):
            devices = {series.definition(alias).device_id for alias in aliases}
            good = series.judge(aliases, await self._profiles_of(origin, devices))
            keys, metrics = [key for key, _ in good.values()], [metric for _, metric in good.values()]
            series.settle(aliases, list(good), await self._series_finder.resolve(tenant, keys, metrics))
            if len(aliases) == _RESOLVED_AT_ONCE:
                await asyncio.sleep(0)

    async def window(self, origin: Origin, backfill_id: str, now_us: int) -> TimeWindow:
        """Return the event times that are taken: of a backfill, or near now when it is "".

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        if not backfill_id:
            live = self._live_window(origin.principal.tenant).at(now_us)
            return live if live.start_us >= origin.earliest_us else replace(live, start_us=origin.earliest_us)
        policy.require(_BACKFILL_PERMISSION, origin.principal, method="telemetry with a backfill_id")
        return await self._backfills.window(origin.principal.tenant, backfill_id)


def _arrival(origin: Origin, received_us: int, *, all_or_nothing: bool, backfill_id: str) -> Arrival:
    return Arrival(
        origin.principal.name,
        received_us,
        origin.trace_id,
        all_or_nothing,
        backfill_id,
        is_replay=origin.replay is not None,
    )


def _digest_beside(
    samples: bytes, events: Sequence[SentEvent | InvalidEvent], *, all_or_nothing: bool
) -> bytes:
    if not events:
        return samples
    return sent_events.digest_beside(samples, sent_events.digest(events, all_or_nothing=all_or_nothing))


@dataclass(frozen=True, slots=True)
class _Taken:
    """What becomes of a batch.

    Attributes:
        digest: of its content.
        outcome: what is told.
        samples: to store.
        letters: of what is refused.
        whole: makes the letter of all of its samples; None: it has none.
        events: to store.
        live_us: as WriteRequest has it.
        bulk: likewise.
    """

    digest: bytes
    outcome: Outcome
    samples: Sequence[KindColumns] = ()
    letters: Sequence[DeadLetter] = ()
    whole: Callable[[Why], DeadLetter] | None = None
    events: Sequence[Event] = ()
    live_us: int = 0
    bulk: bool = False

    def letters_if_refused(self) -> Sequence[DeadLetter]:
        """Return the letters for the case that PostgreSQL refuses the content."""
        return () if self.whole is None else (self.whole(VALUE_REFUSED),)


def _refusing(
    origin: Origin,
    digest: bytes,
    why: Why,
    letter: DeadLetter,
    events: Sequence[SentEvent | InvalidEvent],
    *,
    all_or_nothing: bool,
) -> WriteRequest:
    """Return the request of a batch that is refused as a whole, and would be by the database as well."""
    reason, message = why
    outcome = Outcome(
        refused_samples=letter.sample_count, refused_events=len(events), reason=reason, message=message
    )
    digest = _digest_beside(digest, events, all_or_nothing=all_or_nothing)
    return _request(origin, _Taken(digest, outcome, letters=[letter], whole=lambda _: letter))


def _request(origin: Origin, taken: _Taken) -> WriteRequest:
    sequence = origin.identity.sequence if isinstance(origin.identity, WriterIdentity) else 0
    trace_id, outcome = origin.trace_id, taken.outcome
    recorded = to_result(outcome, sequence, trace_id).SerializeToString()
    return WriteRequest(
        tenant=origin.principal.tenant,
        principal=origin.principal.name,
        identity=origin.identity,
        digest=taken.digest,
        samples=taken.samples,
        outcome=recorded,
        refused_outcome=to_result(_refused_by_database(outcome), sequence, trace_id).SerializeToString()
        if outcome.stored_samples or outcome.stored_events
        else recorded,
        span=origin.span,
        door=origin.door,
        dead_letters=taken.letters,
        refused_dead_letters=taken.letters_if_refused,
        events=taken.events if outcome.stored_events else (),
        replay=origin.replay,
        received_us=taken.live_us,
        bulk=taken.bulk,
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
