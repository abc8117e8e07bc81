"""Wakes those who wait for something of a tenant to change."""

import asyncio
import time
from contextlib import suppress


class Change(asyncio.Event):
    """A change to come.

    Attributes:
        came: when it did, by the monotonic clock; None: it has not yet.
    """

    came: float | None = None


class Changes:
    """One event per tenant: who waits is woken by the next change."""

    def __init__(self) -> None:
        self._next: dict[str, Change] = {}

    def notify(self, tenant: str) -> None:
        """Wake those who wait for a tenant."""
        waited_for = self._next.pop(tenant, None)
        if waited_for is not None:
            waited_for.came = time.monotonic()
            waited_for.set()

    def notify_all(self) -> None:
        """Wake everybody."""
        for tenant in list(self._next):
            self.notify(tenant)

    def upcoming(self, tenant: str) -> Change:
        """Return what the tenant's next change sets; taken before one looks, it misses none."""
        return self._next.setdefault(tenant, Change())


async def woken(event: asyncio.Event, *, at_most_s: float) -> None:
    """Return when it is set, or after so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()
