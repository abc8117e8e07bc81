"""A device message's path: from its payload to the writer, or into a dead letter.

messages ──▶ whose devices? ──▶ readings by the type's schema ──▶ assess ──▶ Writer, with dead letters
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from opentelemetry.trace import SpanContext, SpanKind, format_trace_id

from ingest_svc import device_message
from ingest_svc.assessment import Assessment, assess
from ingest_svc.conversion import to_result
from ingest_svc.dead_letters import readable
from ingest_svc.device_message import MalformedMessageError
from ingest_svc.intake import Door, Origin, SeriesFinder
from ingest_svc.outcome import INTERNAL, VALUE_REFUSED, Outcome, Refusal, Why, device_unknown, reason_name
from ingest_svc.profile import DeviceProfile
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.raw_trail import RawTrail
from ingest_svc.reading import Reading
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit.clock import Clock
from meshkit.errors import ResourceExhausted, Unavailable
from meshkit.telemetry import tracer
from telemetry_store.columns import KindColumns
from telemetry_store.requests import (
    DeadLetter,
    MessageIdentity,
    PayloadFormat,
    RawMessage,
    WriteRequest,
    WriteResult,
)
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

PRINCIPAL = "mqtt"
_log = structlog.get_logger()
_REFUSALS_TOLD = 5  # in one dead letter
_TEXT_TOLD = 256  # characters of each
_UNBOUNDED = 2**62
_NOTHING = np.zeros(1, np.int64)
_PASSING = (Unavailable, ResourceExhausted)


@dataclass(frozen=True, slots=True)
class DeviceMessage:
    """A message of a device.

    Attributes:
        device_id: whose, by the topic; only its own log-in may publish there.
        payload: as it came.
        arrival_us: when the broker got it, microseconds since the epoch; the same however
            often it is delivered.
        sequence: its number in the broker's stream; 0: it is in none, and nobody repeats it.
    """

    device_id: str
    payload: bytes
    arrival_us: int
    sequence: int = 0


class MessageWriter(Protocol):
    """Where messages become durable."""

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        """Let a request in, to be committed, as TelemetryWriter does."""
        ...


@dataclass(slots=True)
class _TenantMessages:
    """What one tenant's messages hold; places are those in `messages`, profiles of their devices."""

    messages: list[DeviceMessage] = field(default_factory=list)
    profiles: dict[str, DeviceProfile] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    of_readings: list[int] = field(default_factory=list)
    refusals: defaultdict[int, list[Why]] = field(default_factory=lambda: defaultdict(list))
    refused_samples: Counter[int] = field(default_factory=Counter)

    def refuse(self, refusal: Refusal) -> None:
        """Take in what the assessment refuses: a whole reading, or a value of one."""
        place = self.of_readings[refusal.reading_index]
        self.refusals[place].append(_why(refusal))
        reading = self.readings[refusal.reading_index]
        self.refused_samples[place] += 1 if refusal.metric else len(reading.samples)

    def contents(self) -> Iterator[tuple[bytes, set[str]]]:
        """Yield each message's payload, and the devices that it speaks of."""
        devices = [{message.device_id} for message in self.messages]
        for reading, place in zip(self.readings, self.of_readings, strict=True):
            devices[place].add(reading.device_id)
        for message, named in zip(self.messages, devices, strict=True):
            yield message.payload, named


class MessagePath:
    """Stores messages of devices.

    Args:
        tenants: finds whose devices are.
        profiles: finds what they may report, and how their messages are read.
        series_finder: finds ids of series.
        writer: commits.
        raw: keeps messages as they came.
        live_window: event times that are taken.
        clock: moves the window.
    """

    def __init__(
        self,
        *,
        tenants: TenantCache,
        profiles: ProfileCache,
        series_finder: SeriesFinder,
        writer: MessageWriter,
        raw: RawTrail,
        live_window: LiveWindow,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._profiles = profiles
        self._series_finder = series_finder
        self._writer = writer
        self._raw = raw
        self._live_window = live_window
        self._clock = clock
        self._turn = asyncio.Lock()

    async def store(self, messages: Sequence[DeviceMessage], *, stream: str) -> None:
        """Store messages; returns once each is durable: its samples, and why some were refused.

        A message of a stream that was stored before is left out, so this may be repeated.

        Args:
            messages: in the order of their arrival.
            stream: name of the stream they are in, "" when they are in none.

        Raises:
            Unavailable, ResourceExhausted: some may be stored, others not; nothing is lost if it is
                done again.
        """
        with tracer.start_as_current_span(
            "ingest.messages",
            kind=SpanKind.CONSUMER,
            attributes={"messaging.system": "mqtt", "messaging.batch.message_count": len(messages)},
        ) as span:
            await self._store(messages, stream, span.get_span_context())

    async def _store(self, messages: Sequence[DeviceMessage], stream: str, span: SpanContext) -> None:
        try:
            # In their order: of equal times the later message's value counts.
            async with self._turn:
                written = [
                    await self._submit(tenant, found, stream, span)
                    for tenant, found in (await self._by_tenant(messages)).items()
                ]
            await asyncio.gather(*written)
        except _PASSING:
            raise
        except Exception as error:
            # A value that PostgreSQL refuses, or a defect: whichever message it is in must not keep
            # others from being stored.
            if len(messages) > 1:
                half = len(messages) // 2
                await self._store(messages[:half], stream, span)
                await self._store(messages[half:], stream, span)
                return
            (message,) = messages
            refused = getattr(error, "reason", None) == ErrorReason.ERROR_REASON_VALUE_REFUSED
            if not refused:
                _log.exception("message failed", device_id=message.device_id)
            await self._bury(message, VALUE_REFUSED if refused else INTERNAL, stream, span)

    async def _by_tenant(self, messages: Sequence[DeviceMessage]) -> Mapping[str, _TenantMessages]:
        tenants, profiles = await self._find({message.device_id for message in messages})
        found: defaultdict[str, _TenantMessages] = defaultdict(_TenantMessages)
        for message in messages:
            tenant = tenants.get(message.device_id)
            if tenant is None:
                # Deleted since it logged in. There is no tenant that could be told.
                _log.warning("message of an unknown device", device_id=message.device_id)
            else:
                _take(found[tenant], message, profiles.get(message.device_id))
        return found

    async def _find(self, device_ids: set[str]) -> tuple[dict[str, str], dict[str, DeviceProfile]]:
        """Return tenants and profiles by device id; of a device that was just deleted only its tenant."""
        tenants = await self._tenants.find(device_ids)
        profiles = await self._profiles_of(tenants)
        if gone := tenants.keys() - profiles.keys():
            # Deleted; another tenant may have made one of the same id.
            self._tenants.forget(gone)
            moved = await self._tenants.find(gone)
            tenants |= moved
            profiles |= await self._profiles_of(moved)
        return tenants, profiles

    async def _profiles_of(self, tenants: Mapping[str, str]) -> dict[str, DeviceProfile]:
        by_tenant: defaultdict[str, list[str]] = defaultdict(list)
        for device_id, tenant in tenants.items():
            by_tenant[tenant].append(device_id)
        profiles: dict[str, DeviceProfile] = {}
        for tenant, ids in by_tenant.items():
            profiles |= await self._profiles.find(tenant, ids)
        return profiles

    async def _submit(
        self, tenant: str, found: _TenantMessages, stream: str, span: SpanContext
    ) -> asyncio.Future[WriteResult]:
        now_us = self._clock.now_us()
        assessment, samples = await self._assess(tenant, found, self._live_window.at(now_us), now_us)
        trace_id = format_trace_id(span.trace_id) if span.is_valid else ""
        letters = {place: _dead_letter(found, place, PRINCIPAL, trace_id) for place in sorted(found.refusals)}
        # Of now, not of their arrival at the broker, where they may have waited for days.
        raw = self._raw.of_messages(tenant, found.contents(), now_us)
        return self._writer.submit(
            WriteRequest(
                tenant=tenant,
                principal=PRINCIPAL,
                identity=_identity(found, assessment, stream, list(letters), trace_id, raw=raw)
                if stream
                else None,
                digest=b"",
                samples=samples,
                outcome=_counts(assessment),
                refused_outcome=b"",
                span=span,
                door=Door.MQTT,
                dead_letters=list(letters.values()),
                raw=raw,
                received_us=max(message.arrival_us for message in found.messages),
            )
        )

    async def replayed(self, message: DeviceMessage, origin: Origin, window: TimeWindow) -> WriteRequest:
        """Return the request that stores what is good of a message that is a dead letter.

        What was stored of it when it came is stored again, at the same times, where it shows once.

        Args:
            message: as it came.
            origin: who replays it, and which letter.
            window: event times that are taken.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE, nobody can tell what the device may report.
        """
        tenant = origin.principal.tenant
        found = _TenantMessages()
        profiles = await self._profiles.find(tenant, [message.device_id])
        _take(found, message, profiles.get(message.device_id))
        assessment, samples = await self._assess(tenant, found, window, message.arrival_us)
        refused = _TenantMessages([message], refusals=defaultdict(list, {0: [VALUE_REFUSED]}))
        refused.refused_samples[0] = assessment.stored_samples + assessment.refused_samples
        letters = [_dead_letter(found, 0, PRINCIPAL, "")] if found.refusals else []
        return WriteRequest(
            tenant=tenant,
            principal=origin.principal.name,
            identity=None,
            digest=b"",
            samples=samples,
            outcome=to_result(_outcome(found, 0, assessment.stored_samples), 0).SerializeToString(),
            refused_outcome=to_result(_outcome(refused, 0, 0), 0).SerializeToString(),
            span=origin.span,
            door=origin.door,
            dead_letters=letters,
            refused_dead_letters=lambda: (_dead_letter(refused, 0, PRINCIPAL, ""),),
            replay=origin.replay,
            received_us=message.arrival_us,
        )

    async def _assess(
        self, tenant: str, found: _TenantMessages, window: TimeWindow, now_us: int
    ) -> tuple[Assessment, list[KindColumns]]:
        """Decide about the readings of messages; returns what to store beside."""
        assessment = assess(
            found.readings,
            profiles=found.profiles,
            window=window,
            received_us=now_us,
            all_or_nothing=False,
            most_refusals=_UNBOUNDED,
        )
        for refusal in assessment.refusals:
            found.refuse(refusal)
        if not assessment.series:
            return assessment, []
        ids = await self._series_finder.resolve(tenant, assessment.series, assessment.metrics)
        return assessment, assessment.columns(ids)

    async def _bury(self, message: DeviceMessage, why: Why, stream: str, span: SpanContext) -> None:
        """Keep a message as a dead letter, and nothing of it as samples."""
        tenants = await self._tenants.find([message.device_id])
        if (tenant := tenants.get(message.device_id)) is not None:
            found = _TenantMessages([message])
            found.refusals[0].append(why)
            await (await self._submit(tenant, found, stream, span))


def _take(found: _TenantMessages, message: DeviceMessage, profile: DeviceProfile | None) -> None:
    place = len(found.messages)
    found.messages.append(message)
    if profile is None:
        found.refusals[place].append(device_unknown(message.device_id))
        return
    found.profiles[message.device_id] = profile
    try:
        readings = device_message.read(
            message.device_id, message.payload, profile, arrival_us=message.arrival_us
        )
    except MalformedMessageError as error:
        found.refusals[place].append((ErrorReason.ERROR_REASON_MESSAGE_MALFORMED, str(error)))
        return
    found.readings += readings
    found.of_readings += [place] * len(readings)


def _identity(
    found: _TenantMessages,
    assessment: Assessment,
    stream: str,
    dead_letters: Sequence[int],
    trace_id: str,
    *,
    raw: Sequence[RawMessage],
) -> MessageIdentity:
    of_readings = np.array(found.of_readings, np.int32)
    samples = [of_readings[np.array(samples.readings, np.intp)] for samples in assessment.samples.values()]
    stored = sum((np.bincount(places, minlength=len(found.messages)) for places in samples), _NOTHING)
    return MessageIdentity(
        stream=stream,
        sequences=[message.sequence for message in found.messages],
        samples=samples,
        dead_letters=dead_letters,
        raw=range(len(raw)),
        outcomes=_outcomes(found, np.broadcast_to(stored, len(found.messages)).tolist(), trace_id),
    )


def _outcomes(found: _TenantMessages, stored: Sequence[int], trace_id: str) -> list[bytes]:
    """Return what is remembered of each message; most messages of a fleet are alike."""
    alike = {
        samples: to_result(Outcome(stored_samples=samples), 0, trace_id).SerializeToString()
        for samples in set(stored)
    }
    return [
        to_result(_outcome(found, place, samples), 0, trace_id).SerializeToString()
        if place in found.refusals
        else alike[samples]
        for place, samples in enumerate(stored)
    ]


def _outcome(found: _TenantMessages, place: int, stored_samples: int) -> Outcome:
    """Return what became of a message."""
    if place not in found.refusals:
        return Outcome(stored_samples=stored_samples)
    whys = found.refusals[place]
    refused = found.refused_samples[place]
    if not refused:
        # Nobody could count them: all of it is.
        (reason, text), *_ = whys
        return Outcome(reason=reason, message=readable(text))
    device_id = found.messages[place].device_id
    told = [Refusal(0, device_id, "", reason, _cut(text)) for reason, text in whys[:_REFUSALS_TOLD]]
    return Outcome(refusals=told, stored_samples=stored_samples, refused_samples=refused)


def _counts(assessment: Assessment) -> bytes:
    """Return an outcome that nobody is told, for those who count samples."""
    counts = Outcome(stored_samples=assessment.stored_samples, refused_samples=assessment.refused_samples)
    return to_result(counts, sequence=0).SerializeToString()


def _why(refusal: Refusal) -> Why:
    # Metrics stand in it as the device wrote them.
    return refusal.reason, f"{refusal.metric!r}: {refusal.message}" if refusal.metric else refusal.message


def _dead_letter(found: _TenantMessages, place: int, principal: str, trace_id: str) -> DeadLetter:
    message, whys = found.messages[place], found.refusals[place]
    told = [_cut(text) for _, text in whys[:_REFUSALS_TOLD]]
    if len(whys) > _REFUSALS_TOLD:
        told.append(f"and {len(whys) - _REFUSALS_TOLD} more")
    return DeadLetter(
        device_ids=[message.device_id],
        principal=principal,
        received_us=message.arrival_us,
        reason=reason_name(whys[0][0]),
        message="; ".join(told),
        payload=message.payload,
        payload_format=PayloadFormat.MESSAGE,
        sample_count=found.refused_samples[place],
        trace_id=trace_id,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_TOLD else f"{text[: _TEXT_TOLD - 1]}…"
