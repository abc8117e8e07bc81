"""The account of who did what: what is kept of each call, for how long, and who reads it."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from meshkit.audit import AuditEvent
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.identity import SYSTEM_TENANT

_log = structlog.get_logger()
_DAY_US = 24 * 60 * 60 * MICROS_PER_SECOND
_EXPORTED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event that is kept, and who recorded it."""

    event: AuditEvent
    recorder: str

    @property
    def position(self) -> "Position":
        """Return where it stands among its tenant's."""
        return self.event.time_us, self.event.id


# By time in microseconds since the epoch, then by id.
Position = tuple[int, str]


@dataclass(frozen=True, slots=True)
class AuditQuestion:
    """Which of a tenant's events; times in microseconds since the epoch, what is empty or None is any.

    `end_us` is the first moment after the range.
    """

    tenant: str
    start_us: int | None = None
    end_us: int | None = None
    principal: str = ""
    rpc: str = ""
    codes: tuple[int, ...] = ()
    target: str = ""


class AuditEventStore(Protocol):
    """Where events are kept."""

    async def add(self, events: Mapping[str, Sequence[StoredEvent]]) -> None:
        """Keep events by their tenants, all or none; those that are kept already stay as they are."""
        ...

    async def newest(
        self, question: AuditQuestion, *, before: Position | None, limit: int
    ) -> Sequence[StoredEvent]:
        """Return events, the newest first, those before a position."""
        ...

    async def oldest(
        self, question: AuditQuestion, *, after: Position | None, limit: int
    ) -> Sequence[StoredEvent]:
        """Return events, the oldest first, those after a position."""
        ...

    async def keep_days(self, days: int) -> tuple[int, int]:
        """Make the days that come and drop those that are too old; returns how many of each."""
        ...


class AuditEvents:
    """Keeps events and tells them.

    Args:
        store: where they are kept.
        kept_days: for how long.
        clock: bounds what other clocks say.
    """

    def __init__(self, *, store: AuditEventStore, kept_days: int, clock: Clock) -> None:
        self._store = store
        self._kept_days = kept_days
        self._clock = clock

    async def record(self, events: Sequence[AuditEvent], *, recorder: str) -> None:
        """Keep events for good; those that are kept already stay as they are.

        Args:
            events: in any order.
            recorder: who gives account: a service's name, or "gateway".
        """
        now_us = self._clock.now_us()
        by_tenant: dict[str, list[StoredEvent]] = defaultdict(list)
        for event in events:
            # There are days for these only.
            time_us = min(max(event.time_us, now_us - _DAY_US), now_us + _DAY_US)
            # What nobody who is known did, and what services do, is the installation's own business.
            tenant = event.tenant or SYSTEM_TENANT
            by_tenant[tenant].append(StoredEvent(replace(event, tenant=tenant, time_us=time_us), recorder))
        await self._store.add(by_tenant)

    async def page(
        self, question: AuditQuestion, *, before: Position | None, limit: int
    ) -> tuple[Sequence[StoredEvent], bool]:
        """Return events, the newest first, those before a position, and whether there are more."""
        found = await self._store.newest(question, before=before, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def all(self, question: AuditQuestion) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """Yield events, the oldest first, some at a time: those of now, however long it takes."""
        if question.end_us is None:
            question = replace(question, end_us=self._clock.now_us())
        after: Position | None = None
        while True:
            found = await self._store.oldest(question, after=after, limit=_EXPORTED_AT_ONCE)
            yield found
            if len(found) < _EXPORTED_AT_ONCE:
                return
            after = found[-1].position

    async def keep_days(self) -> None:
        """Make the days that come, and drop those that are too old."""
        made, dropped = await self._store.keep_days(self._kept_days)
        if made or dropped:
            _log.info("days of the audit kept", made=made, dropped=dropped)
