"""Dead letters as people ask for them: listed, counted, read, purged. One tenant's at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from meshkit.clock import from_datetime, to_datetime
from meshkit.db import connected
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.requests import PayloadFormat

MOST_DEVICES = 100  # named of a letter
_PURGED_AT_ONCE = 1_000

_LETTER = f"""
    dead_letter_id, device_ids[1:{MOST_DEVICES}] AS device_ids, cardinality(device_ids) AS device_count,
    principal, received_at, reason, message, sample_count, door, writer_id, sequence, request_id, message_id,
    backfill_id, trace_id, replay_count, last_replay_at, payload_format,
    octet_length(payload) AS payload_bytes
"""
Position = tuple[int, int]  # when a letter came, microseconds since the epoch, and its id


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; what is "" or None does not matter.

    Attributes:
        device_id: whose samples are in them, perhaps among others'.
        reason: name of the ErrorReason, without its prefix.
        start_us: came then or later, microseconds since the epoch.
        end_us: came before.
        door: which way they came.
        text: their message contains it, in whatever case.
    """

    device_id: str = ""
    reason: str = ""
    start_us: int | None = None
    end_us: int | None = None
    door: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """A dead letter without its payload; attributes as in DeadLetter, and where it comes from.

    Attributes:
        device_ids: the first 100.
        device_count: how many it names.
        writer_id: with `sequence` the batch that it comes from; or `request_id`, or `message_id`.
        replay_count: how many replays failed.
        last_replay_us: when the last one did.
        payload_bytes: size of the payload.
    """

    dead_letter_id: int
    device_ids: Sequence[str]
    device_count: int
    principal: str
    received_us: int
    reason: str
    message: str
    sample_count: int
    door: str
    writer_id: str
    sequence: int
    request_id: str
    message_id: str
    backfill_id: str
    trace_id: str
    replay_count: int
    last_replay_us: int | None
    payload_format: PayloadFormat
    payload_bytes: int

    @property
    def position(self) -> Position:
        """Return its place among all of the tenant."""
        return self.received_us, self.dead_letter_id


@dataclass(frozen=True, slots=True)
class LetterContent:
    """What a letter holds, with how many replays had failed when it was read; all of its devices."""

    replay_count: int
    device_ids: Sequence[str]
    payload: bytes


@dataclass(frozen=True, slots=True)
class LetterCount:
    """How many letters of a reason came one way, and how many samples they hold."""

    reason: str
    door: str
    letters: int
    samples: int


class DeadLetterStore:
    """Reads and purges dead letters.

    All methods raise Unavailable, DEPENDENCY_UNAVAILABLE, when PostgreSQL is away.

    Args:
        pool: of the ingest role, which sees all tenants' letters: every statement names the tenant.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def page(
        self,
        tenant: str,
        chosen: LetterFilter,
        *,
        after: Position | None,
        limit: int,
        oldest_first: bool = False,
    ) -> list[KeptLetter]:
        """Return the next letters in the order of their arrival.

        Args:
            tenant: whose.
            chosen: which.
            after: where the page before ended; None: from the start.
            limit: most letters.
            oldest_first: the newest come first otherwise.
        """
        arguments, conditions = _conditions(tenant, chosen)
        order, beyond = ("", ">") if oldest_first else (" DESC", "<")
        if after is not None:
            arguments += [to_datetime(after[0]), after[1]]
            conditions += (
                f" AND (received_at, dead_letter_id) {beyond} (${len(arguments) - 1}, ${len(arguments)})"
            )
        arguments.append(limit)
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_LETTER} FROM telemetry.dead_letter
                WHERE {conditions}
                ORDER BY received_at{order}, dead_letter_id{order}
                LIMIT ${len(arguments)}
                """,  # noqa: S608 - put together from texts of this module  # nosec B608
                *arguments,
            )
        return [_letter(row) for row in rows]

    async def find(self, tenant: str, ids: Sequence[int]) -> list[KeptLetter]:
        """Return those of these letters that exist, the oldest first."""
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT {_LETTER} FROM telemetry.dead_letter
                WHERE tenant_id = $1 AND dead_letter_id = ANY ($2)
                ORDER BY received_at, dead_letter_id
                """,  # noqa: S608 - likewise  # nosec B608
                tenant,
                list(ids),
            )
        return [_letter(row) for row in rows]

    async def contents(self, tenant: str, ids: Sequence[int]) -> dict[int, LetterContent]:
        """Return what these letters hold, by id; of those that exist."""
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                """
                SELECT dead_letter_id, replay_count, device_ids, payload FROM telemetry.dead_letter
                WHERE tenant_id = $1 AND dead_letter_id = ANY ($2)
                """,
                tenant,
                list(ids),
            )
        return {
            row["dead_letter_id"]: LetterContent(row["replay_count"], row["device_ids"], row["payload"])
            for row in rows
        }

    async def room_since_us(self) -> int:
        """Return from which event time on all days up to now have their partitions.

        A sample before would fail the transaction of everybody whose batch is in the same group.
        """
        async with connected(self._pool) as connection:
            day: int | None = await connection.fetchval(
                """
                WITH made AS (
                    SELECT to_date(right(relname, 8), 'YYYYMMDD') - date '1970-01-01' AS day
                    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                    WHERE inhparent = 'telemetry.segment'::regclass
                ), numbered AS (
                    SELECT day, day - row_number() OVER (ORDER BY day) AS stretch
                    FROM made WHERE day <= (now() AT TIME ZONE 'UTC')::date - date '1970-01-01'
                )
                SELECT min(day) FROM numbered GROUP BY stretch ORDER BY max(day) DESC LIMIT 1
                """
            )
        return 0 if day is None else day * MICROS_PER_DAY

    async def counts(self, tenant: str, chosen: LetterFilter) -> list[LetterCount]:
        """Return how many letters there are by reason and door, the most first."""
        arguments, conditions = _conditions(tenant, chosen)
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                f"""
                SELECT reason, door, count(*) AS letters, coalesce(sum(sample_count), 0) AS samples
                FROM telemetry.dead_letter
                WHERE {conditions}
                GROUP BY reason, door
                ORDER BY letters DESC, reason, door
                """,  # noqa: S608 - likewise  # nosec B608
                *arguments,
            )
        return [LetterCount(*row) for row in rows]

    async def purge(self, tenant: str, chosen: LetterFilter, *, most: int) -> int:
        """Delete letters, the oldest first, and return how many; at most so many, in several transactions."""
        arguments, conditions = _conditions(tenant, chosen)
        purged = 0
        async with connected(self._pool) as connection:
            while purged < most:
                limit = min(_PURGED_AT_ONCE, most - purged)
                deleted = await connection.fetchval(
                    f"""
                    WITH deleted AS (
                        DELETE FROM telemetry.dead_letter
                        WHERE tenant_id = $1 AND dead_letter_id IN (
                            SELECT dead_letter_id FROM telemetry.dead_letter
                            WHERE {conditions}
                            ORDER BY received_at, dead_letter_id
                            LIMIT ${len(arguments) + 1}
                        )
                        RETURNING 1
                    )
                    SELECT count(*) FROM deleted
                    """,  # noqa: S608 - likewise  # nosec B608
                    *arguments,
                    limit,
                )
                purged += deleted
                if deleted < limit:
                    break
        return purged

    async def purge_these(self, tenant: str, ids: Sequence[int]) -> int:
        """Delete those of these letters that exist, and return how many they were."""
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                """
                DELETE FROM telemetry.dead_letter
                WHERE tenant_id = $1 AND dead_letter_id = ANY ($2)
                RETURNING dead_letter_id
                """,
                tenant,
                list(ids),
            )
        return len(rows)


def _conditions(tenant: str, chosen: LetterFilter) -> tuple[list[Any], str]:
    """Return arguments and condition that choose letters: only what matters, so that indexes serve it."""
    arguments: list[Any] = [tenant]
    conditions = ["tenant_id = $1"]
    wanted: Mapping[str, Any] = {
        "device_ids @> ARRAY[{}::text]": chosen.device_id or None,
        "reason = {}": chosen.reason or None,
        "received_at >= {}": None if chosen.start_us is None else to_datetime(chosen.start_us),
        "received_at < {}": None if chosen.end_us is None else to_datetime(chosen.end_us),
        "door = {}": chosen.door or None,
        "strpos(lower(message), lower({}::text)) > 0": chosen.text or None,
    }
    for condition, argument in wanted.items():
        if argument is not None:
            arguments.append(argument)
            conditions.append(condition.format(f"${len(arguments)}"))
    return arguments, " AND ".join(conditions)


def _letter(row: asyncpg.Record) -> KeptLetter:
    last_replay_at = row["last_replay_at"]
    return KeptLetter(
        dead_letter_id=row["dead_letter_id"],
        device_ids=row["device_ids"],
        device_count=row["device_count"],
        principal=row["principal"],
        received_us=from_datetime(row["received_at"]),
        reason=row["reason"],
        message=row["message"],
        sample_count=row["sample_count"],
        door=row["door"],
        writer_id=row["writer_id"] or "",
        sequence=row["sequence"] or 0,
        request_id=row["request_id"] or "",
        message_id=row["message_id"] or "",
        backfill_id=row["backfill_id"] or "",
        trace_id=row["trace_id"] or "",
        replay_count=row["replay_count"],
        last_replay_us=None if last_replay_at is None else from_datetime(last_replay_at),
        payload_format=PayloadFormat(row["payload_format"]),
        payload_bytes=row["payload_bytes"],
    )
