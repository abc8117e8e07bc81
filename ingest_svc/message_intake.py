"""What becomes of messages: one way, whichever door they came through.

messages ──▶ objects ──▶ whose? ──▶ readings by the schema of each one's type ──▶ assess
        └──▶ chunks
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ingest_svc import device_message, outcome
from ingest_svc.assessment import Assessment, SeriesFinder, assess
from ingest_svc.child_cache import ChildCache
from ingest_svc.device_message import DeviceMessage, MalformedMessageError, MessageObject
from ingest_svc.outcome import BATCH_REFUSED, Outcome, Refusal, Why, reason_name
from ingest_svc.profile import NOT_OWN, DeviceProfile, GatewayRules
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.window import TimeWindow
from meshkit.errors import DomainError, ResourceExhausted
from telemetry_store.columns import KindColumns
from telemetry_store.requests import DeadLetter, MessageChunk, PayloadFormat
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_REFUSALS = 100
REFUSALS_TOLD = 5  # in one dead letter
_TEXT_TOLD = 256  # characters of each
_UNBOUNDED = 2**62
_ASKED_AT_ONCE = 10_000  # by the contract of asset_svc


class ChunkChecks(Protocol):
    """Knows which chunks can be kept."""

    async def check(self, tenant: str, chunks: Sequence[MessageChunk]) -> list[DomainError | None]:
        """Say of each chunk why it cannot be kept, None when it can."""
        ...


@dataclass(slots=True)
class TakenMessages:
    """What becomes of messages; places are theirs in the order in which they came.

    Attributes:
        samples: what to store.
        of_samples: by columns of it, int32[n]: places.
        chunks: what to keep until their messages are whole.
        of_chunks: by chunk, its place.
        devices: by place, those that the message speaks of.
        refusals: by place, why something of it is not stored.
        refused_samples: by place, how many samples are not, as far as they can be counted.
        unread: by place, how many objects, or chunks, or whole messages nobody could count the samples of.
        stored_samples: how many are stored.
        readings: what they say, as far as it can be read …
        of_readings: … and by reading, its place.
    """

    samples: Sequence[KindColumns] = ()
    of_samples: Sequence[npt.NDArray[np.int32]] = ()
    chunks: list[MessageChunk] = field(default_factory=list)
    of_chunks: list[int] = field(default_factory=list)
    devices: Sequence[Set[str]] = ()
    refusals: dict[int, list[Refusal]] = field(default_factory=dict)
    refused_samples: Counter[int] = field(default_factory=Counter)
    unread: Counter[int] = field(default_factory=Counter)
    stored_samples: int = 0
    readings: Sequence[Reading] = ()
    of_readings: Sequence[int] = ()

    @classmethod
    def none_of(cls, message: DeviceMessage, why: Why) -> Self:
        """Return what becomes of one message that is refused, whatever it says."""
        refusal = Refusal(0, message.device_id, "", *why)
        return cls(devices=[{message.device_id}], refusals={0: [refusal]}, unread=Counter([0]))

    def outcome(self) -> Outcome:
        """Return what is told of them; what could not be counted counts as one."""
        refusals = [refusal for place in sorted(self.refusals) for refusal in self.refusals[place]]
        refused = self.refused_samples.total() + self.unread.total()
        return Outcome(refusals[:MAX_REFUSALS], self.stored_samples, refused)

    def contents(self, messages: Sequence[DeviceMessage]) -> Iterator[tuple[bytes, Set[str]]]:
        """Yield each message's payload, and the devices that it speaks of."""
        for message, devices in zip(messages, self.devices, strict=True):
            yield message.payload, devices


@dataclass(slots=True)
class _Contents:
    """What messages hold, as it is found out."""

    readings: list[Reading] = field(default_factory=list)
    of_readings: list[int] = field(default_factory=list)
    profiles: dict[str, DeviceProfile] = field(default_factory=dict)
    # Of gateways: place, object, and the name of its child.
    objects: list[tuple[int, MessageObject, str | None]] = field(default_factory=list)
    chunks: list[tuple[int, MessageChunk]] = field(default_factory=list)
    refusals: defaultdict[int, list[Refusal]] = field(default_factory=lambda: defaultdict(list))
    named: set[tuple[int, str]] = field(default_factory=set)  # places and children

    def refuse(self, place: int, device_id: str, why: Why) -> None:
        self.refusals[place].append(Refusal(place, device_id, "", *why))

    def add(self, place: int, reading: Reading) -> None:
        self.readings.append(reading)
        self.of_readings.append(place)

    def drop(self, places: Set[int]) -> Counter[int]:
        """Leave out the readings of messages; returns how many samples they have, by place."""
        lost: Counter[int] = Counter()
        kept: list[int] = []
        for index, (reading, place) in enumerate(zip(self.readings, self.of_readings, strict=True)):
            if place in places:
                lost[place] += len(reading.samples)
            else:
                kept.append(index)
        self.readings = [self.readings[index] for index in kept]
        self.of_readings = [self.of_readings[index] for index in kept]
        return lost


class MessageIntake:
    """Reads messages, and decides about what they say.

    Args:
        profiles: finds what devices may report.
        children: finds the devices behind gateways.
        series_finder: finds ids of series.
        chunks: knows which can be kept.
    """

    def __init__(
        self,
        *,
        profiles: ProfileCache,
        children: ChildCache,
        series_finder: SeriesFinder,
        chunks: ChunkChecks,
    ) -> None:
        self._profiles = profiles
        self._children = children
        self._series_finder = series_finder
        self._chunks = chunks

    async def take(
        self,
        tenant: str,
        messages: Sequence[DeviceMessage],
        profiles: Mapping[str, DeviceProfile],
        *,
        window: TimeWindow,
        now_us: int,
        unpack: bool = False,
        wait_when_full: bool = False,
    ) -> TakenMessages:
        """Return what becomes of messages.

        Args:
            tenant: whose.
            messages: in their order; of equal times the later one's value counts.
            profiles: of the devices that sent them, by id, as far as they exist.
            window: event times that are taken.
            now_us: microseconds since the epoch.
            unpack: a message may be the envelope of a chunk.
            wait_when_full: there is somebody who can send a chunk again later; else it is refused.

        Raises:
            ResourceExhausted: CHUNK_STORAGE_FULL, for who waits.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        contents = _Contents()
        for place, message in enumerate(messages):
            _open(contents, place, message, profiles.get(message.device_id), unpack=unpack)
        await self._find_children(tenant, messages, profiles, contents)
        await self._check_chunks(tenant, contents, wait_when_full=wait_when_full)
        readings, of_readings = contents.readings, contents.of_readings
        modes = {
            place: profiles[message.device_id].all_or_nothing
            if message.all_or_nothing is None
            else message.all_or_nothing
            for place, message in enumerate(messages)
            if message.device_id in profiles
        }
        taken, assessment = self._assess(contents, modes, window, now_us)
        taken.readings, taken.of_readings = readings, of_readings
        devices = [{message.device_id} for message in messages]
        for place, device_id in contents.named:
            devices[place].add(device_id)
        taken.devices = devices
        taken.chunks = [chunk for _, chunk in contents.chunks]
        taken.of_chunks = [place for place, _ in contents.chunks]
        if assessment.series:
            ids = await self._series_finder.resolve(tenant, assessment.series, assessment.metrics)
            taken.samples = assessment.columns(ids)
        return taken

    async def _find_children(
        self,
        tenant: str,
        messages: Sequence[DeviceMessage],
        profiles: Mapping[str, DeviceProfile],
        contents: _Contents,
    ) -> None:
        """Make readings of the objects in messages of gateways."""
        names: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for place, _, name in contents.objects:
            if name is not None:
                names[messages[place].device_id][name] = None
        children: dict[tuple[str, str], str] = {}
        for gateway_id, of_gateway in names.items():
            for some in _parts(list(of_gateway)):
                found = await self._children.find(tenant, gateway_id, some)
                children |= {(gateway_id, name): device_id for name, device_id in found.items()}
        for ids in _parts(list(set(children.values()))):
            contents.profiles |= await self._profiles.find(tenant, ids)
        last = None
        for place, found_object, name in contents.objects:
            if place != last:
                await asyncio.sleep(0)  # A message may take milliseconds, and others have their turn.
                last = place
            gateway_id = messages[place].device_id
            device_id = gateway_id if name is None else children.get((gateway_id, name))
            profile = contents.profiles.get(device_id) if device_id is not None else None
            if device_id is None or profile is None:
                contents.refuse(place, gateway_id, outcome.child_unknown(name or "", gateway_id))
                continue
            contents.named.add((place, device_id))
            try:
                reading = device_message.reading(
                    found_object,
                    device_id,
                    profile,
                    arrival_us=messages[place].arrival_us,
                    rules=profiles[gateway_id].gateway,
                )
            except MalformedMessageError as error:
                contents.refuse(place, device_id, _malformed(error))
            else:
                contents.add(place, reading)

    async def _check_chunks(self, tenant: str, contents: _Contents, *, wait_when_full: bool) -> None:
        """Refuse chunks that cannot be kept."""
        if not contents.chunks:
            return
        errors = await self._chunks.check(tenant, [chunk for _, chunk in contents.chunks])
        kept: list[tuple[int, MessageChunk]] = []
        for (place, chunk), error in zip(contents.chunks, errors, strict=True):
            if error is None:
                kept.append((place, chunk))
            elif wait_when_full and isinstance(error, ResourceExhausted):
                raise error
            else:
                contents.refuse(place, chunk.gateway_id, (error.reason, error.message))
        contents.chunks = kept

    @staticmethod
    def _assess(
        contents: _Contents, modes: Mapping[int, bool], window: TimeWindow, now_us: int
    ) -> tuple[TakenMessages, Assessment]:
        """Decide about readings; a message in mode ALL_OR_NOTHING of which something is refused is, whole."""
        taken = TakenMessages(
            refusals={place: list(of_message) for place, of_message in contents.refusals.items()},
            unread=Counter({place: len(of_message) for place, of_message in contents.refusals.items()}),
        )
        assessment = _judge(contents, window, now_us)
        refused = {contents.of_readings[refusal.reading_index] for refusal in assessment.refusals}
        spoiled = {place for place in refused | contents.refusals.keys() if modes.get(place, False)}
        if spoiled:
            for refusal in assessment.refusals:
                if contents.of_readings[refusal.reading_index] in spoiled:
                    _tell(taken, refusal, contents)
            lost = contents.drop(spoiled)
            for place in lost:
                taken.refusals.setdefault(place, []).append(Refusal(place, "", "", *BATCH_REFUSED))
            taken.refused_samples = lost
            assessment = _judge(contents, window, now_us)
        for refusal in assessment.refusals:
            place = _tell(taken, refusal, contents)
            samples = contents.readings[refusal.reading_index].samples
            taken.refused_samples[place] += 1 if refusal.metric else len(samples)
        of_readings = np.array(contents.of_readings, np.int32)
        taken.of_samples = [
            of_readings[np.array(samples.readings, np.intp)] for samples in assessment.samples.values()
        ]
        taken.stored_samples = assessment.stored_samples
        return taken, assessment


def _judge(contents: _Contents, window: TimeWindow, now_us: int) -> Assessment:
    return assess(
        contents.readings,
        profiles=contents.profiles,
        window=window,
        received_us=now_us,
        all_or_nothing=False,
        most_refusals=_UNBOUNDED,
    )


def _open(
    contents: _Contents, place: int, message: DeviceMessage, profile: DeviceProfile | None, *, unpack: bool
) -> None:
    """Read a message of a device, or take apart one of a gateway."""
    device_id = message.device_id
    if profile is None:
        contents.refuse(place, device_id, outcome.device_unknown(device_id))
        return
    if profile is NOT_OWN:
        contents.refuse(place, device_id, outcome.device_not_own(device_id))
        return
    contents.profiles[device_id] = profile
    rules = profile.gateway
    try:
        if rules is not None and rules.takes_chunks and unpack:
            message = device_message.unpacked(message)
        if message.chunk is not None:
            _take_chunk(contents, place, message, profile)
        elif rules is None:
            for reading in device_message.read(
                device_id, message.payload, profile, arrival_us=message.arrival_us
            ):
                contents.add(place, reading)
        elif not profile.enabled:
            contents.refuse(place, device_id, outcome.device_disabled(device_id))
        else:
            _take_apart(contents, place, message, rules)
    except MalformedMessageError as error:
        contents.refuse(place, device_id, _malformed(error))


def _take_chunk(contents: _Contents, place: int, message: DeviceMessage, profile: DeviceProfile) -> None:
    chunk = message.chunk
    assert chunk is not None  # noqa: S101 - as the caller knows
    if profile.gateway is None or not profile.gateway.takes_chunks:
        contents.refuse(place, message.device_id, outcome.takes_no_chunks(profile.device_type_id))
    elif not profile.enabled:
        contents.refuse(place, message.device_id, outcome.device_disabled(message.device_id))
    else:
        kept = MessageChunk(
            gateway_id=message.device_id,
            message_id=chunk.message_id,
            index=chunk.index,
            total=chunk.total,
            is_array=chunk.is_array,
            all_or_nothing=message.all_or_nothing,
            arrival_us=message.arrival_us,
            payload=message.payload,
        )
        contents.chunks.append((place, kept))


def _take_apart(contents: _Contents, place: int, message: DeviceMessage, rules: GatewayRules) -> None:
    for found in device_message.objects(message.payload, most=device_message.MAX_GATEWAY_OBJECTS):
        try:
            name = device_message.child(found, rules)
        except MalformedMessageError as error:
            contents.refuse(place, message.device_id, _malformed(error))
        else:
            contents.objects.append((place, found, name))


def _tell(taken: TakenMessages, refusal: Refusal, contents: _Contents) -> int:
    """Note a refusal of a reading under its message; returns the message's place."""
    place = contents.of_readings[refusal.reading_index]
    taken.refusals.setdefault(place, []).append(refusal._replace(reading_index=place))
    return place


def _malformed(error: MalformedMessageError) -> Why:
    return ErrorReason.ERROR_REASON_MESSAGE_MALFORMED, str(error)


def _parts(ids: Sequence[str]) -> Sequence[Collection[str]]:
    return [ids[start : start + _ASKED_AT_ONCE] for start in range(0, len(ids), _ASKED_AT_ONCE)]


def message_letter(
    message: DeviceMessage,
    whys: Sequence[Why],
    *,
    principal: str,
    trace_id: str,
    devices: Iterable[str] = (),
    samples: int = 0,
) -> DeadLetter:
    """Return a message as it is kept when something of it cannot be stored.

    Args:
        message: as it came.
        whys: one at least; the first ones are told.
        principal: who sent it.
        trace_id: hexadecimal, "" outside of any trace.
        devices: whose samples are refused, beside those of the message's own device.
        samples: how many, 0 when nobody can tell.
    """
    told = [cut(text) for _, text in whys[:REFUSALS_TOLD]]
    if len(whys) > REFUSALS_TOLD:
        told.append(f"and {len(whys) - REFUSALS_TOLD} more")
    return DeadLetter(
        device_ids=list(dict.fromkeys((message.device_id, *devices))),
        principal=principal,
        received_us=message.arrival_us,
        reason=reason_name(whys[0][0]),
        message="; ".join(told),
        payload=message.payload,
        payload_format=PayloadFormat.MESSAGE,
        sample_count=samples,
        trace_id=trace_id,
    )


def message_letters(
    messages: Sequence[DeviceMessage], taken: TakenMessages, *, principal: str, trace_id: str
) -> dict[int, DeadLetter]:
    """Return the dead letters of messages, by their places in ascending order."""
    return {
        place: message_letter(
            messages[place],
            [why_of(refusal) for refusal in taken.refusals[place]],
            principal=principal,
            trace_id=trace_id,
            devices=(refusal.device_id for refusal in taken.refusals[place] if refusal.device_id),
            samples=taken.refused_samples[place],
        )
        for place in sorted(taken.refusals)
    }


def why_of(refusal: Refusal) -> Why:
    """Return why, naming the metric as the device wrote it."""
    return refusal.reason, f"{refusal.metric!r}: {refusal.message}" if refusal.metric else refusal.message


def cut(text: str) -> str:
    """Return a text of bounded length."""
    return text if len(text) <= _TEXT_TOLD else f"{text[: _TEXT_TOLD - 1]}…"
