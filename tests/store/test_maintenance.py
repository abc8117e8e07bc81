"""The maintenance worker, alone and among others."""

import asyncio
import re
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenacity import RetryCallState

from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from telemetry_store.instances import LOCK_CLASS
from telemetry_store.maintenance import worker as worker_module
from telemetry_store.maintenance.app import app
from telemetry_store.maintenance.backfills import expire_backfills
from telemetry_store.maintenance.config import MaintenanceSettings
from telemetry_store.maintenance.instances import close_dead_instances
from telemetry_store.maintenance.limits import forget_limit_hits, forget_unused_limits
from telemetry_store.maintenance.partitions import (
    drop_request_windows,
    ensure_request_windows,
    ensure_segment_days,
)
from telemetry_store.maintenance.policies import raw_retentions
from telemetry_store.maintenance.worker import Step, Worker
from telemetry_store.requests import RequestIdentity
from tests.store.writing import numbered, request, running_writer, terminate

HOUR = timedelta(hours=1)


async def partitions(connection: asyncpg.Connection, table: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::regclass ORDER BY 1",
        table,
    )
    return [row["name"] for row in rows]


async def drop_all(connection: asyncpg.Connection, table: str) -> None:
    for name in await partitions(connection, table):
        await connection.execute(f"DROP TABLE {name}")


async def open_instances(connection: asyncpg.Connection) -> list[int]:
    rows = await connection.fetch(
        "SELECT instance FROM telemetry.ingest_instance WHERE NOT closed ORDER BY instance"
    )
    return [row["instance"] for row in rows]


async def test_the_live_window_has_its_days(connection: asyncpg.Connection, pool: asyncpg.Pool) -> None:
    await drop_all(connection, "telemetry.segment")
    await ensure_segment_days(pool, late_window_days=3)
    days = await partitions(connection, "telemetry.segment")
    today = await connection.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert days == [f"telemetry.segment_{today + timedelta(days=day):%Y%m%d}" for day in range(-4, 3)]
    await ensure_segment_days(pool, late_window_days=3)
    assert await partitions(connection, "telemetry.segment") == days


async def test_request_windows_are_made_ahead(
    database: TestDatabase, connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await drop_all(connection, "telemetry.request_id")
    await ensure_request_windows(pool)
    assert len(await partitions(connection, "telemetry.request_id")) >= 6 * 4
    async with running_writer(database) as writer:
        assert not (await writer.write(request(RequestIdentity("r")))).duplicate


async def test_windows_are_dropped_when_their_ids_are_no_longer_kept(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    before = await partitions(connection, "telemetry.request_id")
    made = await connection.fetch(
        """
        SELECT date_bin('15 minutes', now() - make_interval(mins => age), timestamptz 'epoch') AS start
        FROM unnest(ARRAY[30, 59, 80, 200]) AS age
        """
    )
    names = []
    for row in made:
        name = f"telemetry.request_id_{row['start']:%Y%m%d_%H%M}"
        names.append(name)
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF telemetry.request_id "
            f"FOR VALUES FROM ('{row['start']}') TO ('{row['start'] + timedelta(minutes=15)}')"
        )
    await drop_request_windows(pool, keep=HOUR)
    # What began 80 minutes ago ended more than an hour ago, whatever the time is now.
    assert await partitions(connection, "telemetry.request_id") == sorted({*before, *names[:2]})


async def test_instances_whose_process_is_gone_are_closed(
    database: TestDatabase, connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    async with running_writer(database) as alive, running_writer(database) as dead:
        await alive.write(numbered(1, writer_id="alive"))
        await dead.write(numbered(1, writer_id="dead"))
        assert await open_instances(connection) == [1, 2]
        assert await close_dead_instances(pool) == []
        pid = await connection.fetchval(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = 2", LOCK_CLASS
        )
        await terminate(database, [pid])
        assert await close_dead_instances(pool) == [2]
        assert await open_instances(connection) == [1]
        await alive.write(numbered(2, writer_id="alive"))
        await dead.write(numbered(2, writer_id="dead"))
        assert await open_instances(connection) == [1, 3]


async def test_backfills_expire(connection: asyncpg.Connection, pool: asyncpg.Pool) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.backfill (tenant_id, backfill_id, principal, start_time, end_time, expire_time)
        VALUES ('demo', 'old', 'p', 1, 2, now()), ('demo', 'new', 'p', 1, 3, now() + interval '1 h')
        """
    )
    await expire_backfills(pool)
    assert [
        row["backfill_id"] for row in await connection.fetch("SELECT backfill_id FROM telemetry.backfill")
    ] == ["new"]


async def test_tenants_say_how_long_raw_messages_are_kept(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await connection.execute(
        "INSERT INTO telemetry.ingest_policy (tenant_id, raw_retention) "
        "VALUES ('acme', '2 days'), ('other', NULL)"
    )
    assert await raw_retentions(pool) == {"acme": timedelta(days=2)}


async def test_what_limits_have_counted_is_forgotten(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    for age in ("8 days", "6 days"):
        await connection.execute(
            """
            INSERT INTO telemetry.limit_hit
                (tenant_id, minute, limit_name, subject, principal, writer_id, limit_value,
                 first_time, last_time, batches, samples, bytes)
            VALUES ('acme', now() - $1::text::interval, 'tenant_streams', '', 'user:ada', '', 1,
                now() - $1::text::interval, now() - $1::text::interval, 1, 0, 0)
            """,
            age,
        )
    for age in ("2 hours", "1 minute"):
        await connection.execute(
            """
            INSERT INTO telemetry.limit_bucket
                (tenant_id, subject_kind, subject, measure, tokens, used, updated_at)
            VALUES ('acme', 2, $1, 1, 0, 0, now() - $1::text::interval)
            """,
            age,
        )
        await connection.execute(
            """
            INSERT INTO telemetry.limit_lease
                (tenant_id, subject_kind, subject, measure, holder, amount, renewed_at)
            VALUES ('acme', 1, $1, 3, gen_random_uuid(), 1, now() - $1::text::interval)
            """,
            age,
        )

    await forget_limit_hits(pool)
    await forget_unused_limits(pool)

    assert await connection.fetchval("SELECT count(*) FROM telemetry.limit_hit") == 1
    assert await connection.fetchval(
        "SELECT min(last_time) > now() - interval '7 days' FROM telemetry.limit_hit"
    )
    assert await connection.fetchval("SELECT array_agg(subject) FROM telemetry.limit_bucket") == ["1 minute"]
    assert await connection.fetchval("SELECT array_agg(subject) FROM telemetry.limit_lease") == ["1 minute"]


async def until_healthy(worker: Worker) -> None:
    while True:
        try:
            await worker.check()
        except RuntimeError:
            await asyncio.sleep(0.01)
        else:
            return


async def test_a_step_that_fails_is_named_and_tried_again_and_stops_no_other(pool: asyncpg.Pool) -> None:
    runs: list[str] = []
    others_go_on = asyncio.Event()

    async def bad() -> None:
        runs.append("bad")
        if runs.count("bad") == 1:
            raise ValueError("no good")

    async def good() -> None:
        runs.append("good")
        others_go_on.set()

    worker = Worker(pool=pool, steps=[Step("bad", 3600, bad), Step("good", 3600, good)])
    with pytest.raises(RuntimeError, match="bad: it has not run yet; good"):
        await worker.check()
    async with worker.running():
        await others_go_on.wait()
        with pytest.raises(RuntimeError, match=re.escape("bad: ValueError('no good')")):
            await worker.check()
        await until_healthy(worker)
    assert runs == ["bad", "good", "bad"]


async def test_a_step_that_goes_on_failing_is_tried_ever_more_seldom_until_it_works(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_TICK_S", 0.001)
    waits: list[float] = []
    back_off = worker_module._BACK_OFF

    def wait_s(state: RetryCallState) -> float:
        waits.append(back_off(state))
        return 0

    monkeypatch.setattr(worker_module, "_BACK_OFF", wait_s)
    outcomes = [False] * 9 + [True] + [False] * 2 + [True]
    done = asyncio.Event()

    async def work() -> None:
        if not outcomes.pop(0):
            raise ValueError("no good")
        if not outcomes:
            done.set()

    async with Worker(pool=pool, steps=[Step("work", 0, work)]).running():
        await done.wait()
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 0.5, 1]


async def test_a_step_that_fails_waits_while_the_others_go_on(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_TICK_S", 0.001)
    monkeypatch.setattr(worker_module, "_BACK_OFF", lambda _: 3600)
    runs: list[str] = []
    done = asyncio.Event()

    async def bad() -> None:
        runs.append("bad")
        raise ValueError("no good")

    async def good() -> None:
        runs.append("good")
        if runs.count("good") == 3:
            done.set()

    async with Worker(pool=pool, steps=[Step("bad", 0, bad), Step("good", 0, good)]).running():
        await done.wait()
    assert runs == ["bad", "good", "good", "good"]


class FlakyPool:
    """A pool whose first connections are lost just as they are taken."""

    def __init__(self, pool: asyncpg.Pool, errors: list[Exception]) -> None:
        self._pool = pool
        self._errors = errors

    def acquire(self) -> Any:
        if self._errors:
            raise self._errors.pop()
        return self._pool.acquire()


@pytest.mark.parametrize("error", [asyncpg.InternalClientError("lost"), OSError("away"), KeyError("defect")])
async def test_the_worker_goes_on_whatever_the_database_does(pool: asyncpg.Pool, error: Exception) -> None:
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    flaky: Any = FlakyPool(pool, [error])
    worker = Worker(pool=flaky, steps=[Step("work", 3600, work)])
    async with worker.running(), asyncio.timeout(10):
        await ran.wait()
        await until_healthy(worker)


async def test_one_worker_at_a_time_does_the_work(pool: asyncpg.Pool) -> None:
    working = asyncio.Event()
    may_end = asyncio.Event()
    runs: list[int] = []

    async def work(number: int) -> None:
        runs.append(number)
        working.set()
        await may_end.wait()

    first = Worker(pool=pool, steps=[Step("work", 3600, lambda: work(1))])
    second = Worker(pool=pool, steps=[Step("work", 3600, lambda: work(2))])
    async with first.running():
        await working.wait()
        async with second.running():
            await until_healthy(second)  # It stands by.
            assert runs == [1]
            may_end.set()
            await until_healthy(first)


async def test_the_worker_is_ready_after_its_first_pass(
    database: TestDatabase, connection: asyncpg.Connection, auth_address: str
) -> None:
    await drop_all(connection, "telemetry.segment")
    settings = MaintenanceSettings(
        service_database_url=database.url("twinmesh_maintenance"),
        identity_dir=identities.identity_dir("maintenance"),
        auth_address=auth_address,
    )
    async with (
        app(settings) as port,
        identities.channel(f"127.0.0.1:{port}", "maintenance", caller="launcher") as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
    assert len(await partitions(connection, "telemetry.segment")) == 11
