"""What a caller hands to the writer, and what it gets back."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

import numpy as np
import numpy.typing as npt
from opentelemetry.trace import SpanContext

from telemetry_store.columns import KindColumns
from telemetry_store.commit_numbers import CommitNumbers


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """A request that is remembered for an hour under its caller's id."""

    request_id: str


@dataclass(frozen=True, slots=True)
class WriterIdentity:
    """A batch of a writer that numbers its batches 1, 2, … without gaps.

    `epoch` is that of the stream which sends it; None: unary, not fenced.
    """

    writer_id: str
    sequence: int
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class MessageIdentity:
    """Messages of a stream that numbers them, each remembered for an hour for itself.

    Those that were committed before are left out of the batch, and the rest is committed.

    Attributes:
        stream: a name that no other stream has, not even one made anew in its place.
        sequences: by message, its number in the stream.
        samples: by columns of the request's `samples`, int32[n]: places in `sequences`.
        dead_letters: by dead letter of the request, its place in `sequences`.
        outcomes: by message, what is remembered of it; opaque to the store.
        raw: by raw message of the request, its place in `sequences`.
        chunks: by chunk of the request, likewise.
    """

    stream: str
    sequences: Sequence[int]
    samples: Sequence[npt.NDArray[np.int32]]
    dead_letters: Sequence[int]
    outcomes: Sequence[bytes]
    raw: Sequence[int] = ()
    chunks: Sequence[int] = ()

    def name(self, place: int) -> str:
        """Return a message's name among all of its tenant, by its place in `sequences`."""
        return f"{self.stream}:{self.sequences[place]}"


class PayloadFormat(IntEnum):
    """What the payload of a dead letter is; the numbers are the contract's."""

    NONE = 0
    MESSAGE = 1
    READINGS = 2
    COLUMNS = 3


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What was refused of a message or batch, and why.

    Attributes:
        device_ids: whose samples; empty when nobody can tell.
        principal: who sent it.
        received_us: when it came, microseconds since the epoch.
        reason: name of the ErrorReason, without its prefix.
        message: the same to read.
        payload: a message as it came; of a batch a serialized twinmesh.ingest.v1.RefusedBatch.
        payload_format: which of them it is.
        sample_count: how many samples were refused, 0 when nobody can tell.
        backfill_id: the backfill that the batch named, "" when none.
        trace_id: hexadecimal, "" outside of any trace.
    """

    device_ids: Sequence[str]
    principal: str
    received_us: int
    reason: str
    message: str
    payload: bytes
    payload_format: PayloadFormat
    sample_count: int = 0
    backfill_id: str = ""
    trace_id: str = ""


class RawFormat(IntEnum):
    """What the payload of a raw message is."""

    BATCH = 1  # twinmesh.ingest.v1.Batch
    SERIES_DEFS = 2  # twinmesh.ingest.v1.SeriesDefs
    REQUEST = 3  # twinmesh.ingest.v1.IngestTelemetryRequest
    MESSAGE = 4  # a device's own
    EVENTS_REQUEST = 5  # twinmesh.ingest.v1.IngestEventsRequest


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """Which devices a raw message speaks of.

    Attributes:
        device_ids: by the contract's pattern, ascending.
        digest: 16 bytes, equal exactly for equal sets.
    """

    device_ids: tuple[str, ...]
    digest: bytes

    @classmethod
    def of(cls, device_ids: Iterable[str]) -> Self:
        """Return the set of these devices, each named any number of times."""
        ids = tuple(sorted(set(device_ids)))
        return cls(ids, hashlib.blake2b(",".join(ids).encode(), digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as it was received, for the audit trail.

    Attributes:
        format: what the payload is.
        received_us: when it was taken, microseconds since the epoch; near now, since the days that
            messages are kept by are made ahead.
        devices: of which it speaks.
        payload: its bytes, uncompressed.
    """

    format: RawFormat
    received_us: int
    devices: DeviceSet
    payload: bytes


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter whose content is tried again.

    Attributes:
        dead_letter_id: which of the tenant.
        replay_count: as it was read. When another replay has changed the letter since, nothing is
            stored.
    """

    dead_letter_id: int
    replay_count: int


@dataclass(frozen=True, slots=True)
class MessageChunk:
    """A chunk of a message, kept until all of them have come.

    Attributes:
        gateway_id: whose message.
        message_id: its name among the gateway's.
        index: which chunk, from 0.
        total: how many it has, at most 10,000.
        is_array: its chunks are JSON arrays of its elements, without spaces around them; else pieces
            of its text.
        all_or_nothing: its mode; None: as the gateway's type says once all have come.
        arrival_us: when the chunk came, microseconds since the epoch.
        payload: as it came.
    """

    gateway_id: str
    message_id: str
    index: int
    total: int
    is_array: bool
    all_or_nothing: bool | None
    arrival_us: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class MessageEnd:
    """The end of a message that came in chunks, which go with it.

    Attributes:
        gateway_id: whose message.
        message_id: its name.
        received: how many chunks there were. When there are others now, nothing is committed, and the
            answer is that of a duplicate.
    """

    gateway_id: str
    message_id: str
    received: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a device or an asset.

    Attributes:
        device_id: on which device, None when it was on the asset itself.
        asset_id: on which asset, or on which one the device is; None: on none.
        type: what happened.
        severity: number of the contract's Severity.
        time_us: when it happened, microseconds since the epoch.
        received_us: when it came, likewise.
        message: the same to read.
        attributes: a JSON object; a double has a point, an int has none, a point is an object.
    """

    device_id: str | None
    asset_id: str | None
    type: str
    severity: int
    time_us: int
    received_us: int
    message: str
    attributes: str


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One batch, to be committed whole or not at all, save for messages that are known.

    Attributes:
        tenant: whose samples, from the verified identity.
        principal: who sends them; owns its writers and request ids.
        identity: what makes a repetition harmless; None: nothing does.
        digest: 32 bytes over the canonical content as sent; of messages it is not looked at.
        samples: what to store; empty when every sample was refused, and then the
            identity is recorded all the same.
        outcome: opaque to the store; answered now and to repetitions.
        refused_outcome: recorded and answered instead when PostgreSQL refuses the
            content (SQLSTATE 22xxx). Messages are not refused together: their caller is told.
        span: the request's span; the commit's span links to it.
        door: which way it came; opaque to the store.
        dead_letters: kept in the same commit.
        events: stored in the same commit, unless PostgreSQL refuses the content.
        refused_dead_letters: makes those that are kept instead when PostgreSQL refuses the content.
        replay: the dead letter that the content comes from, which ends in the same commit; what is in
            `dead_letters` (one at most) takes its place. Instead of an identity.
        chunks: kept until their messages are whole; one that cannot be makes the batch fail as transient.
        end: a message that came in chunks and ends in the same commit.
        received_us: when it came, microseconds since the epoch; 0: its samples are not live.
        raw: kept in the same commit, also when PostgreSQL refuses the content.
        bulk: days of a series with many samples are stored sealed at once (telemetry_store.tiers.bulk).
            The months of its samples have partitions of telemetry.sealed_segment.
    """

    tenant: str
    principal: str
    identity: RequestIdentity | WriterIdentity | MessageIdentity | None
    digest: bytes
    samples: Sequence[KindColumns]
    outcome: bytes
    refused_outcome: bytes
    span: SpanContext | None = None
    door: str = ""
    dead_letters: Sequence[DeadLetter] = ()
    events: Sequence[Event] = ()
    refused_dead_letters: Callable[[], Sequence[DeadLetter]] = tuple
    replay: Replay | None = None
    chunks: Sequence[MessageChunk] = ()
    end: MessageEnd | None = None
    received_us: int = 0
    raw: Sequence[RawMessage] = ()
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a batch.

    Attributes:
        outcome: what is recorded of it.
        duplicate: it was committed before, with this outcome; of a replay, another one was first.
        commit: which one made it durable; None when that is not known, as of a duplicate, or when
            nothing was committed.
    """

    outcome: bytes
    duplicate: bool
    commit: CommitNumbers | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class OpenedCursor:
    """A writer's place: the epoch of the stream just opened, and its last sequence."""

    epoch: int
    last_sequence: int
