"""What is recorded of batches, requests and messages, for those who ask later."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import connected


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is recorded.

    Attributes:
        outcome: opaque to the store.
        recorded_us: when it was committed, microseconds since the epoch; None: not known.
        dead_letters: ids of those that are kept of it now, ascending.
    """

    outcome: bytes
    recorded_us: int | None
    dead_letters: Sequence[int]


@dataclass(frozen=True, slots=True)
class WriterReceipt:
    """What is known of a writer's sequence.

    Attributes:
        principal: whose writer.
        last_sequence: the last one committed.
        receipt: what is recorded; None: it is not committed, or its outcome is no longer kept.
    """

    principal: str
    last_sequence: int
    receipt: Receipt | None


class ReceiptStore:
    """Finds receipts.

    All methods raise Unavailable, DEPENDENCY_UNAVAILABLE, when PostgreSQL is away.

    Args:
        pool: of the ingest role, which sees all tenants' rows: every statement names the tenant.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def of_batch(self, tenant: str, writer_id: str, sequence: int) -> WriterReceipt | None:
        """Return what is known of a writer's sequence; None: there is no such writer."""
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(
                """
                SELECT held.principal, held.last_sequence, kept.outcome, kept.recorded_at,
                    ARRAY (
                        SELECT dead_letter_id FROM telemetry.dead_letter
                        WHERE tenant_id = $1 AND writer_id = $2 AND sequence = $3
                        ORDER BY dead_letter_id
                    ) AS dead_letters
                FROM telemetry.writer_cursor AS held
                LEFT JOIN telemetry.writer_outcome AS kept
                  ON kept.tenant_id = held.tenant_id AND kept.writer_id = held.writer_id
                 AND kept.slot = $3::bigint % 256 AND kept.sequence = $3
                WHERE held.tenant_id = $1 AND held.writer_id = $2
                """,
                tenant,
                writer_id,
                sequence,
            )
        if row is None:
            return None
        receipt = None if row["outcome"] is None else _receipt(row)
        return WriterReceipt(row["principal"], row["last_sequence"], receipt)

    async def of_request(self, tenant: str, principal: str, request_id: str) -> Receipt | None:
        """Return what is recorded under a principal's request id."""
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(
                """
                SELECT outcome, recorded_at,
                    ARRAY (
                        SELECT dead_letter_id FROM telemetry.dead_letter
                        WHERE tenant_id = $1 AND principal = $2 AND request_id = $3
                        ORDER BY dead_letter_id
                    ) AS dead_letters
                FROM telemetry.request_id
                WHERE tenant_id = $1 AND principal = $2 AND request_id = $3
                ORDER BY window_start
                LIMIT 1
                """,
                tenant,
                principal,
                request_id,
            )
        return None if row is None else _receipt(row)

    async def of_message(self, tenant: str, principal: str, message_id: str) -> Receipt | None:
        """Return what is recorded of a device's message.

        Args:
            tenant: whose device.
            principal: in whose name messages of devices are stored.
            message_id: `<stream>:<number>`, or `<gateway>/<message id>` of one in chunks.
        """
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(
                """
                SELECT outcome, recorded_at,
                    ARRAY (
                        SELECT dead_letter_id FROM telemetry.dead_letter
                        WHERE tenant_id = $1 AND $3 IN (message_id, request_id)
                        ORDER BY dead_letter_id
                    ) AS dead_letters
                FROM telemetry.request_id
                WHERE tenant_id = $1 AND principal = $2 AND request_id = $3
                ORDER BY window_start
                LIMIT 1
                """,
                tenant,
                principal,
                message_id,
            )
        return None if row is None else _receipt(row)


def _receipt(row: asyncpg.Record) -> Receipt:
    recorded_at = row["recorded_at"]
    return Receipt(
        row["outcome"], None if recorded_at is None else from_datetime(recorded_at), row["dead_letters"]
    )
