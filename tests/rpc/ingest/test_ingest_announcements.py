"""ingest_svc announces what it stores, when the bus takes it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import numpy as np
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import CapturingLogger

from ingest_svc.announcer import Announcer
from meshkit import bus as meshkit_bus
from meshkit.embedded import EmbeddedNats
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from telemetry_store.announcement import SUBJECT, Announcement, TenantSamples, decode
from telemetry_store.columns import MICROS_PER_HOUR, Kind, KindColumns
from telemetry_store.commit import Commit
from telemetry_store.commit_numbers import CommitNumbers
from tests.rpc.ingest.neighbours import (
    TENANT,
    FakeAssets,
    Ingest,
    reading,
    running_ingest,
    serving,
    until,
)

# The start of the hour before this one.
T0 = (time.time_ns() // 1000 // MICROS_PER_HOUR - 1) * MICROS_PER_HOUR


class Heard:
    """What came over the bus."""

    def __init__(self) -> None:
        self.announcements: list[Announcement] = []

    async def take(self, message: Msg) -> None:
        announcement = decode(message.data)
        assert message.subject == f"telemetry.commit.{announcement.instance}"
        self.announcements.append(announcement)

    @property
    def commits(self) -> list[int]:
        """Return the commits of which all parts came, in order."""
        return [one.commit_no for one in self.announcements if one.part == one.parts - 1]

    @property
    def series(self) -> list[int]:
        return [
            series
            for one in self.announcements
            for latest in one.latest
            for series in latest.samples.series.tolist()
        ]


@pytest.fixture(scope="session")
def nats_url(quiet_nats_url: str) -> str:
    """What other tests store is announced elsewhere."""
    return quiet_nats_url


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What announcers log, however another test has configured the logs."""
    logger = CapturingLogger()
    monkeypatch.setattr("ingest_svc.announcer._log", logger)
    return logger


def outages(log: CapturingLogger) -> list[tuple[str, int | None]]:
    """Return what was logged of commits left out, and how many they were."""
    return [
        (call.args[0], call.kwargs.get("left_out"))
        for call in log.calls
        if call.args[0].startswith("commits are")
    ]


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@asynccontextmanager
async def listening(nats_url: str) -> AsyncIterator[Heard]:
    client = await nats.connect(nats_url)
    heard = Heard()
    await client.subscribe(SUBJECT, cb=heard.take)
    await client.flush()
    yield heard
    await client.close()


@pytest.fixture
async def heard(nats_url: str) -> AsyncIterator[Heard]:
    async with listening(nats_url) as what_came:
        yield what_came


@pytest.fixture
async def own_nats(short_home: Path) -> AsyncIterator[EmbeddedNats]:
    """A bus that a test may stop."""
    server = EmbeddedNats(home=short_home)
    await server.start_async()
    yield server
    server.remove()


def commit(commit_no: int, series: int) -> Commit:
    samples = KindColumns(
        Kind.DOUBLE,
        np.arange(1, series + 1, dtype=np.int32),
        np.arange(series, dtype=np.int64),
        np.zeros(series),
    )
    latest: Sequence[TenantSamples] = [("demo", samples)] if series else []
    return Commit(CommitNumbers(7, commit_no, commit_no), series, latest, "")


async def test_commits_are_announced_in_their_order(bus: Client, heard: Heard) -> None:
    async with Announcer(bus=bus) as announcer:
        # One of many parts among small ones.
        for number, series in enumerate([1, 0, 100_000, 3], 1):
            announcer.announce(commit(number, series))
        await until(lambda: len(heard.commits) == 4)
    assert heard.commits == [1, 2, 3, 4]
    assert heard.series == [1, *range(1, 100_001), 1, 2, 3]
    assert len(heard.announcements) > 4


async def test_what_the_bus_does_not_keep_up_with_is_left_out(
    bus: Client, heard: Heard, log: CapturingLogger
) -> None:
    # Room for two commits: a series and a number take 20 bytes, a commit some hundred.
    async with Announcer(bus=bus, max_waiting_bytes=50_000) as announcer:
        for number in range(1, 6):
            announcer.announce(commit(number, 1_000))
        assert 0 < announcer.waiting_bytes <= 50_000
        await until(lambda: len(heard.commits) == 2)
        announcer.announce(commit(6, 1_000))
        await until(lambda: len(heard.commits) == 3)
    assert heard.commits == [1, 2, 6]
    assert (announcer.left_out, announcer.waiting_bytes) == (3, 0)
    assert outages(log) == [("commits are not announced", None), ("commits are announced again", 3)]


async def test_an_outage_lasts_until_nothing_waits(
    bus: Client, monkeypatch: pytest.MonkeyPatch, log: CapturingLogger
) -> None:
    publish = bus.publish

    async def publish_under_load(subject: str, payload: bytes) -> None:
        announcer.announce(commit(9, 1_000))  # Too large by itself.
        await publish(subject, payload)

    monkeypatch.setattr(bus, "publish", publish_under_load)
    async with Announcer(bus=bus, max_waiting_bytes=10_000) as announcer:
        announcer.announce(commit(1, 1))
        announcer.announce(commit(2, 1))
        await until(lambda: len(outages(log)) == 2)
    assert outages(log) == [("commits are not announced", None), ("commits are announced again", 2)]


async def test_strings_take_room_by_their_length(bus: Client, heard: Heard) -> None:
    text = KindColumns.of(Kind.STRING, np.array([1], np.int32), np.array([1]), ["x" * 4_000])
    async with Announcer(bus=bus, max_waiting_bytes=4_000) as announcer:
        announcer.announce(Commit(CommitNumbers(7, 1, 1), 1, [("demo", text)], ""))
        announcer.announce(commit(2, 1))
        await until(lambda: heard.commits != [])
    assert heard.commits == [2]


async def test_a_commit_that_cannot_be_announced_harms_no_other(bus: Client, heard: Heard) -> None:
    half = KindColumns.of(Kind.STRING, np.array([1], np.int32), np.array([1]), ["\ud800"])
    async with Announcer(bus=bus) as announcer:
        announcer.announce(Commit(CommitNumbers(7, 1, 1), 1, [("demo", half)], ""))
        announcer.announce(commit(2, 1))
        await until(lambda: heard.commits != [])
    assert heard.commits == [2]


async def test_without_a_bus_commits_are_left_out(nats_url: str, heard: Heard) -> None:
    away = Client()
    async with Announcer(bus=away) as announcer:
        announcer.announce(commit(1, 1))
        await away.connect(nats_url)
        announcer.announce(commit(2, 1))
        await until(lambda: heard.commits != [])
    await away.close()
    assert heard.commits == [2]


async def test_what_waited_when_the_bus_went_is_left_out(own_nats: EmbeddedNats) -> None:
    async with (
        meshkit_bus.connection(own_nats.url, name="test") as client,
        Announcer(bus=client) as announcer,
    ):
        own_nats.stop()
        # The client has not been told yet. The first is encoded in a thread meanwhile.
        assert client.is_connected
        announcer.announce(commit(1, 100_000))
        announcer.announce(commit(2, 1))
        await until(lambda: not client.is_connected)
        await own_nats.start_async()
        async with listening(own_nats.url) as heard:
            await until(lambda: client.is_connected)
            announcer.announce(commit(3, 1))
            await until(lambda: 3 in heard.commits)
        assert heard.commits == [3]


async def test_ending_waits_for_nothing(bus: Client) -> None:
    async with asyncio.timeout(10), Announcer(bus=bus) as announcer:
        announcer.announce(commit(1, 500_000))


async def test_ending_does_not_wait_for_a_bus_that_hangs(own_nats: EmbeddedNats) -> None:
    client = await nats.connect(own_nats.url)
    announcer = Announcer(bus=client)
    await announcer.__aenter__()
    process = own_nats.process
    assert process is not None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        # More than the sockets and the client hold.
        for number in range(1, 12):
            announcer.announce(commit(number, 90_000))
        sent = -1
        while client.stats["out_bytes"] != sent:
            sent = client.stats["out_bytes"]
            await asyncio.sleep(0.5)
        # A task of its own: what hangs there swallows cancellations.
        ending = asyncio.create_task(announcer.__aexit__())
        done, _ = await asyncio.wait([ending], timeout=10)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    await client.close()
    ending.cancel()
    assert done


async def test_what_a_request_stores_is_announced(ingest: Ingest, heard: Heard) -> None:
    instance = await stored_by(ingest, count=1)
    await ingest.send(reading("pump-1", time_us=T0 + 2, count=7), reading("pump-1", time_us=T0 + 1, count=6))
    await ingest.send(reading("foreign", time_us=T0, temperature=0.5), caller=ingest.caller(tenant="other"))

    def told() -> list[tuple[int, str, Kind, list[int], list[object]]]:
        return [
            (
                one.commit_no,
                latest.tenant,
                latest.samples.kind,
                (latest.samples.times - T0).tolist(),
                latest.samples.values.tolist(),
            )
            for one in heard.announcements
            if one.instance == instance
            for latest in one.latest
        ]

    await until(lambda: len(told()) == 3)
    assert told()[1:] == [(2, TENANT, Kind.INT, [2], [7]), (3, "other", Kind.DOUBLE, [0], [0.5])]


async def test_announcements_go_on_after_the_bus_was_away(
    database: TestDatabase, auth_address: str, mint: TokenMint, own_nats: EmbeddedNats
) -> None:
    assets = FakeAssets()
    assets.add("pump-1")
    async with (
        serving(assets) as asset_address,
        running_ingest(
            database=database,
            nats_url=own_nats.url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
        ) as ingest,
    ):
        async with listening(own_nats.url) as heard:
            await stored_by(ingest, count=1)
            await until(lambda: heard.commits == [1])
        await own_nats.stop_async()

        async def bus_is_away() -> bool:
            return not await ingest.is_serving("nats")

        async def bus_is_back() -> bool:
            return await ingest.is_serving("nats")

        await until(bus_is_away)
        await stored_by(ingest, count=2)
        await own_nats.start_async()
        async with listening(own_nats.url) as heard:
            await until(bus_is_back)
            await stored_by(ingest, count=3)
            await until(lambda: heard.commits != [])
        assert heard.commits == [3]


async def stored_by(ingest: Ingest, *, count: int) -> int:
    """Store a sample; return the instance that did."""
    response = await ingest.send(reading("pump-1", count=count))
    assert response.stored_samples == 1
    instance: int = await ingest.fetch_value("SELECT max(instance) FROM telemetry.ingest_commit")
    return instance
