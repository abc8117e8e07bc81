"""Request ids: a repeated request within the time they are kept gets the first one's outcome."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from meshkit.db import Connection
from meshkit.errors import InvalidArgument
from telemetry_store.cursors import Recorded
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

WINDOW = timedelta(minutes=15)
# Longer than any transaction of the ingest role may last (its transaction_timeout).
OVERLAP = timedelta(seconds=60)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

RequestKey = tuple[str, str, str]  # tenant, principal, request id


def windows_of(now: datetime) -> tuple[datetime, ...]:
    """Return the starts of the windows that ids go into, ascending.

    Soon after a boundary these are two: a transaction that began before it may still
    be inserting the same id into the window that ended, where only another insert
    meets it.
    """
    present = now - (now - _EPOCH) % WINDOW
    return (present - WINDOW, present) if now - present < OVERLAP else (present,)


def check_digest(request_id: str, digest: bytes, recorded: Recorded) -> None:
    """Check that a known id came with the same content.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED.
    """
    if recorded.digest != digest:
        raise InvalidArgument(
            f"request id {request_id!r} was used with other content; a new request needs a new id",
            reason=ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
        )


async def claim(
    connection: Connection, wanted: Mapping[RequestKey, Recorded], now: datetime
) -> dict[RequestKey, Recorded]:
    """Insert new ids with their outcomes; waits for transactions that insert the same ones.

    Args:
        connection: in the transaction that stores what the ids stand for.
        wanted: ids with digest and outcome.
        now: the transaction's own, by the database's clock, which all processes share.

    Returns:
        Records of the ids that were known already.
    """
    windows = windows_of(now)
    # All processes insert in this order, so none waits for one that waits for it.
    keys = sorted(wanted)
    known = await _find_before(connection, keys, windows[0])
    fresh = [key for key in keys if key not in known]
    inserted_into: list[datetime] = []
    for window in windows:
        if not fresh:
            break
        inserted = await _insert(connection, fresh, wanted, window)
        lost = [key for key in fresh if key not in inserted]
        if lost:
            winners = await _find_in(connection, lost, window)
            known |= winners
            for earlier in inserted_into:
                await _correct(connection, winners, earlier)
        fresh = [key for key in fresh if key in inserted]
        inserted_into.append(window)
    return known


async def find(connection: Connection, keys: Sequence[RequestKey]) -> dict[RequestKey, Recorded]:
    """Return records of those ids that are known, and claim nothing."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT ON (tenant_id, principal, request_id)
            kept.tenant_id, kept.principal, kept.request_id, kept.digest, kept.outcome
        FROM telemetry.request_id AS kept
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant_id, principal, request_id)
            USING (tenant_id, principal, request_id)
        """,
        *_columns(keys),
    )
    return _by_key(rows)


def _columns(keys: Sequence[RequestKey]) -> tuple[list[str], list[str], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]


def _by_key(rows: Iterable[asyncpg.Record]) -> dict[RequestKey, Recorded]:
    return {
        (row["tenant_id"], row["principal"], row["request_id"]): Recorded(row["digest"], row["outcome"])
        for row in rows
    }


async def _find_before(
    connection: Connection, keys: Sequence[RequestKey], window: datetime
) -> dict[RequestKey, Recorded]:
    rows = await connection.fetch(
        """
        SELECT kept.tenant_id, kept.principal, kept.request_id, kept.digest, kept.outcome
        FROM telemetry.request_id AS kept
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant_id, principal, request_id)
            USING (tenant_id, principal, request_id)
        WHERE kept.window_start < $4
        """,
        *_columns(keys),
        window,
    )
    return _by_key(rows)


async def _find_in(
    connection: Connection, keys: Sequence[RequestKey], window: datetime
) -> dict[RequestKey, Recorded]:
    rows = await connection.fetch(
        """
        SELECT kept.tenant_id, kept.principal, kept.request_id, kept.digest, kept.outcome
        FROM telemetry.request_id AS kept
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant_id, principal, request_id)
            USING (tenant_id, principal, request_id)
        WHERE kept.window_start = $4
        """,
        *_columns(keys),
        window,
    )
    return _by_key(rows)


async def _insert(
    connection: Connection,
    keys: Sequence[RequestKey],
    wanted: Mapping[RequestKey, Recorded],
    window: datetime,
) -> set[RequestKey]:
    rows = await connection.fetch(
        """
        INSERT INTO telemetry.request_id (tenant_id, principal, request_id, window_start, digest, outcome)
        SELECT tenant_id, principal, request_id, $4, digest, outcome
        FROM unnest($1::text[], $2::text[], $3::text[], $5::bytea[], $6::bytea[])
            AS wanted (tenant_id, principal, request_id, digest, outcome)
        ON CONFLICT DO NOTHING
        RETURNING tenant_id, principal, request_id
        """,
        *_columns(keys),
        window,
        [wanted[key].digest for key in keys],
        [wanted[key].outcome for key in keys],
    )
    return {(row["tenant_id"], row["principal"], row["request_id"]) for row in rows}


async def _correct(connection: Connection, winners: Mapping[RequestKey, Recorded], window: datetime) -> None:
    """Give ids that were inserted too late the record of the one that was first."""
    keys = list(winners)
    await connection.execute(
        """
        UPDATE telemetry.request_id AS kept
        SET digest = first.digest, outcome = first.outcome
        FROM unnest($1::text[], $2::text[], $3::text[], $5::bytea[], $6::bytea[])
            AS first (tenant_id, principal, request_id, digest, outcome)
        WHERE kept.tenant_id = first.tenant_id AND kept.principal = first.principal
          AND kept.request_id = first.request_id AND kept.window_start = $4
        """,
        *_columns(keys),
        window,
        [winners[key].digest for key in keys],
        [winners[key].outcome for key in keys],
    )
