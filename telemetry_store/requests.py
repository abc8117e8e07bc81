"""What a caller hands to the writer, and what it gets back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """

    stream: str
    sequences: Sequence[int]
    samples: Sequence[npt.NDArray[np.int32]]
    dead_letters: Sequence[int]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that cannot be processed, or not all of it.

    Attributes:
        device_id: whose, None when nobody can tell.
        principal: who sent it.
        received_us: when it came, microseconds since the epoch.
        reason: name of the ErrorReason, without its prefix.
        message: the same to read.
        payload: as it came.
        trace_id: hexadecimal, "" outside of any trace.
    """

    device_id: str | None
    principal: str
    received_us: int
    reason: str
    message: str
    payload: bytes
    trace_id: str = ""


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
        received_us: when it came, microseconds since the epoch; 0: its samples are not live.
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
    received_us: int = 0


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a batch.

    Attributes:
        outcome: what is recorded of it.
        duplicate: it was committed before, with this outcome.
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
