"""Makes messages of chunks: whole ones are stored, others expire as dead letters.

A message is whole when the commit of its last chunk is; the process of that commit assembles it at
once. What is left, because that process ended or could not, any process finds within seconds. What
the message says, its dead letter and the end of its chunks are one commit, so whoever comes second
finds nothing.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

import structlog
from opentelemetry.trace import SpanKind

from ingest_svc.conversion import to_result
from ingest_svc.device_message import DeviceMessage
from ingest_svc.limiter import Limiter, Sent
from ingest_svc.message_intake import MessageIntake, TakenMessages, message_letter, message_letters
from ingest_svc.message_path import PRINCIPAL, MessageWriter, counts
from ingest_svc.outcome import INTERNAL, VALUE_REFUSED, Outcome, Why
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import samples_by_device
from ingest_svc.window import LiveWindow
from meshkit.clock import Clock
from meshkit.errors import ResourceExhausted, Unavailable
from meshkit.tasks import background
from meshkit.telemetry import current_trace_id, tracer
from telemetry_store import chunks as stored_chunks
from telemetry_store.chunks import Chunks, ChunkStore, MessageKey
from telemetry_store.requests import DeadLetter, MessageEnd, RequestIdentity, WriteRequest, WriteResult
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
EXPIRE_S = 60.0
_LOOK_EVERY_S = 1.0
# Longer than it takes whoever commits the last chunk.
_WHOLE_FOR_S = 1.0
_FOUND_AT_ONCE = 100
_UNDER_WAY = 8
_WAITING = 10_000
_RANGES_TOLD = 50
_PASSING = (Unavailable, ResourceExhausted)


class Assembler:
    """Assembles messages, until the context ends.

    Args:
        store: holds chunks.
        profiles: finds how gateways' messages are read.
        intake: reads messages and decides about what they say.
        limiter: counts their samples, which nobody can send back any more.
        writer: commits.
        live_window: event times that a tenant takes.
        clock: moves the window.
        expire_s: so long after its first chunk a message must be whole, in seconds.
    """

    def __init__(
        self,
        *,
        store: ChunkStore,
        profiles: ProfileCache,
        intake: MessageIntake,
        limiter: Limiter,
        writer: MessageWriter,
        live_window: Callable[[str], LiveWindow],
        clock: Clock,
        expire_s: float = EXPIRE_S,
    ) -> None:
        self._store = store
        self._profiles = profiles
        self._intake = intake
        self._limiter = limiter
        self._writer = writer
        self._live_window = live_window
        self._clock = clock
        self._expire_s = expire_s
        self._waiting: OrderedDict[MessageKey, None] = OrderedDict()
        self._under_way: set[MessageKey] = set()
        self._failed: set[MessageKey] = set()  # not for a reason that passes
        self._came = asyncio.Event()
        self._free = asyncio.Semaphore(_UNDER_WAY)

    def add(self, keys: Iterable[MessageKey]) -> None:
        """Take in messages that are whole, or have expired; of too many some are found later."""
        for key in keys:
            if len(self._waiting) < _WAITING and key not in self._under_way:
                self._waiting[key] = None
        self._came.set()

    async def run(self) -> None:
        """Assemble messages until it is cancelled."""
        async with background(self._look(), name="chunks-look"):
            while True:
                await self._came.wait()
                self._came.clear()
                while self._waiting:
                    await self._free.acquire()
                    key, _ = self._waiting.popitem(last=False)
                    await self._begin(key)

    async def _look(self) -> None:
        """Find what nobody tells of: messages that are left whole, and those that expire."""
        while True:
            try:
                self.add(
                    await self._store.due(
                        whole_for_s=_WHOLE_FOR_S, expire_s=self._expire_s, most=_FOUND_AT_ONCE
                    )
                )
            except Unavailable as error:
                _log.warning("chunks of messages wait", error=str(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _begin(self, key: MessageKey) -> None:
        """Begin to commit a message; its outcome comes later, so that the next one is read meanwhile."""
        self._under_way.add(key)
        try:
            committing = await self._submit(key)
        except _PASSING as error:
            _log.warning("a message waits to be assembled", gateway_id=key[1], error=str(error))
            committing = None
        except Exception:
            _log.exception("a message cannot be assembled", gateway_id=key[1], message_id=key[2])
            committing = None
        if committing is None:
            self._end(key)
        else:
            committing.add_done_callback(partial(self._committed, key))

    def _committed(self, key: MessageKey, committing: asyncio.Future[WriteResult]) -> None:
        self._end(key)
        error = None if committing.cancelled() else committing.exception()
        if error is None:
            self._failed.discard(key)
            return
        # It stays where it is, and is found again.
        _log.warning("a message was not assembled", gateway_id=key[1], message_id=key[2], error=str(error))
        if not isinstance(error, _PASSING):
            self._failed.add(key)

    def _end(self, key: MessageKey) -> None:
        self._under_way.discard(key)
        self._free.release()

    async def _submit(self, key: MessageKey) -> asyncio.Future[WriteResult] | None:
        """Hand a message to the writer, None when somebody else was faster."""
        chunks = await self._store.read(key)
        if chunks is None:
            return None
        if not chunks.is_whole:
            return self._bury(chunks, _missing(chunks, self._expire_s))
        if key in self._failed:
            return self._bury(chunks, INTERNAL)
        with tracer.start_as_current_span(
            "ingest.assemble",
            kind=SpanKind.CONSUMER,
            attributes={"twinmesh.chunks": chunks.message.total},
        ):
            try:
                return self._writer.submit(await self._assemble(chunks))
            except _PASSING:
                raise
            except Exception:
                # A defect; the message must not come back for ever.
                _log.exception("message failed", gateway_id=key[1], message_id=key[2])
                return self._bury(chunks, INTERNAL)

    async def _assemble(self, chunks: Chunks) -> WriteRequest:
        tenant, gateway_id, message_id = chunks.key
        message = _message(chunks)
        profiles = await self._profiles.find(tenant, [gateway_id])
        now_us = self._clock.now_us()
        taken = await self._intake.take(
            tenant, [message], profiles, window=self._live_window(tenant).at(now_us), now_us=now_us
        )
        devices = samples_by_device(taken.readings)
        # Its bytes were counted chunk by chunk.
        principal = "" if chunks.principal == PRINCIPAL else chunks.principal
        self._limiter.owe(Sent(tenant, principal, devices.total(), size=0, devices=devices))
        refused = Outcome(refused_samples=taken.stored_samples + taken.refused_samples.total())
        letters = message_letters([message], taken, principal=chunks.principal, trace_id=current_trace_id())
        return WriteRequest(
            tenant=tenant,
            principal=stored_chunks.PRINCIPAL,
            identity=RequestIdentity(stored_chunks.request_id(gateway_id, message_id)),
            digest=chunks.digest,
            samples=taken.samples,
            outcome=counts(taken),
            refused_outcome=to_result(refused, sequence=0).SerializeToString(),
            door=chunks.door,
            dead_letters=list(letters.values()),
            refused_dead_letters=lambda: [_letter(chunks, VALUE_REFUSED)],
            end=_end_of(chunks),
            received_us=chunks.arrival_us,
        )

    def _bury(self, chunks: Chunks, why: Why) -> asyncio.Future[WriteResult]:
        """Keep a message as a dead letter, and nothing of it as samples."""
        return self._writer.submit(
            WriteRequest(
                tenant=chunks.key[0],
                principal=stored_chunks.PRINCIPAL,
                identity=None,
                digest=b"",
                samples=(),
                outcome=counts(TakenMessages()),
                refused_outcome=b"",
                door=chunks.door,
                dead_letters=[_letter(chunks, why)],
                end=_end_of(chunks),
            )
        )


def _message(chunks: Chunks) -> DeviceMessage:
    return DeviceMessage(
        chunks.key[1], chunks.payload, chunks.arrival_us, all_or_nothing=chunks.message.all_or_nothing
    )


def _letter(chunks: Chunks, why: Why) -> DeadLetter:
    return message_letter(_message(chunks), [why], principal=chunks.principal, trace_id=current_trace_id())


def _end_of(chunks: Chunks) -> MessageEnd:
    return MessageEnd(chunks.key[1], chunks.key[2], len(chunks.payloads))


def _missing(chunks: Chunks, expire_s: float) -> Why:
    missing = f"chunks {ranges(chunks.missing)} of {chunks.message.total}"
    return (
        ErrorReason.ERROR_REASON_CHUNKS_MISSING,
        f"{missing} of message {chunks.key[2]!r} did not come within {expire_s:g} s",
    )


def ranges(indexes: Iterable[int]) -> str:
    """Return ascending numbers for people to read, such as "3-5, 9"; of many ranges the first ones."""
    found: list[list[int]] = []
    for index in indexes:
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    told = [str(first) if first == last else f"{first}-{last}" for first, last in found[:_RANGES_TOLD]]
    if len(found) > _RANGES_TOLD:
        told.append("…")
    return ", ".join(told)
