"""Dead letters in a group's transaction: what was refused is kept, and what is replayed ends."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from meshkit.clock import to_datetime
from meshkit.db import Connection
from telemetry_store.batch import Batch, LetterKey
from telemetry_store.requests import DeadLetter, MessageIdentity, RequestIdentity, WriterIdentity

_COLUMNS = (
    "tenant_id",
    "principal",
    "received_at",
    "reason",
    "message",
    "payload",
    "payload_format",
    "device_ids",
    "sample_count",
    "backfill_id",
    "trace_id",
    "door",
    "writer_id",
    "sequence",
    "request_id",
    "message_id",
)
_Source = tuple[str | None, int | None, str | None, str | None]


async def keep(connection: Connection, batches: Sequence[Batch]) -> Mapping[tuple[str, str], int]:
    """Keep the dead letters of batches that are taken, and end those that they come from.

    Args:
        connection: in the transaction that stores the batches, and has claimed their letters.
        batches: in arrival order.

    Returns:
        How many letters are new, by reason and door.
    """
    counts: Counter[tuple[str, str]] = Counter()
    records: list[tuple[Any, ...]] = []
    replayed: list[Batch] = []
    for batch in batches:
        if batch.request.replay is not None:
            replayed.append(batch)
            continue
        for letter, source in zip(batch.dead_letters, _sources(batch), strict=False):
            counts[letter.reason, batch.request.door] += 1
            records.append((batch.request.tenant, *_values(letter), batch.request.door, *source))
    if records:
        await connection.copy_records_to_table(
            "dead_letter", schema_name="telemetry", columns=_COLUMNS, records=records
        )
    if replayed:
        await _settle(connection, replayed)
    return counts


async def claim(connection: Connection, replays: Sequence[Batch]) -> set[LetterKey]:
    """Lock the dead letters that batches come from until the transaction ends.

    Waits for nobody: what another replay, or whoever purges, holds locked is not claimed.

    Args:
        connection: in the transaction that stores the batches.
        replays: each of another letter.

    Returns:
        The letters that are still as they were read.
    """
    keys = [(batch.letter_key, batch.request.replay) for batch in replays]
    rows = await connection.fetch(
        """
        SELECT held.tenant_id, held.dead_letter_id
        FROM telemetry.dead_letter AS held
        JOIN unnest($1::text[], $2::bigint[], $3::integer[])
            AS wanted (tenant_id, dead_letter_id, replay_count)
            USING (tenant_id, dead_letter_id, replay_count)
        FOR UPDATE OF held SKIP LOCKED
        """,
        [key[0] for key, _ in keys if key is not None],
        [key[1] for key, _ in keys if key is not None],
        [replay.replay_count for _, replay in keys if replay is not None],
    )
    return {(row["tenant_id"], row["dead_letter_id"]) for row in rows}


async def _settle(connection: Connection, replayed: Sequence[Batch]) -> None:
    """Delete the letters of which nothing is left; of others keep what is."""
    left: list[tuple[Any, ...]] = []
    gone: list[LetterKey] = []
    for batch in replayed:
        key = batch.letter_key
        assert key is not None  # noqa: S101 - as the caller knows
        letters = batch.dead_letters
        if not letters:
            gone.append(key)
        for letter in letters:
            left.append(
                (
                    *key,
                    list(letter.device_ids),
                    letter.reason,
                    letter.message,
                    letter.payload,
                    letter.payload_format.value,
                    letter.sample_count,
                )
            )
    if gone:
        await connection.execute(
            """
            DELETE FROM telemetry.dead_letter
            USING unnest($1::text[], $2::bigint[]) AS gone (tenant_id, dead_letter_id)
            WHERE dead_letter.tenant_id = gone.tenant_id AND dead_letter.dead_letter_id = gone.dead_letter_id
            """,
            [tenant for tenant, _ in gone],
            [letter_id for _, letter_id in gone],
        )
    if left:
        await connection.executemany(
            """
            UPDATE telemetry.dead_letter
            SET device_ids = $3, reason = $4, message = $5, payload = $6, payload_format = $7,
                sample_count = $8, replay_count = replay_count + 1, last_replay_at = now()
            WHERE tenant_id = $1 AND dead_letter_id = $2
            """,
            left,
        )


def _values(letter: DeadLetter) -> tuple[str, datetime, str, str, bytes, int, list[str], int, Any, Any]:
    return (
        letter.principal,
        to_datetime(letter.received_us),
        letter.reason,
        letter.message,
        letter.payload,
        letter.payload_format.value,
        list(letter.device_ids),
        letter.sample_count,
        letter.backfill_id or None,
        letter.trace_id or None,
    )


def _sources(batch: Batch) -> Iterator[_Source]:
    """Yield for each letter of a batch what it comes from: writer and sequence, request id or message."""
    match batch.request.identity:
        case MessageIdentity() as messages:
            for place in messages.dead_letters:
                yield None, None, None, messages.name(place)
            return
        case WriterIdentity(writer_id, sequence):
            source: _Source = (writer_id, sequence, None, None)
        case RequestIdentity(request_id):
            source = (None, None, request_id, None)
        case _:
            source = (None, None, None, None)
    while True:
        yield source
