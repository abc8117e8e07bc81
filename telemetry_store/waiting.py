"""Batches that wait to be committed: bounded, in the order they came."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from meshkit.errors import DomainError, ResourceExhausted
from telemetry_store.batch import Batch
from telemetry_store.requests import WriteRequest, WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_GROUP_SAMPLES = 500_000
_GROUP_BATCHES = 4_096
_BATCH_BYTES = 512  # Of a batch without samples.
_EVENT_BYTES = 512  # Of an event without its texts.
_BUSY_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: asyncio.Future[WriteResult]
    samples: int
    size: int


class WaitingBatches:
    """Callers wait here for their answers, from `enter` until `settle`.

    A caller who cancels the answer leaves the queue at once, and his batch the memory with it.

    Args:
        max_samples: most samples of all callers together.
        max_bytes: most bytes of them. A batch that is alone is always let in.
        refuse_when_closed: makes the error for callers that come too late.
    """

    def __init__(
        self, *, max_samples: int, max_bytes: int, refuse_when_closed: Callable[[], DomainError]
    ) -> None:
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._refuse_when_closed = refuse_when_closed
        self._entries: dict[Batch, _Entry] = {}
        self._queue: OrderedDict[Batch, _Entry] = OrderedDict()
        self._deferred: list[Batch] = []
        self._samples = 0  # of all callers
        self._bytes = 0
        self._queued_samples = 0
        self._came = 0
        self._changed = asyncio.Event()
        self._closed = False

    def enter(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        """Let a request in and return its answer to come.

        Raises:
            ResourceExhausted: INGEST_BUSY.
            DomainError: closed.
        """
        if self._closed:
            raise self._refuse_when_closed()
        batch = Batch(request)
        samples = batch.size
        size = _size(request)
        if self._entries:
            self._check_limit("waiting_samples", self._max_samples, self._samples, samples)
            self._check_limit("waiting_bytes", self._max_bytes, self._bytes, size)
        entry = _Entry(asyncio.get_running_loop().create_future(), samples, size)
        entry.answer.add_done_callback(partial(self._forget_cancelled, batch))
        self._entries[batch] = entry
        self._queue[batch] = entry
        self._samples += samples
        self._bytes += size
        self._queued_samples += samples
        self._came += 1
        self._changed.set()
        return entry.answer

    def settle(self, batch: Batch, answer: WriteResult | Exception) -> None:
        """Answer a batch's caller, who may have gone; a second answer is ignored."""
        entry = self._leave(batch)
        if entry is None or entry.answer.done():
            return
        if isinstance(answer, Exception):
            entry.answer.set_exception(answer)
            # Seen by the writer, which logs what is a defect; whether the caller looks is up to it.
            entry.answer.exception()
        else:
            entry.answer.set_result(answer)

    def settle_all(self, error: Callable[[], Exception]) -> None:
        """Answer everybody who still waits."""
        for batch in list(self._entries):
            self.settle(batch, error())

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True
        self._changed.set()

    async def arrival(self) -> bool:
        """Wait until something waits; False when closed and nothing does."""
        while not self._queue and not self._deferred and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._queue or self._deferred)

    async def full_group(self) -> None:
        """Wait until as much is queued as goes into one group."""
        while self._queued_samples < _GROUP_SAMPLES and len(self._queue) < _GROUP_BATCHES:
            self._changed.clear()
            await self._changed.wait()

    def __len__(self) -> int:
        """Return how many batches wait for their answers."""
        return len(self._entries)

    @property
    def samples(self) -> int:
        """Return how many samples they have."""
        return self._samples

    @property
    def bytes(self) -> int:
        """Return how many bytes they take."""
        return self._bytes

    @property
    def came(self) -> int:
        """Return how many requests were let in so far."""
        return self._came

    @property
    def only_deferred(self) -> bool:
        """Say whether nothing new has come."""
        return not self._queue

    def drain(self) -> list[Batch]:
        """Take the next group, in arrival order, without those whose callers have gone."""
        group: list[Batch] = []
        samples = 0
        while self._queue and len(group) < _GROUP_BATCHES and samples < _GROUP_SAMPLES:
            batch, entry = self._queue.popitem(last=False)
            self._queued_samples -= entry.samples
            if entry.answer.cancelled():  # Just now; nothing has come of it yet.
                self._leave(batch)
                continue
            samples += entry.samples
            group.append(batch)
        return group

    def defer(self, batch: Batch) -> None:
        """Keep a batch for the next group, before everything that came later."""
        self._deferred.append(batch)
        self._changed.set()

    def take_deferred(self) -> list[Batch]:
        """Return what was deferred, in arrival order."""
        deferred, self._deferred = self._deferred, []
        return deferred

    def _forget_cancelled(self, batch: Batch, answer: asyncio.Future[WriteResult]) -> None:
        """Let go of a batch that nobody waits for, unless its group is under way."""
        if answer.cancelled() and (entry := self._queue.pop(batch, None)) is not None:
            self._queued_samples -= entry.samples
            self._leave(batch)

    def _leave(self, batch: Batch) -> _Entry | None:
        entry = self._entries.pop(batch, None)
        if entry is not None:
            self._samples -= entry.samples
            self._bytes -= entry.size
        return entry

    def _check_limit(self, name: str, limit: int, used: int, more: int) -> None:
        if used + more > limit:
            raise ResourceExhausted(
                f"{used} {name.removeprefix('waiting_')} wait to be committed, "
                f"and {more} more would pass the limit of {limit}; "
                "retry later with the same identity",
                reason=ErrorReason.ERROR_REASON_INGEST_BUSY,
                metadata={"limit_name": name, "limit": str(limit), "used": str(used)},
                retry_after_s=_BUSY_RETRY_S,
            )


def _size(request: WriteRequest) -> int:
    size = _BATCH_BYTES + len(request.outcome) + len(request.refused_outcome)
    size += sum(len(letter.payload) for letter in request.dead_letters)
    size += sum(len(chunk.payload) for chunk in request.chunks)
    size += sum(_EVENT_BYTES + len(event.message) + len(event.attributes) for event in request.events)
    size += sum(len(message.payload) for message in request.raw)
    return size + sum(columns.memory_bytes for columns in request.samples)
