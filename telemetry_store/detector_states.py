"""Table telemetry.detector_state: what judges of samples remember of series."""

from collections.abc import Sequence

from meshkit.db import Connection

_LOAD = """
SELECT series_id, state FROM telemetry.detector_state WHERE tenant_id = $1 AND series_id = ANY ($2)
"""

# The first number of a state is the time of its latest sample: of two processes' the newer one stays.
_SAVE = """
INSERT INTO telemetry.detector_state AS kept (tenant_id, series_id, state)
SELECT tenant_id, series_id, string_to_array(state, ',')::double precision[]
FROM unnest($1::text[], $2::integer[], $3::text[]) AS new (tenant_id, series_id, state)
ON CONFLICT (tenant_id, series_id) DO UPDATE SET state = excluded.state, saved_at = now()
WHERE excluded.state[1] >= kept.state[1]
"""


async def load_states(
    connection: Connection, tenant: str, series_ids: Sequence[int]
) -> dict[int, Sequence[float]]:
    """Return the states that were saved of series of a tenant, by series id.

    Args:
        connection: of the ingest role.
        tenant: whose.
        series_ids: which.
    """
    rows = await connection.fetch(_LOAD, tenant, series_ids)
    return {row["series_id"]: row["state"] for row in rows}


async def save_states(connection: Connection, states: Sequence[tuple[str, int, Sequence[float]]]) -> None:
    """Save states.

    Args:
        connection: of the ingest role; its next commit does not wait for the disk.
        states: each with tenant and series id; numbers, the first of them the time of the series'
            latest sample.
    """
    # All processes write in this order, so none waits for one that waits for it.
    ordered = sorted(states, key=lambda state: state[:2])
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = off")
        await connection.execute(
            _SAVE,
            [tenant for tenant, _, _ in ordered],
            [series_id for _, series_id, _ in ordered],
            # Arrays of arrays are of one length in PostgreSQL, and the driver makes no others.
            [",".join(map(repr, state)) for _, _, state in ordered],
        )
