"""Connections that are open for a tenant, in all processes together: what the limit is against is refused.

A connection is a call that lasts (a stream, a watch, an export) or a device at MQTT. Each process holds
places for those that it has, and says so every second to ingest_svc, which counts (ConnectionService). While
nobody can tell, everybody is let in: a mesh without ingest_svc goes on being read.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from meshkit.errors import QuotaViolation, ResourceExhausted
from meshkit.tasks import background
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
LIMIT_NAME = "tenant_connections"
_EVERY_S = 1.0
_REST_S = 0.01  # In which those who come together are asked for together.
_ANSWER_S = 1.0
_RETRY_S = 1.0
_MOST_REFUSED = 1_000


class Wanted(NamedTuple):
    """How many connections of a tenant a process has or wants."""

    tenant: str
    connections: int


class Refused(NamedTuple):
    """How many connections of a principal were refused."""

    tenant: str
    principal: str
    connections: int


class Held(NamedTuple):
    """How many it may have, how many all processes have with these, and the limit."""

    granted: int
    used: int
    limit: int


# Says what is wanted and was refused; returns what may be had, in the order asked.
Hold = Callable[[Sequence[Wanted], Sequence[Refused]], Awaitable[Sequence[Held]]]


_NOTHING = Held(0, 0, 0)


@dataclass(slots=True)
class _Places:
    """Of one tenant: what is open, what may be, and who waits for a place."""

    open: int = 0
    held: Held = _NOTHING
    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)


class Connections:
    """The connections of one process, or those that several processes count as one.

    Args:
        hold: where all processes count together.
    """

    def __init__(self, *, hold: Hold) -> None:
        self._hold = hold
        self._tenants: dict[str, _Places] = {}
        self._refused: Counter[tuple[str, str]] = Counter()
        self._is_away = False
        self._is_known = False
        self._wake = asyncio.Event()
        self._stack = AsyncExitStack()

    def __len__(self) -> int:
        """Return how many are open."""
        return sum(places.open for places in list(self._tenants.values()))

    async def __aenter__(self) -> Self:
        """Begin to hold places."""
        await self._stack.enter_async_context(background(self._run(), name="connections"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold them no more; they are free for others when they are not held again."""
        await self._stack.aclose()

    async def open(self, tenant: str, principal: str) -> None:
        """Take a place for a connection, to be given back by `close`.

        Args:
            tenant: whose.
            principal: who opens it.

        Raises:
            ResourceExhausted: LIMIT_EXCEEDED; no place was taken.
        """
        places = self._tenants.setdefault(tenant, _Places())
        if self._is_away or places.open < places.held.granted:
            places.open += 1
            return
        waiting = asyncio.get_running_loop().create_future()
        places.waiting.append((principal, waiting))
        self._wake.set()
        try:
            await waiting
        except asyncio.CancelledError:
            # Given its place in the very moment in which it gave up.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.close(tenant)
            raise

    def close(self, tenant: str) -> None:
        """Give a place back."""
        places = self._tenants[tenant]
        places.open -= 1
        if 0 < places.held.limit <= places.held.used:
            # Somebody may wait for it elsewhere.
            self._wake.set()

    def recount(self, connections: Mapping[str, int]) -> None:
        """Go by what was counted, by tenant, instead of what was opened and closed here."""
        for tenant in connections:
            self._tenants.setdefault(tenant, _Places())
        for tenant, places in self._tenants.items():
            places.open = connections.get(tenant, 0)

    async def _run(self) -> None:
        while True:
            await self._ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_REST_S)

    async def _ask(self) -> None:
        if self._is_known and not (self._tenants or self._refused or self._is_away):
            return
        asked = list(self._tenants.items())
        wanted = [Wanted(tenant, places.open + len(places.waiting)) for tenant, places in asked]
        waiting = [places.waiting for _, places in asked]
        for _, places in asked:
            # Whoever comes while this is asked waits for the next answer.
            places.waiting = []
            places.held = places.held._replace(granted=min(places.held.granted, places.open))
        refused = [Refused(*who, count) for who, count in self._refused.items()]
        try:
            async with asyncio.timeout(_ANSWER_S):
                answers = await self._hold(wanted, refused)
        except Exception as error:
            self._nobody_can_tell(error, asked, waiting)
            return
        self._is_known = True
        if self._is_away:
            self._is_away = False
            _log.info("connections are counted again")
        for each in refused:
            del self._refused[each.tenant, each.principal]
        for (tenant, places), comers, want, held in zip(asked, waiting, wanted, answers, strict=True):
            places.held = held
            for principal, comer in comers:
                self._decide(tenant, places, principal, comer, is_full=held.granted < want.connections)
            if not (places.open or places.waiting or held.granted):
                del self._tenants[tenant]

    def _decide(
        self, tenant: str, places: _Places, principal: str, comer: asyncio.Future[None], *, is_full: bool
    ) -> None:
        if comer.done():
            return
        if places.open < places.held.granted:
            places.open += 1
            comer.set_result(None)
            return
        if not is_full:
            # All that was asked for was granted, but more were counted meanwhile: ask for them as well.
            places.waiting.append((principal, comer))
            self._wake.set()
            return
        comer.set_exception(limit_exceeded(tenant, places.held))
        if (tenant, principal) in self._refused or len(self._refused) < _MOST_REFUSED:
            self._refused[tenant, principal] += 1

    def _nobody_can_tell(
        self,
        error: Exception,
        asked: Sequence[tuple[str, _Places]],
        waiting: Sequence[Sequence[tuple[str, asyncio.Future[None]]]],
    ) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning("connections are not counted; all are let in", error=repr(error))
        for (_, places), comers in zip(asked, waiting, strict=True):
            for _, comer in [*comers, *places.waiting]:
                if not comer.done():
                    places.open += 1
                    comer.set_result(None)
            places.waiting = []


def limit_exceeded(tenant: str, held: Held) -> ResourceExhausted:
    """Return the error for a connection that a tenant has no place for."""
    message = (
        f"tenant {tenant!r} may have {held.limit} connections open and has {held.used} ({LIMIT_NAME}):"
        f" streams, watches, exports and devices at MQTT; close some, or try again in {_RETRY_S:g} s"
    )
    return ResourceExhausted(
        message,
        reason=ErrorReason.ERROR_REASON_LIMIT_EXCEEDED,
        metadata={
            "limit_name": LIMIT_NAME, "limit": str(held.limit), "used": str(held.used), "subject": tenant,
        },
        quota=QuotaViolation(f"tenant:{tenant}", LIMIT_NAME, held.limit, message),
        retry_after_s=_RETRY_S,
    )  # fmt: skip
