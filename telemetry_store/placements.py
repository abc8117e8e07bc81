"""Table telemetry.placement: which assets devices were on, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

from meshkit.db import Connection
from telemetry_store.series import Point

_SAVE = """
INSERT INTO telemetry.placement (tenant_id, device_id, start_time, asset_id, latitude, longitude, altitude)
SELECT new.*
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::float8[], $6::float8[], $7::float8[])
    AS new (tenant_id, device_id, start_time, asset_id, latitude, longitude, altitude)
LEFT JOIN LATERAL (
    SELECT start_time, asset_id, latitude, longitude, altitude
    FROM telemetry.placement AS kept
    WHERE kept.tenant_id = new.tenant_id AND kept.device_id = new.device_id
    ORDER BY start_time DESC
    LIMIT 1
) AS kept ON true
WHERE (kept.asset_id, kept.latitude, kept.longitude, kept.altitude)
    IS DISTINCT FROM (new.asset_id, new.latitude, new.longitude, new.altitude)
  AND (kept.start_time IS NOT NULL OR new.asset_id IS NOT NULL)
  AND new.start_time > coalesce(kept.start_time, 0)
ON CONFLICT DO NOTHING
"""

# Those that began in the range, and the one that held when it began.
_READ = """
SELECT start_time, asset_id, latitude, longitude, altitude
FROM telemetry.placement
WHERE tenant_id = $1 AND device_id = $2 AND start_time < $4
  AND start_time >= coalesce(
    (
        SELECT max(start_time) FROM telemetry.placement
        WHERE tenant_id = $1 AND device_id = $2 AND start_time <= $3
    ),
    $3
  )
ORDER BY start_time
LIMIT $5
"""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a device was from a time on.

    Attributes:
        start_us: microseconds since the epoch.
        asset_id: the asset that it was on, "" for none.
        location: of the asset, None when it has none.
    """

    start_us: int
    asset_id: str
    location: Point | None


@dataclass(frozen=True, slots=True)
class DevicePlacement:
    """A placement, and whose it is."""

    tenant: str
    device_id: str
    placement: Placement


async def save_placements(connection: Connection, placements: Sequence[DevicePlacement]) -> None:
    """Save placements; one that a device has already, and one older than its last, changes nothing.

    Args:
        connection: of the ingest role.
        placements: of each device one.
    """
    places = [each.placement for each in placements]
    points = [place.location for place in places]
    await connection.execute(
        _SAVE,
        [each.tenant for each in placements],
        [each.device_id for each in placements],
        [place.start_us for place in places],
        [place.asset_id or None for place in places],
        [point and point.latitude for point in points],
        [point and point.longitude for point in points],
        [point and point.altitude for point in points],
    )


async def read_placements(
    connection: Connection, *, tenant: str, device_id: str, start_us: int, end_us: int, limit: int
) -> list[Placement]:
    """Return where a device was in [start, end), by time; the first may have begun before.

    Args:
        connection: that sees the tenant.
        tenant: whose device.
        device_id: which.
        start_us: microseconds since the epoch.
        end_us: likewise.
        limit: most of them.
    """
    rows = await connection.fetch(_READ, tenant, device_id, start_us, end_us, limit)
    return [
        Placement(
            row["start_time"],
            row["asset_id"] or "",
            None if row["latitude"] is None else Point(row["latitude"], row["longitude"], row["altitude"]),
        )
        for row in rows
    ]
