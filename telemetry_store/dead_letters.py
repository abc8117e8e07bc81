"""Dead letters: messages that could not be processed, as they came, and why."""

from collections.abc import Iterable

from meshkit.clock import to_datetime
from meshkit.db import Connection
from telemetry_store.requests import DeadLetter

_COLUMNS = ("tenant_id", "device_id", "principal", "received_at", "reason", "message", "payload", "trace_id")


async def insert(connection: Connection, letters: Iterable[tuple[str, DeadLetter]]) -> None:
    """Keep dead letters.

    Args:
        connection: of the ingest role.
        letters: each with its tenant.
    """
    records = [
        (
            tenant,
            letter.device_id,
            letter.principal,
            to_datetime(letter.received_us),
            letter.reason,
            letter.message,
            letter.payload,
            letter.trace_id or None,
        )
        for tenant, letter in letters
    ]
    if records:
        await connection.copy_records_to_table(
            "dead_letter", schema_name="telemetry", columns=_COLUMNS, records=records
        )
