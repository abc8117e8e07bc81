"""Whose devices are, across tenants."""

from collections.abc import Sequence

import asyncpg


class DeviceTenants:
    """Finds the tenants of devices, which row-level security shows to none but themselves.

    Args:
        pool: of the service's role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, device_ids: Sequence[str]) -> dict[str, str]:
        """Return the tenants of those devices that exist, by device id."""
        rows = await self._pool.fetch("SELECT id, tenant_id FROM asset.device_tenants($1)", device_ids)
        return {row["id"]: row["tenant_id"] for row in rows}
