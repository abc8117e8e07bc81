"""What is announced shows at once; whatever happens to announcements, the store makes up for it."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import numpy as np
import pytest

from meshkit.testing.database import TestDatabase
from telemetry_store.announcement import encode, subject_of
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.commit_numbers import CommitNumbers
from tests.rpc.twin.test_twin_watch import pressure, watch
from tests.rpc.twin.twin_app import Neighbours, TwinApp
from tests.rpc.twin.watcher import Watcher
from tests.store.telemetry import Recorder

NEVER_MS = 60_000  # So long as nothing else is known, the store is not asked.


class Announcer:
    """Announces commits, as ingest_svc does, in whatever way a test wants."""

    def __init__(self, neighbours: Neighbours, connection: asyncpg.Connection) -> None:
        self._neighbours = neighbours
        self._connection = connection

    async def messages(self, *, max_bytes: int = 100_000) -> list[tuple[str, bytes]]:
        """Return what is announced of all commits so far, as (subject, payload)."""
        rows = await self._connection.fetch(
            "SELECT instance, commit_no, order_no, tenant_id, series_id, end_time, "
            "doubles[cardinality(doubles)] AS value FROM telemetry.segment ORDER BY order_no, series_id"
        )
        made = []
        for row in rows:
            samples = KindColumns(
                Kind.DOUBLE,
                np.array([row["series_id"]], dtype=np.int32),
                np.array([row["end_time"]], dtype=np.int64),
                np.array([row["value"]]),
            )
            numbers = CommitNumbers(row["instance"], row["commit_no"], row["order_no"])
            payloads = encode(numbers, [(row["tenant_id"], samples)], traceparent="", max_bytes=max_bytes)
            made += [(subject_of(numbers.instance), payload) for payload in payloads]
        return made

    async def say(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Put messages on the bus."""
        for subject, payload in messages:
            await self._neighbours.bus.publish(subject, payload)
        await self._neighbours.bus.flush()


@pytest.fixture
async def announcer(neighbours: Neighbours, database: TestDatabase) -> AsyncIterator[Announcer]:
    connection = await asyncpg.connect(database.admin_url)
    yield Announcer(neighbours, connection)
    await connection.close()


@asynccontextmanager
async def relying_on_announcements(neighbours: Neighbours) -> AsyncIterator[TwinApp]:
    async with neighbours.twin_svc(feed_poll_ms=NEVER_MS) as running:
        await running.ready()
        yield running


async def test_an_announced_commit_shows_without_a_look_at_the_store(
    neighbours: Neighbours, writer: Recorder, announcer: Announcer
) -> None:
    neighbours.has("pump-1")
    async with relying_on_announcements(neighbours) as twins:
        watcher = await watch(twins).begun()
        await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
        await announcer.say(await announcer.messages())
        await watcher.until_shown("pump-1", "pressure", 1.0)


async def test_a_hole_is_filled_from_the_store(
    neighbours: Neighbours, writer: Recorder, announcer: Announcer
) -> None:
    neighbours.has("pump-1", "pump-2")
    async with relying_on_announcements(neighbours) as twins:
        watcher = await watch(twins).begun()
        await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
        await writer.commit(neighbours.tenant, [pressure("pump-2", 2.0)])
        *_, last = await announcer.messages()
        await announcer.say([last])
        await watcher.until_shown("pump-1", "pressure", 1.0)
        await watcher.until_shown("pump-2", "pressure", 2.0)


async def test_an_announcement_that_is_not_understood_is_a_reason_to_look(
    neighbours: Neighbours, writer: Recorder, announcer: Announcer
) -> None:
    neighbours.has("pump-1")
    async with relying_on_announcements(neighbours) as twins:
        watcher = await watch(twins).begun()
        await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
        await announcer.say([("telemetry.commit.1", b"\xff")])
        await watcher.until_shown("pump-1", "pressure", 1.0)


async def test_lost_repeated_and_reordered_announcements_change_nothing(
    neighbours: Neighbours, writer: Recorder, announcer: Announcer, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(request.node.name)
    devices = [f"pump-{number}" for number in range(5)]
    neighbours.has(*devices)
    async with neighbours.twin_svc() as first, neighbours.twin_svc() as second:
        await first.ready()
        await second.ready()
        watchers = [await watch(twins, interval={}).begun() for twins in (first, second)]
        said = 0
        for number in range(60):
            await writer.commit(
                neighbours.tenant,
                [pressure(chance.choice(devices), float(number), after_us=chance.randint(0, 30))],
            )
            if chance.random() < 0.3:
                messages = await announcer.messages()
                chosen = chance.sample(messages[said:], chance.randint(0, len(messages) - said))
                await announcer.say(chosen + chosen[:2])
                said = chance.randint(said, len(messages))
        expected = await _latest(first, devices)
        for watcher in watchers:
            await _until_equal(watcher, expected)
        # Somebody who goes on elsewhere is told nothing that is older.
        resumed = watchers[0]
        resumed.resume(watch(second, resume_token=resumed.token, interval={}).call)
        await resumed.begun()
        await _until_equal(resumed, expected)


async def _latest(twins: TwinApp, devices: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what is the latest in history."""
    found = {}
    for device in devices:
        history = await twins.history(id=device)
        found[device] = {metric.metric: metric.double_values[-1] for metric in history.metrics}
    return found


async def _until_equal(watcher: Watcher, expected: dict[str, dict[str, float]]) -> None:
    await watcher.until(lambda: watcher.values() == expected)
