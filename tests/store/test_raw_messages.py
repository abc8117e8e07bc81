"""The raw audit trail: kept with the commit, found by device, writer and id, nobody's to change."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import db
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.testing.database import TestDatabase
from telemetry_store import device_sets
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.device_sets import DeviceSets
from telemetry_store.maintenance.raw_messages import ensure_raw_days, expire_raw_messages
from telemetry_store.raw_history import RawPlace, RawQuery, RawRow, find_raw_message, list_raw_messages
from telemetry_store.raw_payload import compress, decompress
from telemetry_store.requests import (
    DeviceSet,
    MessageIdentity,
    RawFormat,
    RawMessage,
    RequestIdentity,
    WriteRequest,
    WriterIdentity,
)
from tests.store.writing import columns, numbered, request, running_writer, until_blocked

NOW = SystemClock().now_us()
DAY = timedelta(days=1)
ROLES = ("twinmesh_ingest", "twinmesh_twin_feed", "twinmesh_twin_query", "twinmesh_maintenance")
REFUSED_TEXT = columns(Kind.STRING, [(1, 1, "a\0b")])  # PostgreSQL takes no NUL.


def raw(
    payload: bytes, *devices: str, format: RawFormat = RawFormat.REQUEST, received_us: int = NOW
) -> RawMessage:
    return RawMessage(format, received_us, DeviceSet.of(devices or ("pump-1",)), payload)


def with_raw(write: WriteRequest, *messages: RawMessage) -> WriteRequest:
    return replace(write, raw=messages)


@pytest.fixture
async def ingest(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(database.url("twinmesh_ingest"))
    yield opened
    await opened.close()


@pytest.fixture
async def maintenance(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_maintenance"), application="test") as opened:
        yield opened


async def found(
    ingest: asyncpg.Connection,
    tenant: str = "demo",
    *,
    before: RawPlace | None = None,
    limit: int = 1000,
    start_us: int = NOW - MICROS_PER_DAY,
    end_us: int = NOW + MICROS_PER_DAY,
    **query: Any,
) -> list[RawRow]:
    return await list_raw_messages(
        ingest, tenant, RawQuery(start_us, end_us, **query), before=before, limit=limit
    )


async def payloads(ingest: asyncpg.Connection, rows: Sequence[RawRow], tenant: str = "demo") -> list[bytes]:
    contents = [await find_raw_message(ingest, tenant, row.place) for row in rows]
    return [content.payload for content in contents if content is not None]


async def test_a_message_is_kept_with_what_is_known_of_it(
    database: TestDatabase, ingest: asyncpg.Connection
) -> None:
    async with running_writer(database) as writer:
        await writer.write(
            with_raw(
                numbered(1, writer_id="gw", epoch=None),
                raw(b"definitions", "pump-1", "pump-2", format=RawFormat.SERIES_DEFS),
                raw(b"batch" * 100, "pump-1", format=RawFormat.BATCH, received_us=NOW + 1),
            )
        )
    batch, definitions = await found(ingest)
    assert (batch.format, batch.writer_id, batch.sequence, batch.principal) == (
        RawFormat.BATCH,
        "gw",
        1,
        "user:ada",
    )
    assert (definitions.format, definitions.sequence) == (RawFormat.SERIES_DEFS, 0)
    assert (batch.device_ids, definitions.device_ids) == (["pump-1"], ["pump-1", "pump-2"])
    assert batch.size == 500 > batch.stored_size
    assert await payloads(ingest, [batch, definitions]) == [b"batch" * 100, b"definitions"]


async def test_a_batch_tells_where_its_definitions_are(
    database: TestDatabase, ingest: asyncpg.Connection
) -> None:
    async with running_writer(database) as writer:
        epoch = (await writer.open_writer(tenant="demo", principal="user:ada", writer_id="gw")).epoch
        defined = raw(b"d", format=RawFormat.SERIES_DEFS)
        await writer.write(
            with_raw(numbered(1, writer_id="gw", epoch=epoch), defined, raw(b"1", format=RawFormat.BATCH))
        )
        await writer.write(
            with_raw(
                numbered(2, writer_id="gw", epoch=epoch),
                raw(b"2", format=RawFormat.BATCH, received_us=NOW + 5),
            )
        )
        await writer.write(
            with_raw(
                numbered(1, writer_id="other"), raw(b"3", format=RawFormat.SERIES_DEFS, received_us=NOW + 1)
            )
        )
    newest = (await found(ingest, writer_id="gw"))[0]
    content = await find_raw_message(ingest, "demo", newest.place)
    assert content is not None
    assert content.payload == b"2"
    (place,) = content.definitions
    definitions = await find_raw_message(ingest, "demo", place)
    assert definitions is not None
    assert (definitions.payload, definitions.definitions) == (b"d", [])


async def test_messages_are_found_by_device_sender_id_and_time_page_by_page(
    database: TestDatabase, ingest: asyncpg.Connection
) -> None:
    async with running_writer(database) as writer:
        for number in range(6):
            await writer.write(
                with_raw(
                    request(RequestIdentity(f"r{number}"), principal=f"user:{number % 2}"),
                    raw(
                        str(number).encode(),
                        "hub",
                        f"pump-{number % 3}",
                        received_us=NOW + number * MICROS_PER_SECOND,
                    ),
                )
            )
        await writer.write(with_raw(numbered(1, writer_id="gw"), raw(b"gw", "pump-1", received_us=NOW + 100)))

    async def numbers(**query: Any) -> list[bytes]:
        return await payloads(ingest, await found(ingest, **query))

    assert await numbers() == [b"5", b"4", b"3", b"2", b"1", b"gw", b"0"]
    assert await numbers(device_id="pump-1") == [b"4", b"1", b"gw"]
    assert await numbers(device_id="hub", principal="user:1") == [b"5", b"3", b"1"]
    assert await numbers(device_id="pump") == []
    assert await numbers(principal="user:0") == [b"4", b"2", b"0"]
    assert await numbers(request_id="r3") == [b"3"]
    assert await numbers(writer_id="gw") == [b"gw"]
    second = NOW + 2 * MICROS_PER_SECOND
    assert await numbers(start_us=second, end_us=second + 2 * MICROS_PER_SECOND) == [b"3", b"2"]
    assert await numbers(device_id="hub", start_us=second, end_us=second + 1) == [b"2"]
    queries: list[dict[str, Any]] = [{}, {"device_id": "hub"}]
    for query in queries:
        pages: list[bytes] = []
        place: RawPlace | None = None
        while page := await found(ingest, before=place, limit=2, **query):
            pages += await payloads(ingest, page)
            place = page[-1].place
        assert pages == await numbers(**query)


class Explaining:
    """A connection that tells how it would answer, instead of answering."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.plan = ""

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        rows = await self._connection.fetch(f"EXPLAIN {statement}", *arguments)
        self.plan = "\n".join(row[0] for row in rows)
        return []


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({}, "pkey"),
        ({"device_id": "pump-7"}, "device_set_id"),
        ({"writer_id": "gw-7"}, "writer_id"),
        ({"principal": "user:7"}, "principal"),
        ({"request_id": "r7"}, "request_id"),
    ],
)
async def test_messages_are_found_by_indexes(
    ingest: asyncpg.Connection, connection: asyncpg.Connection, query: dict[str, Any], index: str
) -> None:
    await connection.execute(
        """
        WITH sets AS (
            INSERT INTO telemetry.raw_device_set (tenant_id, day, digest, device_ids)
            SELECT 'demo', (now() AT TIME ZONE 'UTC')::date, int4send(n), ARRAY['pump-' || n]
            FROM generate_series(1, 1000) AS n
            RETURNING device_set_id AS n
        )
        INSERT INTO telemetry.raw_message
            (tenant_id, received_at, format, door, principal, writer_id, request_id, device_set_id, size,
             payload)
        SELECT 'demo', now(), 4, 'mqtt', 'user:' || n, 'gw-' || n, 'r' || n, n, 1, ''
        FROM sets, generate_series(1, 10)
        """
    )
    await connection.execute("ANALYZE telemetry.raw_device_set, telemetry.raw_message")
    explaining: Any = Explaining(ingest)
    await found(explaining, **query)
    today = f"{datetime.now(UTC):%Y%m%d}"
    assert f"Seq Scan on raw_message_{today}" not in explaining.plan
    assert re.search(rf"Index.* raw_message_{today}_\S*{index}", explaining.plan), explaining.plan


@pytest.mark.parametrize("identity", [WriterIdentity("w", 1), RequestIdentity("r")])
async def test_what_came_before_is_not_kept_again(
    database: TestDatabase, ingest: asyncpg.Connection, identity: WriterIdentity | RequestIdentity
) -> None:
    async with running_writer(database) as writer:
        for _ in range(2):
            await writer.write(with_raw(request(identity), raw(b"once")))
    assert await payloads(ingest, await found(ingest)) == [b"once"]


async def test_of_messages_only_new_ones_are_kept(database: TestDatabase, ingest: asyncpg.Connection) -> None:
    def delivered(*sequences: int) -> WriteRequest:
        return WriteRequest(
            tenant="demo",
            principal="mqtt",
            identity=MessageIdentity(
                stream="s",
                sequences=sequences,
                samples=[np.arange(len(sequences), dtype=np.int32)],
                dead_letters=[],
                outcomes=[b""] * len(sequences),
                raw=range(len(sequences)),
            ),
            digest=b"",
            samples=[columns(Kind.INT, [(1, sequence, 1) for sequence in sequences])],
            outcome=b"",
            refused_outcome=b"",
            raw=[raw(str(each).encode(), format=RawFormat.MESSAGE) for each in sequences],
        )

    async with running_writer(database) as writer:
        await writer.write(delivered(1, 3))
        await writer.write(delivered(1, 2, 3, 4))
    rows = await found(ingest)
    assert sorted(row.request_id for row in rows) == ["s:1", "s:2", "s:3", "s:4"]
    for row in rows:
        assert await payloads(ingest, [row]) == [row.request_id.removeprefix("s:").encode()]


async def test_what_postgresql_refuses_is_kept_all_the_same(
    database: TestDatabase, ingest: asyncpg.Connection
) -> None:
    async with running_writer(database) as writer:
        result = await writer.write(
            with_raw(request(RequestIdentity("r"), REFUSED_TEXT, content="bad"), raw(b"bad"))
        )
        assert result.outcome == b"refused bad"
    assert await payloads(ingest, await found(ingest)) == [b"bad"]


async def test_two_processes_keep_a_set_once(
    database: TestDatabase, ingest: asyncpg.Connection, connection: asyncpg.Connection
) -> None:
    async with running_writer(database) as one, running_writer(database) as other:
        for number, writer in enumerate([one, other, one]):
            await writer.write(
                with_raw(
                    request(RequestIdentity(f"r{number}")), raw(b"x", "a", "b", received_us=NOW + number)
                )
            )
    assert await connection.fetchval("SELECT count(*) FROM telemetry.raw_device_set") == 1
    assert len(await found(ingest, device_id="b")) == 3


async def test_a_set_that_another_process_keeps_just_now_is_waited_for(
    ingest: asyncpg.Connection, connection: asyncpg.Connection
) -> None:
    kept = with_raw(request(), raw(b"x", "a"))
    (tenant, day, digest) = device_sets.key("demo", NOW, DeviceSet.of(["a"]))
    async with connection.transaction():
        number = await connection.fetchval(
            "INSERT INTO telemetry.raw_device_set (tenant_id, day, digest, device_ids)"
            " VALUES ($1, $2, $3, '{a}') RETURNING device_set_id",
            tenant,
            day,
            digest,
        )
        resolving = asyncio.create_task(DeviceSets().resolve(ingest, [kept]))
        await until_blocked(connection)
    assert await resolving == {(tenant, day, digest): number}


async def test_remembered_sets_are_bounded(ingest: asyncpg.Connection) -> None:
    sets = DeviceSets(remembered=3)
    wanted = [with_raw(request(), raw(b"x", f"pump-{number}")) for number in range(5)]
    ids = await sets.resolve(ingest, wanted)
    assert len(ids) == len(set(ids.values())) == 5
    assert len(sets) == 3
    assert await sets.resolve(ingest, wanted) == ids


@given(st.lists(st.binary(max_size=2000), max_size=5), st.integers(0, 40))
def test_payloads_come_back_as_they_were(contents: list[bytes], repeated: int) -> None:
    sent = [content * repeated for content in contents]
    assert [decompress(frame) for frame in compress(sent)] == sent


_IDS = st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?", fullmatch=True), min_size=1, max_size=6)


@given(_IDS, _IDS)
def test_sets_are_equal_when_their_devices_are(some: list[str], others: list[str]) -> None:
    one, other = DeviceSet.of(some), DeviceSet.of(others)
    assert (one == other) == (one.digest == other.digest) == (set(some) == set(others))
    assert list(one.device_ids) == sorted(set(some))


async def test_tenants_see_their_own(database: TestDatabase, ingest: asyncpg.Connection) -> None:
    async with running_writer(database) as writer:
        for tenant in ("demo", "acme"):
            await writer.write(
                with_raw(request(RequestIdentity("r"), tenant=tenant), raw(tenant.encode(), "pump-1"))
            )
    queries: list[dict[str, Any]] = [
        {},
        {"device_id": "pump-1"},
        {"request_id": "r"},
        {"principal": "user:ada"},
    ]
    for tenant, other in (("demo", "acme"), ("acme", "demo")):
        for query in queries:
            rows = await found(ingest, tenant, **query)
            assert await payloads(ingest, rows, tenant) == [tenant.encode()]
        assert await find_raw_message(ingest, other, rows[0].place) is None
    assert await found(ingest, "nobody") == []


async def test_no_role_may_change_or_delete(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        """
        SELECT role, object.relname, privilege
        FROM unnest($1::text[]) AS role
        CROSS JOIN pg_class AS object
        CROSS JOIN unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege
        WHERE object.relnamespace = 'telemetry'::regnamespace AND object.relkind IN ('r', 'p')
          AND (object.relname ~ '^raw_message' OR object.relname ~ '^raw_device_set')
          AND has_table_privilege(role, object.oid, privilege)
        """,
        ROLES,
    )
    assert [tuple(row) for row in rows] == []
    owned = await connection.fetchval(
        """
        SELECT count(*) FROM pg_class AS object JOIN pg_roles AS owner ON owner.oid = object.relowner
        WHERE object.relname ~ '^raw_' AND owner.rolname = ANY ($1)
        """,
        ROLES,
    )
    assert owned == 0
    partitions = await connection.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry.raw_message'::regclass"
    )
    assert partitions == 4


@pytest.mark.parametrize("role", ROLES)
async def test_attempts_to_change_or_delete_fail(
    database: TestDatabase, connection: asyncpg.Connection, role: str
) -> None:
    async with running_writer(database) as writer:
        await writer.write(with_raw(request(RequestIdentity("r")), raw(b"x")))
    partition = await connection.fetchval("SELECT tableoid::regclass::text FROM telemetry.raw_message")
    intruder = await asyncpg.connect(database.url(role))
    try:
        for table in ("telemetry.raw_message", partition):
            for statement in (
                f"UPDATE {table} SET payload = ''",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"DROP TABLE {table}",
                f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await intruder.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await intruder.execute("UPDATE telemetry.raw_device_set SET device_ids = '{}'")
    finally:
        await intruder.close()
    assert await connection.fetchval("SELECT count(*) FROM telemetry.raw_message") == 1


async def make_old(connection: asyncpg.Connection, tenant: str, *ages: timedelta) -> None:
    """Keep a message of each age, in partitions as maintenance makes them."""
    for age in ages:
        moment = datetime.now(UTC) - age
        day = moment.date()
        name = f"telemetry.raw_message_{day:%Y%m%d}"
        if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
            bounds = f"FOR VALUES FROM ('{day}') TO ('{day + DAY}')"
            await connection.execute(f"CREATE TABLE {name} PARTITION OF telemetry.raw_message {bounds}")
            await connection.execute(
                f"CREATE TABLE telemetry.raw_device_set_{day:%Y%m%d}"
                f" PARTITION OF telemetry.raw_device_set {bounds}"
            )
        await connection.execute(
            """
            INSERT INTO telemetry.raw_message
                (tenant_id, received_at, format, door, principal, device_set_id, size, payload)
            VALUES ($1, $2, 4, 'mqtt', 'mqtt', 1, 0, '')
            """,
            tenant,
            moment,
        )


async def ages(connection: asyncpg.Connection, tenant: str) -> list[int]:
    rows = await connection.fetch(
        "SELECT round(extract(epoch FROM now() - received_at) / 3600)::int AS hours"
        " FROM telemetry.raw_message WHERE tenant_id = $1 ORDER BY 1",
        tenant,
    )
    return [row["hours"] for row in rows]


async def days(connection: asyncpg.Connection, table: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT right(inhrelid::regclass::text, 8) AS day FROM pg_inherits"
        " WHERE inhparent = $1::regclass ORDER BY 1",
        table,
    )
    return [row["day"] for row in rows]


async def test_each_tenant_keeps_as_long_as_it_says(
    connection: asyncpg.Connection, maintenance: asyncpg.Pool
) -> None:
    for tenant in ("demo", "acme", "short"):
        await make_old(connection, tenant, *(timedelta(hours=hours) for hours in (1, 30, 100, 240, 500)))
    await expire_raw_messages(
        maintenance, kept=3 * DAY, kept_by_tenant={"acme": 10 * DAY + DAY / 2, "short": DAY}
    )
    assert await ages(connection, "demo") == [1, 30]
    assert await ages(connection, "acme") == [1, 30, 100, 240]
    assert await ages(connection, "short") == [1]
    kept = await days(connection, "telemetry.raw_message")
    assert f"{datetime.now(UTC) - timedelta(hours=500):%Y%m%d}" not in kept
    assert f"{datetime.now(UTC) - timedelta(hours=240):%Y%m%d}" in kept
    assert await days(connection, "telemetry.raw_device_set") == kept


async def test_more_is_deleted_than_goes_at_once(
    connection: asyncpg.Connection, maintenance: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry_store.maintenance.raw_messages._DELETED_AT_ONCE", 2)
    await make_old(connection, "demo", *(timedelta(hours=30, minutes=each) for each in range(5)))
    await expire_raw_messages(maintenance, kept=DAY, kept_by_tenant={"acme": 10 * DAY})
    assert await ages(connection, "demo") == []


async def test_days_are_made_ahead(
    database: TestDatabase, connection: asyncpg.Connection, maintenance: asyncpg.Pool
) -> None:
    for table in ("raw_message", "raw_device_set"):
        for day in await days(connection, f"telemetry.{table}"):
            await connection.execute(f"DROP TABLE telemetry.{table}_{day}")
    await ensure_raw_days(maintenance)
    today = datetime.now(UTC).date()
    made = [f"{today + timedelta(days=day):%Y%m%d}" for day in (-1, 0, 1, 2)]
    assert await days(connection, "telemetry.raw_message") == made
    assert await days(connection, "telemetry.raw_device_set") == made
    await ensure_raw_days(maintenance)
    async with running_writer(database) as writer:
        await writer.write(with_raw(request(RequestIdentity("r")), raw(b"x")))
    assert await connection.fetchval("SELECT count(DISTINCT raw_message_id) FROM telemetry.raw_message") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT telemetry.drop_raw_days('23 hours')",
        "SELECT telemetry.drop_raw_days('-1 day')",
        "SELECT telemetry.expire_raw_messages('demo', '23 hours', 1)",
        "SELECT telemetry.ensure_raw_days(32)",
    ],
)
async def test_maintenance_cannot_end_what_is_younger_than_a_day(
    maintenance: asyncpg.Pool, statement: str
) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await maintenance.execute(statement)
