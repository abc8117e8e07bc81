"""Wakes those who wait for something of a tenant to change."""

import asyncio
from contextlib import suppress


class Changes:
    """One event per tenant: who waits is woken by the next change."""

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Event] = {}

    def notify(self, tenant: str) -> None:
        """Wake those who wait for a tenant."""
        waited_for = self._next.pop(tenant, None)
        if waited_for is not None:
            waited_for.set()

    def notify_all(self) -> None:
        """Wake everybody."""
        for tenant in list(self._next):
            self.notify(tenant)

    def upcoming(self, tenant: str) -> asyncio.Event:
        """Return what the tenant's next change sets; taken before one looks, it misses none."""
        return self._next.setdefault(tenant, asyncio.Event())


async def woken(event: asyncio.Event, *, at_most_s: float) -> None:
    """Return when it is set, or after so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()
