"""The watches of this process: opened for callers, and ended with the process or the credential."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from meshkit.clock import Clock
from meshkit.errors import dependency_unavailable
from meshkit.open_calls import OpenCall
from twin_svc.changes import Changes
from twin_svc.devices import WatchedDevices
from twin_svc.fleet import Fleet
from twin_svc.tokens import ResumePoint
from twin_svc.watch import Event, Selection, Watch
from twin_svc.watching import Feed, watch_events

_DRAIN_S = 5.0


class Watches:
    """Opens watches.

    Args:
        fleet: values of twins.
        feed: what the fleet follows.
        devices: of tenants.
        changes: says when something of a tenant changed.
        clock: tells who is online.
        on_told: told how many seconds after a change a caller had taken all that was told of it.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        feed: Feed,
        devices: WatchedDevices,
        changes: Changes,
        clock: Clock,
        on_told: Callable[[float], None],
    ) -> None:
        self._fleet = fleet
        self._feed = feed
        self._devices = devices
        self._changes = changes
        self._clock = clock
        self._on_told = on_told
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._stopping = False

    def __len__(self) -> int:
        """Return how many are open."""
        return self._open

    @asynccontextmanager
    async def open(
        self, call: OpenCall, selection: Selection, *, resumed: ResumePoint | None, interval_s: float
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Begin a watch; yields what it tells, for as long as the context is open.

        Args:
            call: by whom the watch was asked for, and with whose credential it ends.
            selection: which twins of the caller's tenant.
            resumed: how far the caller was told already.
            interval_s: least time between two changes, in seconds.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE, asset_svc is away, or this process stops.
            Unauthenticated: the caller's credential has ended.
        """
        tenant = call.principal.tenant

        def require_allowed() -> None:
            if self._stopping:
                raise dependency_unavailable("twin_svc", retry_after_s=0)
            if call.error is not None:
                raise call.error

        call.on_end(lambda _: self._changes.notify(tenant))
        require_allowed()
        self._open += 1
        self._none_open.clear()
        try:
            async with self._devices.of(tenant) as devices:
                watch = Watch(
                    tenant=tenant,
                    selection=replace(selection, scope=call.principal.scope),
                    fleet=self._fleet,
                    devices=devices,
                    clock=self._clock,
                )
                with self._changes.waiting(tenant) as waiter:
                    events = watch_events(
                        watch,
                        feed=self._feed,
                        waiter=waiter,
                        resumed=resumed,
                        interval_s=interval_s,
                        require_allowed=require_allowed,
                        on_told=self._on_told,
                    )
                    async with aclosing(events):
                        yield events
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()

    async def drain(self) -> None:
        """End all watches, and wait until they have told their callers; those that do not read are left."""
        self._stopping = True
        self._changes.notify_all()
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._none_open.wait()
        except TimeoutError:
            pass
