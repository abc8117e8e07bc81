"""Sets of devices that raw messages speak of, each kept once a day and remembered by its id."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.requests import DeviceSet, WriteRequest

DeviceSetKey = tuple[str, date, bytes]  # tenant, UTC day, digest
DeviceSetIds = Mapping[DeviceSetKey, int]
_REMEMBERED = 50_000
_EPOCH = date(1970, 1, 1)


def key(tenant: str, received_us: int, devices: DeviceSet) -> DeviceSetKey:
    """Return what a set is known by on the day of a message."""
    return tenant, _EPOCH + timedelta(days=received_us // MICROS_PER_DAY), devices.digest


class DeviceSets:
    """Finds ids of sets, and keeps those that are new.

    Args:
        remembered: ids that are kept in memory.
    """

    def __init__(self, *, remembered: int = _REMEMBERED) -> None:
        self._limit = remembered
        self._ids: OrderedDict[DeviceSetKey, int] = OrderedDict()

    def __len__(self) -> int:
        """Return how many ids are remembered."""
        return len(self._ids)

    async def resolve(self, connection: Connection, requests: Iterable[WriteRequest]) -> DeviceSetIds:
        """Return the ids of all sets that the requests' raw messages speak of.

        Args:
            connection: of the ingest role, outside of a transaction: sets are committed at once, so
                that no other process waits for one.
            requests: any number.

        Raises:
            asyncpg.PostgresError: as the database says.
        """
        found: dict[DeviceSetKey, int] = {}
        absent: dict[DeviceSetKey, DeviceSet] = {}
        for request in requests:
            for message in request.raw:
                wanted = key(request.tenant, message.received_us, message.devices)
                if wanted in found:
                    continue
                known = self._ids.get(wanted)
                if known is None:
                    absent[wanted] = message.devices
                else:
                    self._ids.move_to_end(wanted)
                    found[wanted] = known
        if absent:
            made = await _keep(connection, absent)
            found |= made
            self._ids |= made
            while len(self._ids) > self._limit:
                self._ids.popitem(last=False)
        return found


async def _keep(connection: Connection, absent: Mapping[DeviceSetKey, DeviceSet]) -> dict[DeviceSetKey, int]:
    # All processes insert in this order, so none waits for one that waits for it.
    keys = sorted(absent)
    ids = await _insert(connection, keys, absent)
    if lost := [each for each in keys if each not in ids]:
        ids |= await _find(connection, lost)
    return ids


async def _insert(
    connection: Connection, keys: Sequence[DeviceSetKey], sets: Mapping[DeviceSetKey, DeviceSet]
) -> dict[DeviceSetKey, int]:
    rows = await connection.fetch(
        """
        INSERT INTO telemetry.raw_device_set (tenant_id, day, digest, device_ids)
        SELECT tenant_id, day, digest, string_to_array(device_ids, ',')
        FROM unnest($1::text[], $2::date[], $3::bytea[], $4::text[])
            AS wanted (tenant_id, day, digest, device_ids)
        ON CONFLICT (tenant_id, day, digest) DO NOTHING
        RETURNING tenant_id, day, digest, device_set_id
        """,
        *map(list, zip(*keys, strict=True)),
        [",".join(sets[each].device_ids) for each in keys],
    )
    return {(row["tenant_id"], row["day"], row["digest"]): row["device_set_id"] for row in rows}


async def _find(connection: Connection, keys: Sequence[DeviceSetKey]) -> dict[DeviceSetKey, int]:
    rows = await connection.fetch(
        """
        SELECT tenant_id, day, digest, device_set_id
        FROM telemetry.raw_device_set
        JOIN unnest($1::text[], $2::date[], $3::bytea[]) AS wanted (tenant_id, day, digest)
            USING (tenant_id, day, digest)
        """,
        *map(list, zip(*keys, strict=True)),
    )
    return {(row["tenant_id"], row["day"], row["digest"]): row["device_set_id"] for row in rows}
