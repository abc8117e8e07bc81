"""When API keys were last used: to the minute, and written apart from the requests that use them."""

from collections.abc import Mapping
from typing import Protocol

from meshkit.clock import MICROS_PER_SECOND, Clock

_MINUTE_US = 60 * MICROS_PER_SECOND


class KeyUseStore(Protocol):
    """Where uses are kept."""

    async def write_uses(self, tenant: str, uses: Mapping[str, int]) -> None:
        """Store when keys of a tenant were last used.

        Args:
            tenant: whose.
            uses: microseconds since the epoch by key id; what is earlier than the stored counts for nothing.
        """
        ...


class KeyUses:
    """Notes uses of API keys in memory until they are written.

    Only good keys are noted, so there are no more of them than keys.

    Args:
        store: where they are kept.
        clock: tells when.
    """

    def __init__(self, *, store: KeyUseStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._pending: dict[str, dict[str, int]] = {}
        self._written: dict[tuple[str, str], int] = {}

    def note(self, tenant: str, key_id: str) -> None:
        """Note that a key is used now."""
        minute_us = self._clock.now_us() // _MINUTE_US * _MINUTE_US
        if self._written.get((tenant, key_id)) != minute_us:
            self._pending.setdefault(tenant, {})[key_id] = minute_us

    async def write(self) -> None:
        """Write what was noted, one transaction per tenant.

        Raises:
            Exception: as writing does; what was not written stays noted.
        """
        minute_us = self._clock.now_us() // _MINUTE_US * _MINUTE_US
        self._written = {place: at for place, at in self._written.items() if at == minute_us}
        for tenant in list(self._pending):
            uses = self._pending.pop(tenant)
            try:
                await self._store.write_uses(tenant, uses)
            except BaseException:
                self._pending[tenant] = {**uses, **self._pending.get(tenant, {})}
                raise
            self._written.update({(tenant, key_id): at for key_id, at in uses.items()})
