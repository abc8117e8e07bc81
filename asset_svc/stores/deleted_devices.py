"""Table asset.deleted_device."""

from collections.abc import Sequence

import asyncpg

from asset_svc.profile import DeletedDevice
from meshkit.clock import from_datetime
from meshkit.db import Connection

_LOCK_KEY = 0x64656C64  # "deld": one transaction at a time inserts, so that numbers follow commits

# No certificate lives longer than 825 days. Only the first few are looked at, by the primary key, since all
# other deletions wait: one is added each time, so that they do not get more.
_FORGET = """
DELETE FROM asset.deleted_device
WHERE tenant_id = $1 AND delete_time < now() - interval '900 days'
  AND number = ANY (ARRAY(
      SELECT number FROM asset.deleted_device WHERE tenant_id = $1 ORDER BY number LIMIT 10
  ))
"""

_INSERT = """
INSERT INTO asset.deleted_device (tenant_id, id, create_time, delete_time)
SELECT tenant_id, id, create_time, now()
FROM asset.device
WHERE tenant_id = $1 AND id = $2
"""

_AFTER = "SELECT number, tenant_id, id, create_time FROM asset.deleted_devices_after($1, $2)"


async def insert_deleted(connection: Connection, tenant: str, device_id: str) -> None:
    """Note in the transaction that deletes a device, before it does, that the device is gone.

    It locks out deletions of all other devices until the transaction ends.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
    await connection.execute(_FORGET, tenant)
    await connection.execute(_INSERT, tenant, device_id)


class DeletedDevices:
    """Devices of all tenants that are gone.

    Args:
        pool: of the service's role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def after(self, number: int, *, limit: int) -> Sequence[DeletedDevice]:
        """Return those after a number, in their order."""
        return [
            DeletedDevice(row["number"], row["tenant_id"], row["id"], from_datetime(row["create_time"]))
            for row in await self._pool.fetch(_AFTER, number, limit)
        ]
