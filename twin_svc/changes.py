"""Wakes those who wait for twins of a tenant to change."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

# Who waits for more devices than these is woken by every change of the tenant: most concern it,
# and each device that is waited for by itself costs some 100 bytes.
_MOST_DEVICES = 1_000


class Waiter:
    """One who waits: for every change of a tenant at first, then for those of some devices.

    Attributes:
        woken: set by each change that is waited for; cleared by `begin`.
    """

    def __init__(self, of_tenant: "_Waiters") -> None:
        self.woken = asyncio.Event()
        self._came: float | None = None
        self._of_tenant = of_tenant
        self._devices: frozenset[int] | None = None
        of_tenant.add(self, None)

    def wait_for(self, devices: Collection[int]) -> None:
        """Wait for changes of these devices, by their slots, from now on.

        It is woken at once, too: what changed since it looked may be of a device that is new to it.
        """
        wanted_or_all = frozenset(map(int, devices)) if len(devices) <= _MOST_DEVICES else None
        if wanted_or_all != self._devices:
            self._of_tenant.remove(self, self._devices)
            self._of_tenant.add(self, wanted_or_all)
            self._devices = wanted_or_all
        self.woken.set()

    def begin(self) -> float | None:
        """Wait anew; called before one looks, it misses no change.

        Returns:
            When the first change came since it was called last, by the monotonic clock; None: none did.
        """
        self.woken.clear()
        came, self._came = self._came, None
        return came

    def wake(self, came: float) -> None:
        """Wake who waits, because of a change that came now."""
        if self._came is None:
            self._came = came
        self.woken.set()

    def end(self) -> None:
        """Wait no more."""
        self._of_tenant.remove(self, self._devices)


class _Waiters:
    """Who waits for changes of one tenant."""

    def __init__(self) -> None:
        self.all: set[Waiter] = set()
        self._for_all: set[Waiter] = set()
        self._by_device: defaultdict[int, set[Waiter]] = defaultdict(set)

    def add(self, waiter: Waiter, devices: frozenset[int] | None) -> None:
        self.all.add(waiter)
        if devices is None:
            self._for_all.add(waiter)
            return
        for device in devices:
            self._by_device[device].add(waiter)

    def remove(self, waiter: Waiter, devices: frozenset[int] | None) -> None:
        self.all.discard(waiter)
        if devices is None:
            self._for_all.discard(waiter)
            return
        for device in devices:
            waiters = self._by_device[device]
            waiters.discard(waiter)
            if not waiters:
                del self._by_device[device]

    def concerned(self, devices: Iterable[int]) -> set[Waiter]:
        """Return who waits for any of the devices."""
        watched = self._by_device.keys() & devices
        return self._for_all.union(*(self._by_device[device] for device in watched))


class Changes:
    """Knows who waits for what, and wakes them."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Waiters] = {}

    def notify(self, tenant: str, devices: Iterable[int] | None = None) -> None:
        """Wake those who wait for any of a tenant's devices, by their slots; None: for whatever of it."""
        waiters = self._tenants.get(tenant)
        if waiters is None:
            return
        came = time.monotonic()
        for waiter in waiters.all if devices is None else waiters.concerned(devices):
            waiter.wake(came)

    def notify_all(self) -> None:
        """Wake everybody."""
        for tenant in self._tenants:
            self.notify(tenant)

    @contextmanager
    def waiting(self, tenant: str) -> Iterator[Waiter]:
        """Wait for a tenant's changes while the context is open."""
        waiters = self._tenants.setdefault(tenant, _Waiters())
        waiter = Waiter(waiters)
        try:
            yield waiter
        finally:
            waiter.end()
            if not waiters.all:
                del self._tenants[tenant]


async def woken(event: asyncio.Event, *, at_most_s: float) -> None:
    """Return when it is set, or after so many seconds."""
    if event.is_set():
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()
