"""A device message's path by MQTT: from its payload to the writer, or into a dead letter.

messages ──▶ whose devices? ──▶ MessageIntake ──▶ Writer, with dead letters
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog
from opentelemetry.trace import SpanContext, SpanKind, format_trace_id

from ingest_svc.conversion import to_result
from ingest_svc.dead_letters import readable
from ingest_svc.device_message import DeviceMessage
from ingest_svc.ingest_policies import TenantLimits
from ingest_svc.intake import Door, Origin
from ingest_svc.limiter import Charge, Limiter, Sent
from ingest_svc.message_intake import (
    REFUSALS_TOLD,
    MessageIntake,
    TakenMessages,
    cut,
    message_letters,
    why_of,
)
from ingest_svc.outcome import INTERNAL, VALUE_REFUSED, Outcome, Refusal, Why
from ingest_svc.profile import DeviceProfile, as_seen_in
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.raw_trail import RawTrail
from ingest_svc.reading import Reading, samples_by_device
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import ResourceExhausted, Unavailable
from meshkit.telemetry import tracer
from telemetry_store.ingest_policies import SubjectKind
from telemetry_store.requests import MessageIdentity, WriteRequest, WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

PRINCIPAL = "mqtt"
_log = structlog.get_logger()
_NOTHING = np.zeros(1, np.int64)
_PASSING = (Unavailable, ResourceExhausted)
# The broker dates messages, the database devices.
_CLOCKS_DIFFER_US = MICROS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Postponed:
    """Messages that a limit keeps from being stored now.

    Attributes:
        messages: which.
        retry_after_s: when to try them again, in seconds.
    """

    messages: Sequence[DeviceMessage]
    retry_after_s: float


class MessageWriter(Protocol):
    """Where messages become durable."""

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        """Let a request in, to be committed, as TelemetryWriter does."""
        ...


@dataclass(slots=True)
class _TenantMessages:
    """One tenant's messages, and the profiles of their devices."""

    messages: list[DeviceMessage] = field(default_factory=list)
    profiles: dict[str, DeviceProfile] = field(default_factory=dict)

    def without(self, left_out: set[str]) -> "_TenantMessages":
        """Return it without the messages that some devices have sent."""
        kept = [message for message in self.messages if message.device_id not in left_out]
        return _TenantMessages(kept, self.profiles)


@dataclass(slots=True, eq=False)
class _Admission:
    """What of a tenant's messages is let in, what for, and what is not."""

    tenant: str
    found: _TenantMessages
    taken: TakenMessages = field(default_factory=TakenMessages)
    charges: list[Charge] = field(default_factory=list)
    postponed: list[Postponed] = field(default_factory=list)

    def submitted(self, written: asyncio.Future[WriteResult]) -> asyncio.Future[WriteResult]:
        """Have the charges settled by what becomes of the messages."""
        for charge in self.charges:
            written.add_done_callback(charge.settle)
        self.charges = []
        return written

    def undo(self) -> None:
        """Give back what was taken."""
        for charge in self.charges:
            charge.undo()
        self.charges = []


class MessagePath:
    """Stores messages of devices.

    Args:
        tenants: finds whose devices are.
        profiles: finds what they may report, and how their messages are read.
        intake: reads messages and decides about what they say.
        limiter: lets messages in as far as limits allow.
        writer: commits.
        raw: keeps messages as they came.
        live_window: event times that a tenant takes.
        clock: moves the window.
    """

    def __init__(
        self,
        *,
        tenants: TenantCache,
        profiles: ProfileCache,
        intake: MessageIntake,
        limiter: Limiter,
        writer: MessageWriter,
        raw: RawTrail,
        live_window: Callable[[str], LiveWindow],
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._profiles = profiles
        self._intake = intake
        self._limiter = limiter
        self._writer = writer
        self._raw = raw
        self._live_window = live_window
        self._clock = clock
        self._turn = asyncio.Lock()

    async def store(self, messages: Sequence[DeviceMessage], *, stream: str) -> Sequence[Postponed]:
        """Store messages; returns once each is durable: its samples, and why some were refused.

        Those that a limit is against are left for later, and returned.

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
            return await self._store(messages, stream, span.get_span_context())

    async def _store(
        self, messages: Sequence[DeviceMessage], stream: str, span: SpanContext
    ) -> list[Postponed]:
        try:
            # In their order: of equal times the later message's value counts.
            async with self._turn:
                admissions = [
                    _Admission(tenant, found) for tenant, found in (await self._by_tenant(messages)).items()
                ]
                written = await self._submit(admissions, stream, span)
            await asyncio.gather(*written)
            return [postponed for each in admissions for postponed in each.postponed]
        except _PASSING:
            raise
        except Exception as error:
            # A value that PostgreSQL refuses, or a defect: whichever message it is in must not keep
            # others from being stored.
            if len(messages) > 1:
                half = len(messages) // 2
                first = await self._store(messages[:half], stream, span)
                return first + await self._store(messages[half:], stream, span)
            (message,) = messages
            refused = getattr(error, "reason", None) == ErrorReason.ERROR_REASON_VALUE_REFUSED
            if not refused:
                _log.exception("message failed", device_id=message.device_id)
            await self._bury(message, VALUE_REFUSED if refused else INTERNAL, stream, span)
            return []

    async def _by_tenant(self, messages: Sequence[DeviceMessage]) -> Mapping[str, _TenantMessages]:
        tenants, profiles = await self._find({message.device_id for message in messages})
        found: defaultdict[str, _TenantMessages] = defaultdict(_TenantMessages)
        for message in messages:
            tenant, profile = tenants.get(message.device_id), profiles.get(message.device_id)
            if tenant is None or (
                profile is not None and message.arrival_us < profile.create_us - _CLOCKS_DIFFER_US
            ):
                # Deleted since it logged in; one that has its id since may be another tenant's. There is no
                # tenant that could be told.
                _log.warning("message of an unknown device", device_id=message.device_id)
                continue
            of_tenant = found[tenant]
            of_tenant.messages.append(message)
            if profile is not None:
                of_tenant.profiles[message.device_id] = profile
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
        self, admissions: Sequence[_Admission], stream: str, span: SpanContext
    ) -> list[asyncio.Future[WriteResult]]:
        try:
            for each in admissions:
                each.taken = await self._take(each.tenant, each.found)
            # Limits of several tenants are asked for together: each may take a round of the limiter.
            async with asyncio.TaskGroup() as tasks:
                for each in admissions:
                    if (limits := self._limiter.limits_of(each.tenant)) is not None:
                        tasks.create_task(self._admit(each, limits))
            return [
                each.submitted(
                    self._write(each.tenant, each.found.messages, each.taken, stream=stream, span=span)
                )
                for each in admissions
                if each.found.messages
            ]
        except BaseException as error:
            for each in admissions:
                each.undo()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def _take(self, tenant: str, found: _TenantMessages) -> TakenMessages:
        now_us = self._clock.now_us()
        return await self._intake.take(
            tenant,
            found.messages,
            found.profiles,
            window=self._live_window(tenant).at(now_us),
            now_us=now_us,
            unpack=True,
        )

    async def _admit(self, admission: _Admission, limits: TenantLimits) -> None:
        """Let a tenant's messages in as far as its limits allow: each device's, then the rest together."""
        if limits.has_devices:
            of_devices = limits.only(SubjectKind.DEVICE)
            async with asyncio.TaskGroup() as tasks:
                for messages, readings in _by_sender(admission.found.messages, admission.taken):
                    tasks.create_task(self._admit_part(admission, messages, readings, of_devices))
        if admission.postponed:
            senders = {each.messages[0].device_id for each in admission.postponed}
            admission.found = admission.found.without(senders)
            admission.taken = await self._take(admission.tenant, admission.found)
        kept, said = admission.found.messages, admission.taken.readings
        if (
            kept
            and limits.tenant is not None
            and not await self._admit_part(admission, kept, said, limits.only(SubjectKind.TENANT))
        ):
            admission.undo()
            admission.found = _TenantMessages()

    async def _admit_part(
        self,
        admission: _Admission,
        messages: Sequence[DeviceMessage],
        readings: Sequence[Reading],
        limits: TenantLimits,
    ) -> bool:
        devices = samples_by_device(readings)
        sent = Sent(
            tenant=admission.tenant,
            principal="",
            samples=devices.total(),
            size=sum(len(message.payload) for message in messages),
            devices=devices,
        )
        try:
            admission.charges.append(await self._limiter.admit(limits, sent))
        except ResourceExhausted as error:
            admission.postponed.append(Postponed(messages, error.retry_after_s or 0.0))
            return False
        return True

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
        device_ids = [message.device_id]
        found = await self._profiles.find(tenant, device_ids)
        profiles = as_seen_in(origin.scope, device_ids, found, in_messages=True)
        taken = await self._intake.take(
            tenant, [message], profiles, window=window, now_us=message.arrival_us, unpack=True
        )
        refused = TakenMessages.none_of(message, VALUE_REFUSED)
        refused.refused_samples[0] = taken.stored_samples + taken.refused_samples[0]
        letters = message_letters([message], taken, principal=PRINCIPAL, trace_id="")
        whole = message_letters([message], refused, principal=PRINCIPAL, trace_id="")
        return WriteRequest(
            tenant=tenant,
            principal=origin.principal.name,
            identity=None,
            digest=b"",
            samples=taken.samples,
            outcome=to_result(_outcome(message, taken, 0, taken.stored_samples), 0).SerializeToString(),
            refused_outcome=to_result(_outcome(message, refused, 0, 0), 0).SerializeToString(),
            span=origin.span,
            door=origin.door,
            dead_letters=list(letters.values()),
            refused_dead_letters=lambda: list(whole.values()),
            replay=origin.replay,
            chunks=taken.chunks,
            received_us=message.arrival_us,
        )

    async def _bury(self, message: DeviceMessage, why: Why, stream: str, span: SpanContext) -> None:
        """Keep a message as a dead letter, and nothing of it as samples."""
        tenants = await self._tenants.find([message.device_id])
        if (tenant := tenants.get(message.device_id)) is not None:
            taken = TakenMessages.none_of(message, why)
            await self._write(tenant, [message], taken, stream=stream, span=span)

    def _write(
        self,
        tenant: str,
        messages: Sequence[DeviceMessage],
        taken: TakenMessages,
        *,
        stream: str,
        span: SpanContext,
    ) -> asyncio.Future[WriteResult]:
        trace_id = format_trace_id(span.trace_id) if span.is_valid else ""
        letters = message_letters(messages, taken, principal=PRINCIPAL, trace_id=trace_id)
        # Of now, not of their arrival at the broker, where they may have waited for days.
        raw = self._raw.of_messages(tenant, taken.contents(messages), self._clock.now_us())
        identity = MessageIdentity(
            stream=stream,
            sequences=[message.sequence for message in messages],
            samples=taken.of_samples,
            dead_letters=list(letters),
            raw=range(len(raw)),
            outcomes=_outcomes(messages, taken, trace_id),
            chunks=taken.of_chunks,
        )
        return self._writer.submit(
            WriteRequest(
                tenant=tenant,
                principal=PRINCIPAL,
                identity=identity if stream else None,
                digest=b"",
                samples=taken.samples,
                outcome=counts(taken),
                refused_outcome=b"",
                span=span,
                door=Door.MQTT,
                dead_letters=list(letters.values()),
                chunks=taken.chunks,
                raw=raw,
                received_us=max(message.arrival_us for message in messages),
            )
        )


def _by_sender(
    messages: Sequence[DeviceMessage], taken: TakenMessages
) -> list[tuple[list[DeviceMessage], list[Reading]]]:
    """Return the messages that each device has sent, with what they say."""
    parts: defaultdict[str, tuple[list[DeviceMessage], list[Reading]]] = defaultdict(lambda: ([], []))
    for message in messages:
        parts[message.device_id][0].append(message)
    for reading, place in zip(taken.readings, taken.of_readings, strict=True):
        parts[messages[place].device_id][1].append(reading)
    return list(parts.values())


def _outcomes(messages: Sequence[DeviceMessage], taken: TakenMessages, trace_id: str) -> list[bytes]:
    """Return what is remembered of each message; most messages of a fleet are alike."""
    stored = sum((np.bincount(places, minlength=len(messages)) for places in taken.of_samples), _NOTHING)
    stored_samples = np.broadcast_to(stored, len(messages)).tolist()
    alike = {
        samples: to_result(Outcome(stored_samples=samples), 0, trace_id).SerializeToString()
        for samples in set(stored_samples)
    }
    return [
        to_result(_outcome(messages[place], taken, place, samples), 0, trace_id).SerializeToString()
        if place in taken.refusals
        else alike[samples]
        for place, samples in enumerate(stored_samples)
    ]


def _outcome(message: DeviceMessage, taken: TakenMessages, place: int, stored_samples: int) -> Outcome:
    """Return what became of a message."""
    if place not in taken.refusals:
        return Outcome(stored_samples=stored_samples)
    refusals = taken.refusals[place]
    refused = taken.refused_samples[place]
    if not refused and not stored_samples:
        # Nobody could count them: all of it is.
        reason, text = why_of(refusals[0])
        return Outcome(reason=reason, message=readable(text))
    told = [
        Refusal(0, refusal.device_id or message.device_id, "", reason, cut(text))
        for refusal in refusals[:REFUSALS_TOLD]
        for reason, text in [why_of(refusal)]
    ]
    return Outcome(told, stored_samples, refused + taken.unread[place])


def counts(taken: TakenMessages) -> bytes:
    """Return an outcome that nobody is told, for those who count samples."""
    told = Outcome(stored_samples=taken.stored_samples, refused_samples=taken.refused_samples.total())
    return to_result(told, sequence=0).SerializeToString()
