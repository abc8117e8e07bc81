"""Who was sent back because of which limit: gathered here, kept in the store a moment later."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

import structlog

from ingest_svc.limiter import Limited
from meshkit.clock import Clock
from meshkit.errors import Unavailable
from meshkit.tasks import background
from telemetry_store.limit_hits import MINUTE_US, LimitHit

_log = structlog.get_logger()
_KEEP_EVERY_S = 1.0
_MOST_HITS = 10_000  # that wait; one is some hundred bytes


class HitSink(Protocol):
    """Where hits are kept."""

    async def add(self, hits: Sequence[LimitHit]) -> None:
        """Add hits to what is kept of their minutes."""
        ...


class LimitHits:
    """Gathers hits, and keeps them about every second.

    Args:
        sink: where they are kept.
        clock: dates them.
    """

    def __init__(self, *, sink: HitSink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock
        self._waiting: dict[tuple[object, ...], LimitHit] = {}
        self._left_out = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to keep them."""
        await self._stack.enter_async_context(background(self._run(), name="limit-hits"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what is left."""
        await self._stack.aclose()
        await self._keep()

    def add(self, limited: Limited, times: int = 1) -> None:
        """Take in what was sent back, and how often."""
        now_us, sent, key = self._clock.now_us(), limited.sent, limited.key
        minute_us = now_us - now_us % MINUTE_US
        # A connection is known by its writer.
        subject = key.subject if key.subject != sent.writer_id else ""
        of = (key.tenant, minute_us, key.name, subject, sent.principal, sent.writer_id)
        hit = self._waiting.get(of)
        if hit is None:
            if len(self._waiting) >= _MOST_HITS:
                self._left_out += 1
                return
            hit = self._waiting[of] = LimitHit(
                tenant=key.tenant,
                minute_us=minute_us,
                limit_name=key.name,
                subject=subject,
                principal=sent.principal,
                writer_id=sent.writer_id,
                limit=limited.limit,
                first_us=now_us,
                last_us=now_us,
                batches=0,
                samples=0,
                size=0,
                first_sequence=sent.sequence,
                last_sequence=sent.sequence,
            )
        hit.last_us = now_us
        hit.batches += times
        hit.samples += sent.samples
        hit.size += sent.size
        if sent.sequence is not None:
            hit.first_sequence = min(hit.first_sequence or sent.sequence, sent.sequence)
            hit.last_sequence = max(hit.last_sequence or sent.sequence, sent.sequence)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_EVERY_S)
            await self._keep()

    async def _keep(self) -> None:
        if self._left_out:
            _log.warning("not all that was limited can be kept", left_out=self._left_out)
            self._left_out = 0
        if not self._waiting:
            return
        hits, self._waiting = self._waiting, {}
        try:
            await self._sink.add(list(hits.values()))
        except Unavailable:
            # What came meanwhile is of the same minutes, mostly.
            _log.warning("what was limited is not kept", hits=len(hits))
