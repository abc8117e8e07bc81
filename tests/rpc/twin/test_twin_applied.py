"""What ingest_svc calls APPLIED every replica of twin_svc shows at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.msg import Msg

from telemetry_store.commit_numbers import Coverage
from telemetry_store.frontier_report import SUBJECT, FrontierReport, decode
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, reading, running_ingest
from tests.rpc.ingest.replicas import replica
from tests.rpc.twin.test_twin_announcements import NEVER_MS
from tests.rpc.twin.twin_app import Neighbours
from twin_svc.frontier_reports import FrontierReporter
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

APPLIED = ingest_pb2.ACK_LEVEL_APPLIED
DURABLE = ingest_pb2.ACK_LEVEL_DURABLE


@pytest.fixture
async def ingest(neighbours: Neighbours) -> AsyncIterator[Ingest]:
    neighbours.has("pump-1")
    async with running_ingest(
        database=neighbours.database,
        nats_url=neighbours.nats_url,
        auth_address=neighbours.auth_address,
        mint=neighbours.mint,
        assets=FakeAssets(),
        asset_address=neighbours.asset_address,
    ) as running:
        yield running


async def promised(ingest: Ingest, neighbours: Neighbours, value: float) -> int:
    """Send a value, return what the answer promises."""
    answer = await ingest.send(
        reading("pump-1", pressure=value), caller=ingest.caller(tenant=neighbours.tenant), ack_level=APPLIED
    )
    assert answer.stored_samples == 1
    return answer.ack_level


async def is_applied(ingest: Ingest, neighbours: Neighbours) -> None:
    """Wait until ingest_svc has heard of the replicas."""
    while await promised(ingest, neighbours, -1.0) != APPLIED:
        pass


async def test_a_read_after_the_answer_shows_the_value_at_every_replica(
    neighbours: Neighbours, ingest: Ingest
) -> None:
    async with AsyncExitStack() as replicas:
        twins = [
            await replicas.enter_async_context(neighbours.twin_svc(feed_poll_ms=NEVER_MS)) for _ in range(2)
        ]
        for one in twins:
            await one.ready()
        await is_applied(ingest, neighbours)
        for number in range(100):
            assert await promised(ingest, neighbours, float(number)) == APPLIED
            for shown in await asyncio.gather(*(one.twin("pump-1") for one in twins)):
                assert shown.metrics["pressure"].value.double_value == number


async def test_a_replica_that_stops_is_not_waited_for_and_one_that_lags_is(
    neighbours: Neighbours, ingest: Ingest
) -> None:
    async with neighbours.twin_svc() as staying:
        await staying.ready()
        async with neighbours.twin_svc() as leaving:
            await leaving.ready()
            await is_applied(ingest, neighbours)
        assert await promised(ingest, neighbours, 1.0) == APPLIED
        async with replica(neighbours.nats_url, "lagging") as lagging:
            await lagging.has({})
            assert await promised(ingest, neighbours, 2.0) == DURABLE
        assert await promised(ingest, neighbours, 3.0) == APPLIED
    assert await promised(ingest, neighbours, 4.0) == DURABLE


class Heard:
    """What replicas reported."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[FrontierReport] = asyncio.Queue()

    async def take(self, message: Msg) -> None:
        report = decode(message.data)
        assert message.subject == f"twin.frontier.{report.replica}"
        self.reports.put_nowait(report)


@pytest.fixture
async def heard(nats_url: str) -> AsyncIterator[Heard]:
    client = await nats.connect(nats_url)
    made = Heard()
    await client.subscribe(SUBJECT, cb=made.take)
    await client.flush()
    yield made
    await client.close()


async def test_a_replica_reports_what_it_shows_and_that_it_stops(
    neighbours: Neighbours, ingest: Ingest, heard: Heard
) -> None:
    assert await promised(ingest, neighbours, 0.0) == DURABLE
    async with neighbours.twin_svc() as twins:
        # While it is being rebuilt it is silent: the first report has what was stored before.
        first = await heard.reports.get()
        assert first.applied.of(1) == 1
        await promised(ingest, neighbours, 1.0)
        while (report := await heard.reports.get()).applied.of(1) < 2:
            pass
        shown = await twins.twin("pump-1")
        assert shown.metrics["pressure"].value.double_value == 1.0
        # It goes on without news.
        assert await heard.reports.get() == report
    while not report.leaving:
        report = await heard.reports.get()
    assert heard.reports.empty()


class Feed:
    """A feed that a test leads."""

    def __init__(self) -> None:
        self.coverage = Coverage()
        self.up_to_date = False
        self.advance = asyncio.Event()

    def upcoming(self) -> asyncio.Event:
        return self.advance

    def is_at(self, commit_no: int, *, up_to_date: bool) -> None:
        self.coverage, self.up_to_date = Coverage(0, {1: commit_no}), up_to_date
        self.advance.set()
        self.advance = asyncio.Event()


async def test_a_replica_is_silent_while_it_is_rebuilt(neighbours: Neighbours, heard: Heard) -> None:
    feed = Feed()
    async with FrontierReporter(bus=neighbours.bus, feed=feed, replica="r"):
        for commit_no in range(1, 4):
            feed.is_at(commit_no, up_to_date=False)
            await neighbours.bus.flush()
        feed.is_at(4, up_to_date=True)
        assert await heard.reports.get() == FrontierReport("r", Coverage(0, {1: 4}))
        feed.is_at(5, up_to_date=True)
        assert await heard.reports.get() == FrontierReport("r", Coverage(0, {1: 5}))
    assert await heard.reports.get() == FrontierReport("r", Coverage(), leaving=True)
