"""Whatever ends sealing, wherever it stands, no sample is lost or told twice."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from meshkit import db
from meshkit.db import DATABASE_ERRORS, tenant_transaction
from meshkit.embedded import EmbeddedPostgres
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase, build_template, fresh_database
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.maintenance.sealing import Sealing
from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.tiers import due, sealing
from telemetry_store.tiers.due import due_batches
from telemetry_store.tiers.floor import Bound
from telemetry_store.tiers.reader import Span, read_spans
from telemetry_store.tiers.sealing import LANES, LOCK_CLASS, Moved, seal
from tests.store.broken_line import Break, BrokenLine
from tests.store.sealing import AT_ONCE, bound_now, seal_all
from tests.store.telemetry import Sent, recorder
from tests.store.writing import T0, admin
from twinmesh_cli.owners import OWNERS

SECOND = 1_000_000
YESTERDAY = T0 // MICROS_PER_DAY * MICROS_PER_DAY - MICROS_PER_DAY
DEVICES = [f"pump-{number}" for number in range(8)]
STEPS = ["take", "merge", "insert"]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a round has many operations."""
    monkeypatch.setattr(due, "_BATCH_SERIES", 2)


@asynccontextmanager
async def maintaining(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_maintenance"), application="sealing") as opened:
        yield opened


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with maintaining(database) as opened:
        yield opened


@asynccontextmanager
async def querying(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_twin_query"), application="query", max_size=2) as opened:
        yield opened


@pytest.fixture
async def query(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with querying(database) as opened:
        yield opened


def samples_of(day: int, hours: Sequence[int], *, value: float) -> list[Sent]:
    return [
        Sent(device, "flow", day + hour * MICROS_PER_HOUR + place * 60 * SECOND, value + place)
        for device in DEVICES
        for hour in hours
        for place in range(10)
    ]


async def write(database: TestDatabase, samples: Sequence[Sent]) -> None:
    async with recorder(database) as writer:
        await writer.commit("demo", samples)


async def everything(query: asyncpg.Pool) -> dict[tuple[int, int], float]:
    """Return every sample by its series' place and time; each comes once, or this fails."""
    async with tenant_transaction(query, "demo", isolation="repeatable_read") as connection:
        ids = [
            row["series_id"]
            for row in await connection.fetch("SELECT series_id FROM telemetry.series ORDER BY device_id")
        ]
        spans = [
            Span("demo", series_id, YESTERDAY - MICROS_PER_DAY, YESTERDAY + 2 * MICROS_PER_DAY)
            for series_id in ids
        ]
        found = await read_spans(connection, Kind.DOUBLE, spans, archive=None)
    keys = list(zip(found.places.tolist(), found.samples.times.tolist(), strict=True))
    assert keys == sorted(set(keys))
    return dict(zip(keys, found.samples.values.tolist(), strict=True))


def expected(*commits: Sequence[Sent]) -> dict[tuple[int, int], float]:
    return {
        (DEVICES.index(sample.device_id), sample.time_us): float(sample.value)  # type: ignore[arg-type]
        for samples in commits
        for sample in samples
    }


async def stored(connection: asyncpg.Connection) -> tuple[int, int]:
    """Return the samples in hot rows and those in sealed ones, equal times of different rows included."""
    hot = await connection.fetchval("SELECT coalesce(sum(cardinality(times)), 0) FROM telemetry.segment")
    return hot, await connection.fetchval("SELECT coalesce(sum(samples), 0) FROM telemetry.sealed_segment")


@pytest.mark.parametrize(
    ("when", "before"),
    [(step, before) for step in STEPS for before in (True, False) if before or step != "merge"],
)
async def test_a_connection_killed_at_any_step_leaves_all_as_it_was(
    database: TestDatabase, query: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch, when: str, before: bool
) -> None:
    async with maintaining(database) as pool:
        await _kill_at(database, pool, query, partial(kill_own_backend, monkeypatch, when, before=before))


async def _kill_at(
    database: TestDatabase,
    pool: asyncpg.Pool,
    query: asyncpg.Pool,
    kill: Callable[[TestDatabase], AbstractContextManager[None]],
) -> None:
    first = samples_of(YESTERDAY, range(3), value=1.0)
    await write(database, first)
    bound = await bound_now(pool)
    assert bound is not None
    # Pieces, and something late to be merged with them.
    await seal_all(pool, Bound(bound.order_no, YESTERDAY + 3 * MICROS_PER_HOUR))
    late = samples_of(YESTERDAY, [1], value=2.0)
    await write(database, late)
    bound = await bound_now(pool)
    assert bound is not None
    async with admin(database) as connection:
        before_all = await stored(connection)
        [batch, *_] = [batch async for batch in due_batches(pool, bound)]
        with kill(database), pytest.raises(DATABASE_ERRORS):
            await seal(pool, batch, order_no=bound.order_no)
        assert await stored(connection) == before_all
        assert await everything(query) == expected(first, late)
        await seal_all(pool, bound)
        assert await stored(connection) == (0, len(first))
    assert await everything(query) == expected(first, late)


@contextmanager
def kill_own_backend(
    monkeypatch: pytest.MonkeyPatch, when: str, database: TestDatabase, *, before: bool
) -> Iterator[None]:
    """Let an operation's backend be killed before or after a step of it."""
    real = getattr(sealing._Operation, when)
    loop = asyncio.get_running_loop()

    async def kill(operation: Any) -> None:
        pid = await operation._connection.fetchval("SELECT pg_backend_pid()")
        async with maintaining(database) as killer:
            assert await killer.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)

    def merge(operation: Any) -> Any:
        asyncio.run_coroutine_threadsafe(kill(operation), loop).result()
        return real(operation)

    async def other(operation: Any, *arguments: Any) -> None:
        if before:
            await kill(operation)
        await real(operation, *arguments)
        if not before:
            await kill(operation)

    with monkeypatch.context() as patch:
        patch.setattr(sealing._Operation, when, merge if when == "merge" else other)
        yield


@pytest.mark.parametrize("lost", [Break.COMMIT, Break.ANSWER])
async def test_whether_a_lost_commit_took_place_or_not_the_next_round_finds_the_rest(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool, lost: Break
) -> None:
    samples = samples_of(YESTERDAY, range(3), value=1.0)
    await write(database, samples)
    bound = await bound_now(pool)
    assert bound is not None
    [batch, *_] = [batch async for batch in due_batches(pool, bound)]
    async with (
        BrokenLine(database.url("twinmesh_maintenance")).open() as line,
        db.pool(line.url, application="sealing") as broken,
        admin(database) as connection,
    ):
        line.breaks = lost
        with pytest.raises(DATABASE_ERRORS):
            await seal(broken, batch, order_no=bound.order_no)
        assert line.breaks is Break.NOTHING
        assert (await stored(connection))[1] == (60 if lost is Break.ANSWER else 0)
        assert await everything(query) == expected(samples)
        assert (await seal(pool, batch, order_no=bound.order_no) == Moved()) is (lost is Break.ANSWER)
        await seal_all(pool, bound)
        assert await stored(connection) == (0, len(samples))
    assert await everything(query) == expected(samples)


async def test_two_workers_share_a_round(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    commits = [samples_of(YESTERDAY, range(4), value=float(number)) for number in range(3)]
    for samples in commits:
        await write(database, samples)
    await bound_now(pool)

    async with maintaining(database) as other:
        workers = [
            Sealing(pool=each, seal_after=AT_ONCE, throttle=Throttle(pool=each)) for each in (pool, other)
        ]
        await asyncio.gather(*(worker.turn() for worker in workers))
        # What one left to the other is the other's, or of the next round.
        await workers[0].turn()
    assert await everything(query) == expected(*commits)
    async with admin(database) as connection:
        assert await stored(connection) == (0, len(commits[0]))


async def test_who_locks_the_day_is_not_disturbed(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    samples = samples_of(YESTERDAY, [0], value=1.0)
    await write(database, samples)
    bound = await bound_now(pool)
    assert bound is not None
    batches = [batch async for batch in due_batches(pool, bound)]
    async with pool.acquire() as connection:
        async with connection.transaction():
            for lane in range(LANES):
                await connection.execute(
                    "SELECT pg_advisory_xact_lock($1, $2)",
                    LOCK_CLASS,
                    YESTERDAY // MICROS_PER_DAY * LANES + lane,
                )
            assert [await seal(pool, batch, order_no=bound.order_no) for batch in batches] == [None] * 4
        assert None not in [await seal(pool, batch, order_no=bound.order_no) for batch in batches]


async def test_a_statement_that_takes_long_is_not_given_up(
    database: TestDatabase, query: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_COMMAND_TIMEOUT_S", 1.0)
    await write(database, samples_of(YESTERDAY, [0], value=1.0))
    async with maintaining(database) as pool, admin(database) as connection:
        bound = await bound_now(pool)
        assert bound is not None
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.segment FOR UPDATE")
            sealing_all = asyncio.create_task(seal_all(pool, bound))
            await asyncio.sleep(1.5)
        moved = await sealing_all
    assert moved.segments == len(DEVICES)


async def test_a_reader_misses_nothing_while_everything_moves(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    fixed = samples_of(YESTERDAY, range(4), value=1.0)
    await write(database, fixed)
    # Other days' samples of the same series come and go meanwhile.
    over = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not over.is_set():
            found = await everything(query)
            assert {key: found[key] for key in expected(fixed)} == expected(fixed)
            reads += 1

    async def move() -> None:
        for turn in range(12):
            # The same values again, as pieces, late rows and merged days.
            await write(database, fixed[turn::12])
            await write(database, samples_of(YESTERDAY - MICROS_PER_DAY, [turn], value=1.0))
            bound = await bound_now(pool)
            assert bound is not None
            through = YESTERDAY + (turn % 5) * MICROS_PER_HOUR if turn < 9 else bound.through_us
            await seal_all(pool, Bound(bound.order_no, through))
        over.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(move())
    assert reads > 0
    async with admin(database) as connection:
        assert (await stored(connection))[0] == 0


async def test_a_restart_of_postgresql_in_the_midst(
    monkeypatch: pytest.MonkeyPatch, short_home: Path
) -> None:
    postgres = EmbeddedPostgres(home=short_home)
    await postgres.start_async()
    try:
        await build_template(postgres.admin_url, OWNERS)
        async with fresh_database(
            admin_url=postgres.admin_url, superuser_url=postgres.superuser_url
        ) as database:
            await _seal_through_a_restart(postgres, database, monkeypatch)
    finally:
        postgres.remove()


async def _seal_through_a_restart(
    postgres: EmbeddedPostgres, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(YESTERDAY, range(3), value=1.0)
    await write(database, samples)
    inserted = asyncio.Event()
    restarted = asyncio.Event()
    insert = sealing._Operation.insert

    async def wait(operation: Any, rows: Any) -> None:
        await insert(operation, rows)
        inserted.set()
        await restarted.wait()

    async with (
        maintaining(database) as pool,
        querying(database) as query,
    ):
        await bound_now(pool)
        worker = Sealing(pool=pool, seal_after=AT_ONCE, throttle=Throttle(pool=pool))
        with monkeypatch.context() as patch:
            patch.setattr(sealing._Operation, "insert", wait)
            turn = asyncio.create_task(worker.turn())
            await inserted.wait()
            await postgres.stop_async()
            await postgres.start_async()
            restarted.set()
            with pytest.raises(ExceptionGroup):
                await turn
        assert await everything(query) == expected(samples)
        await worker.turn()
        assert await everything(query) == expected(samples)
        async with admin(database) as connection:
            assert await stored(connection) == (0, len(samples))


async def test_a_process_killed_again_and_again_ends_what_it_began(
    database: TestDatabase, query: asyncpg.Pool, auth_address: str
) -> None:
    commits = [samples_of(YESTERDAY, range(12), value=float(number)) for number in range(3)]
    chance = random.Random(6)
    async with admin(database) as connection:
        for samples in commits:
            await write(database, samples)
            async with maintenance(database, auth_address) as process:
                # In the midst of whatever it does, its start among it.
                await until_sealed(connection, left=chance.randrange(len(samples)))
                process.kill()
                await process.wait()
            assert await everything(query) == expected(*commits[: commits.index(samples) + 1])
        async with maintenance(database, auth_address):
            await until_sealed(connection, left=0)
    assert await everything(query) == expected(*commits)


async def until_sealed(connection: asyncpg.Connection, *, left: int) -> None:
    """Wait until so many samples are hot at the most."""
    async with asyncio.timeout(60):
        hot, _ = await stored(connection)
        while hot > left:
            await asyncio.sleep(0.001)
            hot, _ = await stored(connection)


@asynccontextmanager
async def maintenance(database: TestDatabase, auth_address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real worker; sealing has no grace."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "telemetry_store.maintenance",
        env={
            **os.environ,
            "TWINMESH_SERVICE_DATABASE_URL": database.url("twinmesh_maintenance"),
            "TWINMESH_AUTH_ADDRESS": auth_address,
            "TWINMESH_IDENTITY_DIR": str(identities.identity_dir("maintenance")),
            "TWINMESH_LISTEN": "127.0.0.1:0",
            "TWINMESH_SEAL_AFTER_MINUTES": "0",
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()
