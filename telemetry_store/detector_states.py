"""Table telemetry.detector_state: what judges of samples remember."""

from collections.abc import Sequence

from meshkit.db import Connection
from telemetry_store.saved_state import SavedState

_LOAD = """
SELECT subject, state FROM telemetry.detector_state
WHERE tenant_id = $1 AND detector = $2 AND subject = ANY ($3)
"""

_SAVE = """
INSERT INTO telemetry.detector_state AS kept (tenant_id, detector, subject, time, state)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bytea[])
ON CONFLICT (tenant_id, detector, subject) DO UPDATE
SET time = excluded.time, state = excluded.state, saved_at = now()
WHERE excluded.time >= kept.time
"""


async def load_states(
    connection: Connection, tenant: str, detector: str, subjects: Sequence[str]
) -> dict[str, bytes]:
    """Return the states that were saved of subjects of a tenant, by subject.

    Args:
        connection: of the ingest role.
        tenant: whose.
        detector: as in SavedState.
        subjects: which.
    """
    rows = await connection.fetch(_LOAD, tenant, detector, subjects)
    return {row["subject"]: row["state"] for row in rows}


async def save_states(connection: Connection, states: Sequence[SavedState]) -> None:
    """Save states, each subject's once.

    Args:
        connection: of the ingest role; the transaction does not wait for the disk.
        states: to save.
    """
    # All processes write in this order, so none waits for one that waits for it.
    ordered = sorted(states, key=lambda state: (state.tenant, state.detector, state.subject))
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = off")
        await connection.execute(
            _SAVE,
            [state.tenant for state in ordered],
            [state.detector for state in ordered],
            [state.subject for state in ordered],
            [state.time_us for state in ordered],
            [state.state for state in ordered],
        )
