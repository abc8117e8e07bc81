"""Table auth.deleted_devices_read: how far asset_svc's list was read."""

import asyncpg

_GET = "SELECT number FROM auth.deleted_devices_read"
# Processes read beside each other.
_SET = "UPDATE auth.deleted_devices_read SET number = $1 WHERE number < $1"


class DeletedDevicesRead:
    """The place in the list.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def get(self) -> int:
        """Return the number up to which all is done."""
        number: int = await self._pool.fetchval(_GET)
        return number

    async def advance(self, number: int) -> None:
        """Note that all is done up to a number."""
        await self._pool.execute(_SET, number)
