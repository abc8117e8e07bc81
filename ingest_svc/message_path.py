"""A device message's path: from its payload to the writer, or into a dead letter.

messages ──▶ whose devices? ──▶ readings by the type's schema ──▶ assess ──▶ Writer, with dead letters
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from opentelemetry.trace import SpanContext, SpanKind

from ingest_svc import device_message
from ingest_svc.assessment import Assessment, assess
from ingest_svc.conversion import to_result
from ingest_svc.device_message import MalformedMessageError
from ingest_svc.intake import Door, SeriesFinder
from ingest_svc.outcome import VALUE_REFUSED, Outcome, Refusal, Why, device_unknown
from ingest_svc.profile import DeviceProfile
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.window import LiveWindow
from meshkit.clock import Clock
from meshkit.errors import ResourceExhausted, Unavailable
from meshkit.telemetry import current_trace_id, tracer
from telemetry_store.requests import DeadLetter, MessageIdentity, WriteRequest, WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

PRINCIPAL = "mqtt"
_log = structlog.get_logger()
_REFUSALS_TOLD = 5  # in one dead letter
_TEXT_TOLD = 256  # characters of each
_UNBOUNDED = 2**62
_INTERNAL: Why = (
    ErrorReason.ERROR_REASON_INTERNAL,
    "something failed inside; the trace id finds it",
)
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


class MessagePath:
    """Stores messages of devices.

    Args:
        tenants: finds whose devices are.
        profiles: finds what they may report, and how their messages are read.
        series_finder: finds ids of series.
        writer: commits.
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
        live_window: LiveWindow,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._profiles = profiles
        self._series_finder = series_finder
        self._writer = writer
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
            await self._bury(message, VALUE_REFUSED if refused else _INTERNAL, stream, span)

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
        assessment = assess(
            found.readings,
            profiles=found.profiles,
            window=self._live_window.at(now_us),
            received_us=now_us,
            all_or_nothing=False,
            most_refusals=_UNBOUNDED,
        )
        for refusal in assessment.refusals:
            found.refusals[found.of_readings[refusal.reading_index]].append(_why(refusal))
        samples = (
            assessment.columns(
                await self._series_finder.resolve(tenant, assessment.series, assessment.metrics)
            )
            if assessment.series
            else []
        )
        letters = {
            place: _dead_letter(found.messages[place], whys) for place, whys in sorted(found.refusals.items())
        }
        return self._writer.submit(
            WriteRequest(
                tenant=tenant,
                principal=PRINCIPAL,
                identity=_identity(found, assessment, stream, list(letters)) if stream else None,
                digest=b"",
                samples=samples,
                outcome=_counts(assessment),
                refused_outcome=b"",
                span=span,
                door=Door.MQTT,
                dead_letters=list(letters.values()),
                received_us=max(message.arrival_us for message in found.messages),
            )
        )

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
    found: _TenantMessages, assessment: Assessment, stream: str, dead_letters: Sequence[int]
) -> MessageIdentity:
    of_readings = np.array(found.of_readings, np.int32)
    return MessageIdentity(
        stream=stream,
        sequences=[message.sequence for message in found.messages],
        samples=[of_readings[np.array(samples.readings, np.intp)] for samples in assessment.samples.values()],
        dead_letters=dead_letters,
    )


def _counts(assessment: Assessment) -> bytes:
    """Return an outcome that nobody is told, for those who count samples."""
    counts = Outcome(stored_samples=assessment.stored_samples, refused_samples=assessment.refused_samples)
    return to_result(counts, sequence=0).SerializeToString()


def _why(refusal: Refusal) -> Why:
    # Metrics stand in it as the device wrote them.
    return refusal.reason, f"{refusal.metric!r}: {refusal.message}" if refusal.metric else refusal.message


def _dead_letter(message: DeviceMessage, whys: Sequence[Why]) -> DeadLetter:
    told = [_cut(text) for _, text in whys[:_REFUSALS_TOLD]]
    if len(whys) > _REFUSALS_TOLD:
        told.append(f"and {len(whys) - _REFUSALS_TOLD} more")
    return DeadLetter(
        device_id=message.device_id,
        principal=PRINCIPAL,
        received_us=message.arrival_us,
        reason=reason_name(whys[0][0]),
        message="; ".join(told),
        payload=message.payload,
        trace_id=current_trace_id(),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_TOLD else f"{text[: _TEXT_TOLD - 1]}…"


def reason_name(reason: ErrorReason.ValueType) -> str:
    """Return the name of a reason, without its prefix."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
