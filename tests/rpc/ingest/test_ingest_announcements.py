"""ingest_svc announces what it stores, when the bus takes it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import nats
import numpy as np
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from ingest_svc.announcer import Announcer
from telemetry_store.announcement import SUBJECT, Announcement, TenantSamples, decode
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.commit import Commit
from telemetry_store.instances import CommitNumbers
from tests.rpc.ingest.neighbours import until


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


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
async def heard(nats_url: str) -> AsyncIterator[Heard]:
    client = await nats.connect(nats_url)
    listening = Heard()
    await client.subscribe(SUBJECT, cb=listening.take)
    await client.flush()
    yield listening
    await client.close()


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


async def test_what_the_bus_does_not_keep_up_with_is_left_out(bus: Client, heard: Heard) -> None:
    async with Announcer(bus=bus, most_series_waiting=10) as announcer:
        for number in range(1, 5):
            announcer.announce(commit(number, 4))
        await until(lambda: len(heard.commits) == 2)
        announcer.announce(commit(5, 4))
        await until(lambda: len(heard.commits) == 3)
    assert heard.commits == [1, 2, 5]


async def test_without_a_bus_commits_are_left_out(nats_url: str, heard: Heard) -> None:
    away = Client()
    async with Announcer(bus=away) as announcer:
        announcer.announce(commit(1, 1))
        await away.connect(nats_url)
        announcer.announce(commit(2, 1))
        await until(lambda: heard.commits != [])
    await away.close()
    assert heard.commits == [2]


async def test_ending_waits_for_nothing(bus: Client) -> None:
    async with asyncio.timeout(10), Announcer(bus=bus) as announcer:
        announcer.announce(commit(1, 500_000))
