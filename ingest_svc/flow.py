"""The flow of one stream's batches: which are taken, and which may be acknowledged.

Plain state without I/O: sequences, credits, what is in flight, and the rule "go back
to" (docs/adr/0008).

    take ──▶ in flight ──▶ answered ──▶ acknowledged
      │          │
      └──────────┴──▶ thrown back: the client sends it again
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from opentelemetry.trace import Span

from meshkit.errors import DomainError, FailedPrecondition, ResourceExhausted, Unavailable
from meshkit.shares import Share
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.requests import WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_INFLIGHT_BATCHES = 128
MAX_INFLIGHT_BYTES = 8 * 1024 * 1024
_BUSY_RETRY_S = 0.5


@dataclass(slots=True, eq=False)
class Taken:
    """A batch that was taken.

    Attributes:
        sequence: its number.
        size: bytes of the serialized batch.
        span: traces it, None when its sender does not record it.
        written: its outcome to come, None while it is being decided about.
        answer: its recorded outcome, or why there is none; None as long as neither is known,
            and the process's budget holds its content.
        commit: which one made it durable; None: not known, or not durable.
        dropped: the client sends it again, or is gone: its answer is nobody's.
    """

    sequence: int
    size: int
    span: Span | None = None
    written: asyncio.Future[WriteResult] | None = None
    answer: bytes | Exception | None = None
    commit: CommitNumbers | None = None
    dropped: bool = False

    def drop(self) -> None:
        """Let go of it, and of what still waits to be written."""
        self.dropped = True
        if self.written is not None:
            self.written.cancel()
        self.end_span()

    def end_span(self) -> None:
        """End its trace, when there is one."""
        if self.span is not None:
            self.span.end()
            self.span = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Batches from `first_refused` on were not taken; why, and when to come again."""

    first_refused: int
    error: DomainError


class BatchFlow:
    """Decides about the batches of one stream, in the order they come.

    Args:
        last_committed: the writer's cursor when the stream was opened.
        budget: the tenant's, of bytes in flight.
        max_batches: most batches of this stream in flight.
        max_bytes: most bytes of them.

    Attributes:
        last_committed: the writer's cursor when the stream was opened.
        accepted_through: highest sequence accepted, 0 for none; never goes back.
        durable_through: highest sequence acknowledged, 0 for none; never goes back.
        refusal: what the client has to be told, None when nothing.
        failure: why the stream must end, None as long as it need not.
    """

    __slots__ = (
        "_answered",
        "_batches",
        "_budget",
        "_bytes",
        "_go_back_to",
        "_inflight",
        "_max_batches",
        "_max_bytes",
        "_next",
        "accepted_through",
        "durable_through",
        "failure",
        "last_committed",
        "refusal",
    )

    def __init__(
        self,
        *,
        last_committed: int,
        budget: Share,
        max_batches: int = MAX_INFLIGHT_BATCHES,
        max_bytes: int = MAX_INFLIGHT_BYTES,
    ) -> None:
        self.last_committed = last_committed
        self._budget = budget
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._next = last_committed + 1
        self._go_back_to: int | None = None
        self._batches = 0
        self._bytes = 0
        self._inflight: deque[Taken] = deque()
        self._answered: deque[Taken] = deque()
        self.accepted_through = 0
        self.durable_through = 0
        self.refusal: Refusal | None = None
        self.failure: Exception | None = None

    @property
    def busy(self) -> bool:
        """Say whether a batch was taken that no Ack covers yet."""
        return bool(self._inflight or self._answered)

    @property
    def acknowledgeable(self) -> bool:
        """Say whether the next Ack has news of durable batches."""
        return bool(self._answered)

    def take(self, sequence: int, size: int) -> Taken | None:
        """Take a batch, or return None when the client has to send it again.

        The next batch, and any earlier one, is taken: what an earlier one is, the
        writer's cursor decides. A later one is dropped when the client has been told to
        go back and has not read it yet.

        Args:
            sequence: the batch's number.
            size: bytes of the serialized batch.

        Raises:
            FailedPrecondition: SEQUENCE_GAP, a batch was left out.
        """
        if self._go_back_to is None:
            if sequence > self._next:
                raise _gap(sequence, self._next)
        elif sequence > self._go_back_to:
            return None
        refused = self._reserve(size)
        if refused is not None:
            self._send_back(sequence, refused)
            return None
        if self._go_back_to is not None and sequence == self._go_back_to:
            self._go_back_to = None
            # What is committed the client need not send again, so the next may be beyond it.
            self._next = max(sequence, self.last_committed, self.durable_through) + 1
        elif sequence == self._next:
            self._next += 1
        taken = Taken(sequence, size)
        self._inflight.append(taken)
        return taken

    def accept(self, taken: Taken, written: asyncio.Future[WriteResult]) -> None:
        """Note that the writer has let a batch in."""
        taken.written = written
        self.accepted_through = max(self.accepted_through, taken.sequence)

    def answer(self, taken: Taken, answer: bytes | Exception) -> None:
        """Note what became of a batch; answers may come in any order."""
        if taken.dropped:
            return
        # Its content is gone; the client that does not read its Ack is nobody else's trouble.
        self._budget.give_back(taken.size)
        taken.answer = answer
        while self._inflight and self.failure is None:
            first = self._inflight[0]
            if first.answer is None:
                return
            if isinstance(first.answer, bytes):
                self._answered.append(self._inflight.popleft())
            elif isinstance(first.answer, DomainError) and is_transient(first.answer):
                self.throw_back(first, first.answer)
            else:
                self.failure = first.answer

    def throw_back(self, taken: Taken, why: DomainError) -> None:
        """Have the client send a batch again, and all that it sent behind it.

        What was sent behind it may be committed all the same, when this one is after
        all; sent again it is then a duplicate.
        """
        if not taken.dropped:
            self._send_back(taken.sequence, why)

    def acknowledge(self, max_bytes: int) -> list[Taken]:
        """Return batches with outcomes, in order, that one Ack is to cover, and give back their credits.

        The client may use the credits as soon as it has read the Ack, so they come back
        before that. Of a client that reads nothing one Ack is under way at most, and
        what comes behind it keeps its credits.

        Args:
            max_bytes: most bytes of their outcomes; one batch is always returned.
        """
        acknowledged: list[Taken] = []
        size = 0
        while self._answered:
            outcome = self._answered[0].answer
            assert isinstance(outcome, bytes)  # noqa: S101 - only such are moved here
            size += len(outcome)
            if acknowledged and size > max_bytes:
                break
            taken = self._answered.popleft()
            acknowledged.append(taken)
            self._release(taken)
            taken.end_span()
            self.durable_through = max(self.durable_through, taken.sequence)
        return acknowledged

    def abandon(self) -> None:
        """Let go of what can no longer be acknowledged: all that has no outcome yet, or stands behind it."""
        self._let_go(self._inflight)
        self.refusal = None

    def close(self) -> None:
        """Let go of everything."""
        self._let_go(self._inflight)
        self._let_go(self._answered)

    def _let_go(self, batches: deque[Taken]) -> None:
        for taken in batches:
            self._release(taken)
            taken.drop()
        batches.clear()

    def _send_back(self, sequence: int, why: DomainError) -> None:
        self._go_back_to = sequence
        # One is enough: a client that was not told of the last one has to go back to this one.
        self.refusal = Refusal(sequence, why)
        kept = deque[Taken]()
        for taken in self._inflight:
            if taken.sequence < sequence:
                kept.append(taken)
            else:
                self._release(taken)
                taken.drop()
        self._inflight = kept

    def _release(self, taken: Taken) -> None:
        self._batches -= 1
        self._bytes -= taken.size
        if taken.answer is None:
            self._budget.give_back(taken.size)

    def _reserve(self, size: int) -> DomainError | None:
        """Take the credits of a batch, or return which limit does not allow it."""
        if self._batches >= self._max_batches:
            return _limit_reached("inflight_batches", self._max_batches, self._batches)
        if self._bytes + size > self._max_bytes:
            return _limit_reached("inflight_bytes", self._max_bytes, self._bytes)
        if not self._budget.take(size):
            return _limit_reached("process_inflight_bytes", self._budget.most, self._budget.used)
        self._batches += 1
        self._bytes += size
        return None


def is_transient(error: DomainError) -> bool:
    """Say whether the same batch may be taken when it is sent again."""
    return (
        isinstance(error, Unavailable | ResourceExhausted)
        or error.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS
    )


def _gap(sequence: int, expected: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"sequence {expected} is missing before {sequence}; send it first",
        reason=ErrorReason.ERROR_REASON_SEQUENCE_GAP,
        metadata={"expected": str(expected)},
    )


def _limit_reached(name: str, limit: int, used: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{used} {name.replace('_', ' ')} are in use of {limit}; send the batch again later",
        reason=ErrorReason.ERROR_REASON_INGEST_BUSY,
        metadata={"limit_name": name, "limit": str(limit), "used": str(used)},
        retry_after_s=_BUSY_RETRY_S,
    )
