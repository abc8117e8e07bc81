"""Messages of a stream, each exactly once: its samples, and why something of it was refused."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.errors import DomainError
from meshkit.testing.database import TestDatabase
from telemetry_store import request_ids
from telemetry_store.columns import Kind
from telemetry_store.requests import DeadLetter, MessageIdentity, PayloadFormat, WriteRequest
from telemetry_store.writer import TelemetryWriter
from tests.store.writing import T0, admin, columns, reason_of, running_writer, until_blocked


def delivery(
    *sequences: int, stream: str = "s1", tenant: str = "demo", tag: str = "", text: str = ""
) -> WriteRequest:
    """Return messages that came together.

    Message n states sample n in the int series 1 and, when it is even, in series 2; every third
    one is a dead letter as well, every fifth nothing else.
    """
    ints: list[tuple[int, int, int]] = []
    int_places: list[int] = []
    strings: list[tuple[int, int, str]] = []
    string_places: list[int] = []
    letters: list[DeadLetter] = []
    letter_places: list[int] = []
    for place, sequence in enumerate(sequences):
        if sequence % 5:
            for series in (1, 2) if sequence % 2 == 0 else (1,):
                ints.append((series, sequence, sequence))
                int_places.append(place)
            strings.append((3, sequence, text or f"text {sequence}"))
            string_places.append(place)
        if sequence % 3 == 0 or sequence % 5 == 0:
            letters.append(letter(sequence, tag))
            letter_places.append(place)
    return WriteRequest(
        tenant=tenant,
        principal="mqtt",
        identity=MessageIdentity(
            stream=stream,
            sequences=sequences,
            samples=[np.array(int_places, np.int32), np.array(string_places, np.int32)],
            dead_letters=letter_places,
            outcomes=[f"message {sequence}".encode() for sequence in sequences],
        ),
        digest=b"",
        samples=[columns(Kind.INT, ints), columns(Kind.STRING, strings)],
        outcome=b"",
        refused_outcome=b"",
        dead_letters=letters,
    )


def letter(sequence: int, tag: str = "") -> DeadLetter:
    payload = f"{tag}{sequence}".encode()
    return DeadLetter(
        ["pump-1"],
        "mqtt",
        T0 + sequence,
        "MESSAGE_MALFORMED",
        "why",
        payload,
        PayloadFormat.MESSAGE,
        sample_count=2,
        trace_id="ab" * 16,
    )


def ints_of(sequences: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return what `stored_ints` finds when each of these messages is stored once."""
    return sorted(
        (series, sequence, sequence)
        for sequence in set(sequences)
        if sequence % 5
        for series in ((1, 2) if sequence % 2 == 0 else (1,))
    )


def letters_of(sequences: Sequence[int]) -> list[str]:
    return sorted(str(sequence) for sequence in set(sequences) if sequence % 3 == 0 or sequence % 5 == 0)


async def stored_letters(connection: asyncpg.Connection, tenant: str = "demo") -> list[str]:
    rows = await connection.fetch("SELECT payload FROM telemetry.dead_letter WHERE tenant_id = $1", tenant)
    return sorted(row["payload"].decode() for row in rows)


async def stored_ints(connection: asyncpg.Connection) -> list[tuple[int, int, int]]:
    rows = await connection.fetch(
        """
        SELECT series_id, sample.time, sample.value
        FROM telemetry.segment, unnest(times, ints) AS sample (time, value)
        WHERE ints IS NOT NULL
        ORDER BY series_id, sample.time
        """
    )
    return [(row["series_id"], row["time"] - T0, row["value"]) for row in rows]


async def holds(connection: asyncpg.Connection, sequences: Sequence[int]) -> bool:
    found = await connection.fetch(
        "SELECT unnest(strings) AS text FROM telemetry.segment WHERE strings IS NOT NULL"
    )
    texts = Counter(row["text"] for row in found)
    assert texts == Counter(f"text {sequence}" for sequence in set(sequences) if sequence % 5)
    assert await stored_ints(connection) == ints_of(sequences)
    assert await stored_letters(connection) == letters_of(sequences)
    return True


async def test_messages_are_stored_with_their_dead_letters_in_one_commit(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        result = await writer.write(delivery(1, 2, 3, 4, 5, 6))
        assert not result.duplicate
        assert result.commit is not None
        assert await holds(connection, range(1, 7))
        # Rows of one transaction have the same xmin.
        assert (
            await connection.fetchval(
                """
            SELECT count(DISTINCT xmin::text) FROM (
                SELECT xmin FROM telemetry.dead_letter UNION ALL SELECT xmin FROM telemetry.segment
                UNION ALL SELECT xmin FROM telemetry.request_id
            ) AS rows
            """
            )
            == 1
        )
        (row,) = await connection.fetch("SELECT * FROM telemetry.dead_letter WHERE payload = '3'")
        assert row["received_at"] - datetime.fromtimestamp(0, row["received_at"].tzinfo) == timedelta(
            microseconds=T0 + 3
        )
        kept = [row[name] for name in ("tenant_id", "principal", "reason", "message", "trace_id")]
        assert kept == ["demo", "mqtt", "MESSAGE_MALFORMED", "why", "ab" * 16]
        assert (row["device_ids"], row["payload_format"], row["sample_count"]) == (["pump-1"], 1, 2)
        assert (row["message_id"], row["writer_id"], row["request_id"]) == ("s1:3", None, None)
        # Soon after a boundary an id is in two windows.
        remembered = await connection.fetch(
            "SELECT DISTINCT request_id, outcome FROM telemetry.request_id ORDER BY 1"
        )
        assert [tuple(each) for each in remembered] == [
            (f"s1:{sequence}", f"message {sequence}".encode()) for sequence in range(1, 7)
        ]


async def test_messages_that_are_known_are_left_out_and_the_rest_is_stored(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(delivery(2, 3))
        again = await writer.write(delivery(2, 3))
        assert (again.duplicate, again.commit) == (True, None)
        partly = await writer.write(delivery(1, 2, 3, 4, 6))
        assert not partly.duplicate
        assert (await writer.write(delivery(6, 5, 3))).duplicate is False
        assert await holds(connection, range(1, 7))


async def test_repeated_in_one_group_a_message_is_stored_once(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        results = await asyncio.gather(
            *(
                writer.write(each)
                for each in (delivery(1, 2, 3), delivery(3, 4), delivery(1, 3), delivery(6, 4))
            )
        )
        assert [result.duplicate for result in results] == [False, False, True, False]
        assert await connection.fetchval("SELECT count(*) FROM telemetry.ingest_commit") == 1
        assert await holds(connection, [1, 2, 3, 4, 6])


async def test_repeated_within_one_delivery_a_message_is_stored_once(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        result = await writer.write(delivery(3, 2, 3, 5, 3, 5))
        assert not result.duplicate
        assert (await writer.write(delivery(5, 5))).duplicate
        assert await holds(connection, [2, 3, 5])


async def test_a_stream_made_anew_counts_anew(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(delivery(3))
        assert not (await writer.write(delivery(3, stream="s2", tag="new "))).duplicate
        assert not (await writer.write(delivery(3, tenant="acme"))).duplicate
        assert await stored_letters(connection) == ["3", "new 3"]
        assert await stored_letters(connection, "acme") == ["3"]


async def test_two_processes_at_once_store_a_message_once(database: TestDatabase) -> None:
    async with running_writer(database) as one, running_writer(database) as other, admin(database) as held:
        # Whoever comes second waits for the first one's numbers, which wait for this.
        async with held.transaction():
            await held.execute("LOCK TABLE telemetry.ingest_commit IN EXCLUSIVE MODE")
            first = asyncio.create_task(one.write(delivery(6, 1, 2, 3)))
            await until_blocked(held, 1)
            second = asyncio.create_task(other.write(delivery(3, 4, 1, 9)))
            await until_blocked(held, 2)
        assert [result.duplicate for result in await asyncio.gather(first, second)] == [False, False]
        assert await holds(held, [1, 2, 3, 4, 6, 9])
        assert (await one.write(delivery(9, 4))).duplicate


async def test_many_processes_take_the_same_messages_in_any_order(database: TestDatabase) -> None:
    async with (
        running_writer(database) as one,
        running_writer(database) as other,
        admin(database) as connection,
    ):
        orders = [range(1, 30), range(29, 0, -1), [*range(15, 30), *range(1, 15)], range(1, 30, 2)]
        await asyncio.gather(*(writer.write(delivery(*order)) for order in orders for writer in (one, other)))
        assert await holds(connection, range(1, 30))


async def test_messages_are_known_across_a_window_s_boundary(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = timedelta()

    def shifted(now: datetime, windows_of=request_ids.windows_of) -> tuple[datetime, ...]:  # type: ignore[no-untyped-def]
        # Just before a boundary, and then soon after it.
        present = now - (now - request_ids._EPOCH) % request_ids.WINDOW
        found: tuple[datetime, ...] = windows_of(present - timedelta(seconds=1) + shift)
        return found

    monkeypatch.setattr(request_ids, "windows_of", shifted)
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(delivery(1, 2, 3))
        for later in (timedelta(seconds=2), timedelta(seconds=62), timedelta(minutes=14)):
            shift = later
            assert (await writer.write(delivery(3, 2, 1))).duplicate
        await writer.write(delivery(3, 4, 6))
        windows = await connection.fetchval("SELECT count(DISTINCT window_start) FROM telemetry.request_id")
        assert windows == 2
        assert await holds(connection, [1, 2, 3, 4, 6])


async def test_a_value_that_postgresql_refuses_refuses_its_delivery_and_no_other(
    database: TestDatabase,
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        deliveries = [delivery(1, 2), delivery(3, 4, text="a\0b"), delivery(4, 6), delivery(7, tenant="acme")]
        results = await asyncio.gather(*(writer.write(each) for each in deliveries), return_exceptions=True)
        assert [isinstance(result, BaseException) for result in results] == [False, True, False, False]
        assert isinstance(results[1], DomainError)
        assert reason_of(results[1]) == "VALUE_REFUSED"
        # Nothing of it is remembered, so its caller may try with each message alone.
        with pytest.raises(DomainError):
            await writer.write(delivery(3, text="a\0b"))
        assert not (await writer.write(delivery(3, 4))).duplicate
        assert ints_of([1, 2, 3, 4, 6, 7]) == await stored_ints(connection)
        assert await stored_letters(connection) == ["3", "6"]


async def test_a_text_of_a_dead_letter_can_be_refused_as_well(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        bad = delivery(5)
        object.__setattr__(bad.dead_letters[0], "message", "a\0b")
        with pytest.raises(DomainError) as caught:
            await writer.write(bad)
        assert reason_of(caught.value) == "VALUE_REFUSED"
        assert not (await writer.write(delivery(5))).duplicate
        assert await holds(connection, [5])


async def test_dead_letters_are_kept_apart_and_read_by_ingest_alone(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.write(delivery(3))
        await writer.write(delivery(3, tenant="acme"))
    for role in (
        "twinmesh_twin_query",
        "twinmesh_twin_feed",
        "twinmesh_asset",
        "twinmesh_auth",
    ):
        try:
            connection = await asyncpg.connect(database.url(role))
        except asyncpg.InvalidAuthorizationSpecificationError:
            pytest.fail(f"no role {role}")
        try:
            await connection.execute("SELECT set_config('twinmesh.tenant', 'demo', false)")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch("SELECT * FROM telemetry.dead_letter")
        finally:
            await connection.close()
    async with admin(database) as connection:
        (secured,) = await connection.fetch(
            """
            SELECT relrowsecurity, relforcerowsecurity FROM pg_class
            WHERE oid = 'telemetry.dead_letter'::regclass
            """
        )
        assert tuple(secured) == (True, True)
        # Whoever is granted to read them sees none without a policy of its own.
        await connection.execute("GRANT SELECT ON telemetry.dead_letter TO twinmesh_twin_query")
    connection = await asyncpg.connect(database.url("twinmesh_twin_query"))
    try:
        await connection.execute("SELECT set_config('twinmesh.tenant', 'demo', false)")
        assert await connection.fetch("SELECT * FROM telemetry.dead_letter") == []
    finally:
        await connection.close()


DELIVERIES = st.lists(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=12), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)
_run = 0


@given(rounds=DELIVERIES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_deliveries_end_in_each_message_exactly_once(
    rounds: list[list[list[int]]], database: TestDatabase
) -> None:
    """Rounds follow each other; the deliveries of one come at once, to two processes in turn."""
    global _run  # noqa: PLW0603 - a name for each example: they share the database
    _run += 1
    stream = f"run-{_run}"
    async with admin(database) as connection:
        await connection.execute("TRUNCATE telemetry.segment, telemetry.dead_letter")
        async with running_writer(database) as one, running_writer(database) as other:
            for deliveries in rounds:
                writers = [(one, other)[place % 2] for place in range(len(deliveries))]
                await _deliver(writers, deliveries, stream)
        assert await holds(connection, [each for taken in rounds for found in taken for each in found])


async def _deliver(writers: Sequence[TelemetryWriter], deliveries: Sequence[list[int]], stream: str) -> None:
    await asyncio.gather(
        *(
            writer.write(delivery(*sequences, stream=stream))
            for writer, sequences in zip(writers, deliveries, strict=True)
        )
    )
