"""What a caller hands to the writer, and what it gets back."""

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.trace import SpanContext

from telemetry_store.columns import KindColumns


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
class WriteRequest:
    """One batch, to be committed whole or not at all.

    Attributes:
        tenant: whose samples, from the verified identity.
        principal: who sends them; owns its writers and request ids.
        identity: what makes a repetition harmless; None: nothing does.
        digest: 32 bytes over the canonical content as sent.
        samples: what to store; empty when every sample was refused, and then the
            identity is recorded all the same.
        outcome: opaque to the store; answered now and to repetitions.
        refused_outcome: recorded and answered instead when PostgreSQL refuses the
            content (SQLSTATE 22xxx).
        span: the request's span; the commit's span links to it.
        door: which way it came; opaque to the store.
    """

    tenant: str
    principal: str
    identity: RequestIdentity | WriterIdentity | None
    digest: bytes
    samples: Sequence[KindColumns]
    outcome: bytes
    refused_outcome: bytes
    span: SpanContext | None = None
    door: str = ""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a batch; `duplicate`: it was committed before, with this outcome."""

    outcome: bytes
    duplicate: bool


@dataclass(frozen=True, slots=True)
class OpenedCursor:
    """A writer's place: the epoch of the stream just opened, and its last sequence."""

    epoch: int
    last_sequence: int
