"""Up to when retention has deleted samples: before that, rollups may tell of more than there is."""

from meshkit.db import Connection

# Of a statement whose CTE `gone` deletes samples and has the tenant and the UTC day of each row: who sees
# that they are gone sees the horizon too.
RAISE_SAMPLE_HORIZON = """
INSERT INTO telemetry.sample_horizon AS known (tenant_id, start_time)
SELECT tenant_id, (max(day) - date '1970-01-01' + 1) * 86400000000 FROM gone GROUP BY tenant_id
ON CONFLICT (tenant_id) DO UPDATE SET start_time = excluded.start_time
WHERE excluded.start_time > known.start_time
"""


async def read_sample_horizon(connection: Connection, tenant: str) -> int | None:
    """Return from when on retention has deleted nothing, in microseconds since the epoch; None: nothing ever.

    Args:
        connection: in the snapshot in which samples are read, of a role that sees the tenant.
        tenant: whose samples.
    """
    start_us: int | None = await connection.fetchval(
        "SELECT start_time FROM telemetry.sample_horizon WHERE tenant_id = $1", tenant
    )
    return start_us
