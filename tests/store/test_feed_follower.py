"""The twins follow the feed: from a checkpoint, past a floor, through a crash of PostgreSQL, in one trace."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshkit import db
from meshkit.embedded import EmbeddedPostgres
from meshkit.errors import Unavailable
from meshkit.testing.database import TEMPLATE, TestDatabase, build_template, in_database
from telemetry_store import writer as store_writer
from telemetry_store.announcement import Announcement
from telemetry_store.feed import snapshot
from telemetry_store.latest import advance_checkpoint
from telemetry_store.migrations import OWNER
from telemetry_store.series import Value
from tests.store.telemetry import Recorder, Sent, recorder
from twin_svc import follower as twin_follower
from twin_svc.changes import Changes
from twin_svc.fleet import Fleet
from twin_svc.follower import FeedFollower
from twin_svc.twins import Device

NOW = int(time.time()) * 1_000_000
POLL_S = 0.01


def shown(fleet: Fleet, device_id: str) -> dict[str, Value]:
    metrics = fleet.twin("demo", Device(device_id, "", "", {})).metrics
    return {metric: state.value for metric, state in metrics.items()}


def following(pool: asyncpg.Pool, fleet: Fleet) -> FeedFollower:
    return FeedFollower(snapshot=partial(snapshot, pool), fleet=fleet, changes=Changes(), poll_s=POLL_S)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is awaited has no event
        await asyncio.sleep(POLL_S)


@pytest.fixture
async def feed(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_twin_feed"), application="feed") as pool:
        yield pool


@pytest.fixture
async def maintenance(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_maintenance"), application="maintenance") as pool:
        yield pool


async def test_a_start_from_the_checkpoint_equals_a_start_from_scratch(
    database: TestDatabase, feed: asyncpg.Pool, maintenance: asyncpg.Pool
) -> None:
    async with recorder(database) as writing:
        # More series than are taken at a time.
        many = [Sent(f"pump-{number}", "pressure", NOW, float(number)) for number in range(6_000)]
        await writing.commit("demo", many)
        await advance_checkpoint(maintenance)
        await writing.commit("demo", [Sent("pump-1", "pressure", NOW + 1, -1.0)])

    fleet, scratch = Fleet(), Fleet()
    follower = following(feed, fleet)
    with pytest.raises(RuntimeError, match="rebuilt"):
        await follower.check()
    assert await follower.step()
    assert shown(fleet, "pump-5999") == {"pressure": 5999.0}
    assert shown(fleet, "pump-1") == {"pressure": 1.0}
    while await follower.step():
        pass
    await follower.check()

    await maintenance.execute("DELETE FROM telemetry.feed_consumer")
    admin = await asyncpg.connect(database.admin_url)
    await admin.execute("DELETE FROM telemetry.series_latest")
    await admin.close()
    from_scratch = following(feed, scratch)
    while await from_scratch.step():
        pass
    assert from_scratch.coverage == follower.coverage
    for number in (0, 1, 2, 5_999):
        assert shown(fleet, f"pump-{number}") == shown(scratch, f"pump-{number}")
    assert shown(fleet, "pump-1") == {"pressure": -1.0}


async def test_below_the_floor_the_fleet_is_rebuilt_from_the_checkpoint(
    database: TestDatabase, feed: asyncpg.Pool, maintenance: asyncpg.Pool
) -> None:
    fleet = Fleet()
    follower = following(feed, fleet)
    async with recorder(database) as writing:
        await writing.commit("demo", [Sent("pump-1", "pressure", NOW, 1.0)])
        while await follower.step():
            pass
        await writing.commit("demo", [Sent("pump-1", "pressure", NOW + 1, 2.0)])
        await advance_checkpoint(maintenance)
        await maintenance.execute("UPDATE telemetry.ingest_instance SET floor_commit_no = last_commit_no")

        assert not await follower.step()
        with pytest.raises(RuntimeError, match="rebuilt"):
            await follower.check()
        while await follower.step():
            pass
        await follower.check()
        assert shown(fleet, "pump-1") == {"pressure": 2.0}

        await writing.commit("demo", [Sent("pump-1", "pressure", NOW + 2, 3.0)])
        await follower.step()
    assert shown(fleet, "pump-1") == {"pressure": 3.0}


async def test_killing_postgresql_loses_and_repeats_nothing(short_home: Path) -> None:
    postgres = EmbeddedPostgres(home=short_home)
    async with postgres:
        await build_template(postgres.admin_url, [OWNER])
        urls = (postgres.admin_url, postgres.superuser_url)
        database = TestDatabase(*(in_database(url, TEMPLATE) for url in urls))
        fleet = Fleet()
        async with (
            recorder(database) as writing,
            db.pool(database.url("twinmesh_twin_feed"), application="feed") as pool,
        ):
            follower = following(pool, fleet)
            async with follower.following():
                await writing.commit("demo", [Sent("pump-1", "pressure", NOW, 1.0)])
                await until(lambda: shown(fleet, "pump-1") == {"pressure": 1.0})

                assert postgres.process is not None
                assert postgres.process.pid is not None
                os.kill(postgres.process.pid, signal.SIGKILL)
                await until(lambda: not postgres.running)
                with pytest.raises(Unavailable):
                    await writing.commit("demo", [Sent("pump-1", "pressure", NOW + 1, 2.0)])
                await follower.check()
                assert shown(fleet, "pump-1") == {"pressure": 1.0}

                await postgres.start_async()
                await _commit_at_last(writing, Sent("pump-1", "pressure", NOW + 2, 3.0))
                await until(lambda: shown(fleet, "pump-1") == {"pressure": 3.0})

                # A second follower, which never saw the crash, comes to the same.
                again = Fleet()
                from_scratch = following(pool, again)
                while await from_scratch.step():
                    pass
                await until(lambda: follower.coverage == from_scratch.coverage)
                assert shown(again, "pump-1") == shown(fleet, "pump-1")


async def _commit_at_last(writing: Recorder, sample: Sent) -> None:
    while True:
        try:
            return await writing.commit("demo", [sample])
        except Unavailable:
            await asyncio.sleep(POLL_S)


async def test_the_commits_trace_goes_on_in_the_twin(
    database: TestDatabase, feed: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(store_writer, "tracer", tracer)
    monkeypatch.setattr(twin_follower, "tracer", tracer)
    follower = following(feed, Fleet())
    async with recorder(database) as writing:
        await writing.commit("demo", [Sent("pump-1", "pressure", NOW, 1.0)])
        with tracer.start_as_current_span("request") as request:
            span = request.get_span_context()
            await writing.commit("demo", [Sent("pump-1", "pressure", NOW, 2.0)], span=span)
    while await follower.step():
        pass

    by_name = {one.name: one for one in spans.get_finished_spans()}
    applied, committed = by_name["twin.apply"], by_name["telemetry.commit"]
    assert applied.parent is not None
    assert committed.context is not None
    assert applied.parent.span_id == committed.context.span_id
    assert applied.context is not None
    assert applied.context.trace_id == span.trace_id
    assert sum(one.name == "twin.apply" for one in spans.get_finished_spans()) == 1


async def test_commits_announced_during_a_read_are_no_reason_to_rebuild(
    database: TestDatabase, feed: asyncpg.Pool
) -> None:
    meanwhile: list[Announcement] = []

    class Interrupted:
        """A connection on which others have their turn, as on every other, after each answer."""

        def __init__(self, connection: db.Connection) -> None:
            self._connection = connection

        async def fetch(self, *arguments: Any) -> Any:
            rows = await self._connection.fetch(*arguments)
            while meanwhile:
                await follower.announced(meanwhile.pop())
            return rows

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    @asynccontextmanager
    async def interrupted() -> AsyncIterator[Any]:
        async with snapshot(feed) as connection:
            yield Interrupted(connection)

    follower = FeedFollower(snapshot=interrupted, fleet=Fleet(), changes=Changes(), poll_s=POLL_S)
    async with recorder(database) as writing:
        await writing.commit("demo", [Sent("pump-1", "pressure", NOW, 1.0)])
        while await follower.step():
            pass
        for number in (1, 2):
            await writing.commit("demo", [Sent("pump-1", "pressure", NOW + number, float(number))])
    ((instance, through),) = follower.coverage.numbers.items()
    meanwhile.append(Announcement(instance, through + 1, through + 1, 0, 1, "", []))

    await follower.step()

    assert (follower.expired, follower.coverage.numbers) == (0, {instance: through + 2})


async def test_commits_are_counted_by_where_they_came_from_and_the_lag_by_the_store(
    database: TestDatabase, feed: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(twin_follower, "time", SimpleNamespace(monotonic=lambda: now))
    follower = following(feed, Fleet())
    now += 5
    assert follower.lag_s == 5
    async with recorder(database) as writing:
        for number in range(3):
            await writing.commit("demo", [Sent("pump-1", "pressure", NOW + number, 1.0)])
    while await follower.step():
        pass
    assert (follower.lag_s, follower.announced_commits) == (0, 0)
    found = follower.found_commits
    assert found >= 3

    ((instance, through),) = follower.coverage.numbers.items()
    now += 2
    for part in (0, 1, 1):
        await follower.announced(Announcement(instance, through + 1, through + 1, part, 2, "", []))
    assert (follower.announced_commits, follower.found_commits) == (1, found)
    # That all of them came nobody knows before the store was looked at.
    assert follower.lag_s == 2
