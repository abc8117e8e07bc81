"""Dead letters in the commit that makes them, and in the one that ends them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from meshkit import db
from meshkit.errors import Unavailable
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.dead_letter_store import DeadLetterStore, LetterFilter
from telemetry_store.maintenance.dead_letters import expire_dead_letters
from telemetry_store.requests import DeadLetter, PayloadFormat, Replay, RequestIdentity, WriteRequest
from tests.store.writing import (
    T0,
    admin,
    columns,
    numbered,
    request,
    running_writer,
    stored_ints,
    terminate,
    until_blocked,
)


def letter(payload: str = "sent", *, reason: str = "METRIC_UNKNOWN", samples: int = 1) -> DeadLetter:
    return DeadLetter(
        ["pump-1", "pump-2"],
        "user:ada",
        T0,
        reason,
        "why",
        payload.encode(),
        PayloadFormat.READINGS,
        sample_count=samples,
    )


def replay(
    dead_letter_id: int,
    *,
    count: int = 0,
    left: Sequence[DeadLetter] = (),
    tenant: str = "demo",
    value: Any = 1,
) -> WriteRequest:
    """Return a replay that stores one sample."""
    made = request(None, columns(Kind.INT, [(1, 1, value)]), tenant=tenant)
    return replace(made, replay=Replay(dead_letter_id, count), dead_letters=left, door="replay")


async def kept(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT reason, convert_from(payload, 'UTF8'), replay_count FROM telemetry.dead_letter ORDER BY 2"
    )
    return [tuple(row) for row in rows]


async def one_letter(database: TestDatabase, connection: asyncpg.Connection) -> int:
    async with running_writer(database) as writer:
        await writer.write(replace(request(RequestIdentity("first")), dead_letters=[letter()]))
    return int(await connection.fetchval("SELECT dead_letter_id FROM telemetry.dead_letter"))


async def test_letters_say_what_they_come_from_and_a_duplicate_leaves_none(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    counted: list[Any] = []
    async with running_writer(
        database, on_group=lambda stored, _: counted.append(dict(stored.dead_letters))
    ) as writer:
        batch = replace(numbered(1), door="stream", dead_letters=[letter("a"), letter("b", reason="OTHER")])
        for _ in range(2):
            await writer.write(batch)
        await writer.write(replace(request(RequestIdentity("r-1")), door="unary", dead_letters=[letter("c")]))
        await writer.write(replace(request(), door="unary", dead_letters=[letter("d")]))
    rows = await connection.fetch(
        """
        SELECT convert_from(payload, 'UTF8') AS payload, writer_id, sequence, request_id, message_id, door
        FROM telemetry.dead_letter ORDER BY 1
        """
    )
    assert [tuple(row) for row in rows] == [
        ("a", "w", 1, None, None, "stream"),
        ("b", "w", 1, None, None, "stream"),
        ("c", None, None, "r-1", None, "unary"),
        ("d", None, None, None, None, "unary"),
    ]
    assert counted == [
        {("METRIC_UNKNOWN", "stream"): 1, ("OTHER", "stream"): 1},
        {},
        {("METRIC_UNKNOWN", "unary"): 1},
        {("METRIC_UNKNOWN", "unary"): 1},
    ]


async def test_content_that_postgresql_refuses_leaves_the_letter_of_the_refusal(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    bad = replace(
        numbered(1, samples=[columns(Kind.STRING, [(1, 1, "a\0b")])]),
        dead_letters=[letter("part")],
        refused_dead_letters=lambda: [letter("whole", reason="VALUE_REFUSED")],
    )
    async with running_writer(database) as writer:
        for duplicate in (False, True):
            result = await writer.write(bad)
            assert (result.outcome, result.duplicate) == (b"refused w 1", duplicate)
    assert await kept(connection) == [("VALUE_REFUSED", "whole", 0)]


async def test_a_replay_ends_its_letter_in_the_commit_that_stores_its_samples(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    dead_letter_id = await one_letter(database, connection)
    async with running_writer(database) as writer:
        left = [letter("rest", reason="OTHER")]
        assert not (await writer.write(replay(dead_letter_id, left=left))).duplicate
        assert await kept(connection) == [("OTHER", "rest", 1)]
        # Whoever read it before knows another letter.
        assert (await writer.write(replay(dead_letter_id, value=2))).duplicate
        result = await writer.write(replay(dead_letter_id, count=1))
        assert (result.duplicate, result.commit is None) == (False, False)
        assert await kept(connection) == []
        assert (await writer.write(replay(dead_letter_id, count=1))).duplicate
    assert await stored_ints(connection) == [(1, 1, 1), (1, 1, 1)]


async def test_a_replay_that_is_aborted_stores_nothing_and_keeps_the_letter(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    dead_letter_id = await one_letter(database, connection)
    async with running_writer(database) as writer:
        async with connection.transaction():
            # Reached when the letter is deleted and the samples are stored.
            await connection.execute("LOCK TABLE telemetry.ingest_commit IN EXCLUSIVE MODE")
            writing = asyncio.create_task(writer.write(replay(dead_letter_id)))
            async with admin(database) as other:
                await terminate(database, await until_blocked(other))
            with pytest.raises(Unavailable):
                await writing
        assert await kept(connection) == [("METRIC_UNKNOWN", "sent", 0)]
        assert await stored_ints(connection) == []
        assert not (await writer.write(replay(dead_letter_id))).duplicate
    assert await kept(connection) == []
    assert await stored_ints(connection) == [(1, 1, 1)]


async def test_of_replays_at_once_one_stores(database: TestDatabase, connection: asyncpg.Connection) -> None:
    dead_letter_id = await one_letter(database, connection)
    async with running_writer(database) as one, running_writer(database) as other:
        async with connection.transaction():
            await connection.execute("LOCK TABLE telemetry.ingest_commit IN EXCLUSIVE MODE")
            first = [asyncio.create_task(one.write(replay(dead_letter_id))) for _ in range(2)]
            async with admin(database) as looking:
                await until_blocked(looking)
            # The letter is locked, and this one does not wait for it.
            assert (await other.write(replay(dead_letter_id))).duplicate
        assert sorted(result.duplicate for result in await asyncio.gather(*first)) == [False, True]
    assert await stored_ints(connection) == [(1, 1, 1)]


async def test_a_replay_of_another_tenant_s_letter_stores_nothing(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    dead_letter_id = await one_letter(database, connection)
    async with running_writer(database) as writer:
        assert (await writer.write(replay(dead_letter_id, tenant="acme"))).duplicate
    assert (await kept(connection), await stored_ints(connection)) == ([("METRIC_UNKNOWN", "sent", 0)], [])


async def test_a_replay_that_postgresql_refuses_keeps_the_letter_and_costs_nobody_else(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    dead_letter_id = await one_letter(database, connection)
    bad = replace(
        replay(dead_letter_id),
        samples=[columns(Kind.STRING, [(1, 1, "a\0b")])],
        refused_dead_letters=lambda: [letter("sent", reason="VALUE_REFUSED")],
    )
    async with running_writer(database) as writer:
        results = await asyncio.gather(writer.write(bad), writer.write(numbered(1)))
    assert [result.outcome for result in results] == [b"refused content", b"stored w 1"]
    assert await kept(connection) == [("VALUE_REFUSED", "sent", 1)]


async def test_letters_expire_and_only_old_ones(
    database: TestDatabase, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry_store.maintenance.dead_letters._AT_ONCE", 2)
    async with running_writer(database) as writer:
        for tenant in ("demo", "acme"):
            await writer.write(
                replace(request(tenant=tenant), dead_letters=[letter(f"{tenant} {age}") for age in range(4)])
            )
    await connection.execute(
        """
        UPDATE telemetry.dead_letter
        SET received_at = now() - interval '1 day' * right(convert_from(payload, 'UTF8'), 1)::int
        """
    )
    await connection.execute(
        "INSERT INTO telemetry.ingest_policy (tenant_id, dead_letter_retention)"
        " VALUES ('acme', '2 days 1 hour')"
    )
    async with db.pool(database.url("twinmesh_maintenance"), application="test") as pool:
        await expire_dead_letters(pool, keep=timedelta(days=1, hours=1))
    assert [payload for _, payload, _ in await kept(connection)] == [
        *["acme 0", "acme 1", "acme 2", "demo 0", "demo 1"]
    ]


async def test_a_purge_deletes_the_oldest_first_and_no_more_than_it_may(
    database: TestDatabase, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry_store.dead_letter_store._PURGED_AT_ONCE", 2)
    async with running_writer(database) as writer:
        letters = [replace(letter(str(number)), received_us=T0 + number) for number in range(7)]
        await writer.write(replace(request(), dead_letters=letters))
        await writer.write(replace(request(tenant="acme"), dead_letters=[letter("acme")]))
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        store = DeadLetterStore(pool=pool)
        assert await store.purge("demo", LetterFilter(), most=5) == 5
        assert [payload for _, payload, _ in await kept(connection)] == ["5", "6", "acme"]
        assert await store.purge("demo", LetterFilter(text="WHY"), most=5) == 2
    assert [payload for _, payload, _ in await kept(connection)] == ["acme"]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("tenant_id = 'demo' ORDER BY received_at DESC, dead_letter_id DESC LIMIT 100", "dead_letter_newest"),
        ("tenant_id = 'demo' AND device_ids @> ARRAY['pump-1']", "dead_letter_devices"),
        ("tenant_id = 'demo' AND writer_id = 'w' AND sequence = 1", "dead_letter_writer"),
        ("tenant_id = 'demo' AND request_id = 'r'", "dead_letter_request"),
        ("tenant_id = 'demo' AND message_id = 'm'", "dead_letter_message"),
    ],
)
async def test_an_index_serves_each_question(connection: asyncpg.Connection, query: str, index: str) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.dead_letter
            (tenant_id, principal, reason, message, payload, device_ids, received_at)
        SELECT 'demo', 'p', 'R', 'm', '', ARRAY['pump-' || n], now() - n * interval '1 s'
        FROM generate_series(1, 5000) AS n;
        ANALYZE telemetry.dead_letter
        """
    )
    plan = await connection.fetch(f"EXPLAIN SELECT dead_letter_id FROM telemetry.dead_letter WHERE {query}")
    assert index in "\n".join(row[0] for row in plan)
