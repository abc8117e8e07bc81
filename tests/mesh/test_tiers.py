"""Answers are whole while samples go from tier to tier and maintenance dies again and again."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count, cycle
from typing import Any

import asyncpg
import httpx
import pytest

from meshkit.clock import MICROS_PER_SECOND
from meshkit.testing.mesh import Mesh, own_mesh
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE
from tests.mesh.answers import Asker, asking, in_order
from tests.mesh.oracle import Sample, Value
from tests.mesh.stream_site import SOAK, make_devices, sending
from tests.mesh.tiers import (
    Movement,
    another_maintenance,
    send,
    send_to,
    stopped_feed_consumers,
    unsettled,
    until_at_most,
)
from tests.rpc.ingest.neighbours import METRICS
from twinmesh.twin.v1 import history_service_pb2 as history_pb2
from twinmesh.type.v1 import value_pb2

pytestmark = pytest.mark.timeout(1800 if SOAK else 300)

TODAY = time.time_ns() // 1000 // MICROS_PER_DAY * MICROS_PER_DAY
# All within the live window.
ARCHIVED = [TODAY - age * MICROS_PER_DAY for age in (5, 4, 3)]
RESTORED = ARCHIVED[1]
# Over, so it is sealed, and too young for the archive.
YESTERDAY = TODAY - MICROS_PER_DAY
DAYS = [*ARCHIVED, YESTERDAY]
DEVICES = 3
HOURS = [0, 9, 23]
PER_HOUR = 60 if SOAK else 15
ROUNDS = 6 if SOAK else 1
_WIDTHS = {
    history_pb2.RESOLUTION_MINUTE: MICROS_PER_MINUTE,
    history_pb2.RESOLUTION_HOUR: MICROS_PER_HOUR,
    history_pb2.RESOLUTION_DAY: MICROS_PER_DAY,
}
_NUMERIC = {value_pb2.VALUE_KIND_DOUBLE, value_pb2.VALUE_KIND_INT, value_pb2.VALUE_KIND_BOOL}


@pytest.fixture(scope="module")
def quick_mesh() -> Iterator[Mesh]:
    """A mesh that seals what is over at once; ingest has two processes."""
    with own_mesh(TWINMESH_SEAL_AFTER_MINUTES="0", TWINMESH_INGEST_PROCESSES="2") as started:
        yield started


@pytest.fixture(scope="module")
def token(quick_mesh: Mesh) -> str:
    return quick_mesh.log_in()


@pytest.fixture
async def admin(quick_mesh: Mesh, token: str) -> AsyncIterator[httpx.AsyncClient]:
    async with quick_mesh.client(token) as client:
        yield client


@pytest.fixture
async def movement(
    quick_mesh: Mesh, admin: httpx.AsyncClient, chance: random.Random
) -> AsyncIterator[Movement]:
    """Some devices of this test's own."""
    devices = await new_devices(admin, DEVICES)
    database = await asyncpg.connect(quick_mesh.database_url("postgres"))
    yield Movement(quick_mesh, database, devices, ARCHIVED, chance)
    await database.close()


async def new_devices(admin: httpx.AsyncClient, number: int) -> list[str]:
    devices = sorted(f"moved-{uuid.uuid4().hex}" for _ in range(number))
    await make_devices(admin, devices)
    return devices


class Recording:
    """A fixed range of samples of all kinds: what is sent of it, and what then is to be answered."""

    def __init__(self, devices: Sequence[str], chance: random.Random) -> None:
        self._chance = chance
        times = [
            day + hour * MICROS_PER_HOUR + place * MICROS_PER_HOUR // PER_HOUR
            for day in DAYS
            for hour in HOURS
            for place in range(PER_HOUR)
        ]
        series = [(device, metric) for device in devices for metric in METRICS]
        self._first = [self._sample(*each, time_us) for each in series for time_us in times]
        self._corrections = [self._sample(*each[:3]) for each in self._first[::5]]
        self.samples = in_order(list({each[:3]: each for each in self._first + self._corrections}.values()))

    def commits(self) -> list[list[Sample]]:
        """Return what to send first: what comes in time, what comes late in between, what is corrected."""
        return [self._first[::2], self._first[1::2], self._corrections]

    def again(self, turn: int) -> list[Sample]:
        """Return a part of what is known, to be sent once more."""
        return self.samples[turn % 7 :: 7]

    def buckets(self, width_us: int) -> dict[tuple[str, str, int], list[float]]:
        """Return the values of each bucket in the order of their times, by device, metric and start."""
        found: dict[tuple[str, str, int], list[float]] = {}
        for device, metric, time_us, value in self.samples:
            if METRICS[metric][0] in _NUMERIC:
                assert isinstance(value, int | float)
                found.setdefault((device, metric, time_us - time_us % width_us), []).append(float(value))
        return found

    def _sample(self, device: str, metric: str, time_us: int) -> Sample:
        chance = self._chance
        value: Value
        match METRICS[metric][0]:
            case value_pb2.VALUE_KIND_DOUBLE:
                value = chance.uniform(-1e9, 1e9)
            case value_pb2.VALUE_KIND_INT:
                value = chance.randint(-1000, 1000)
            case value_pb2.VALUE_KIND_BOOL:
                value = chance.random() < 0.5
            case value_pb2.VALUE_KIND_STRING:
                value = "".join(chance.choices('aé€😀",', k=4))
            case _:
                value = chance.uniform(-90, 90), chance.uniform(-180, 180), chance.choice([None, 5.5])
        return Sample(device, metric, time_us, value)


class Reader:
    """Asks for the recording by each door in turn, and compares each answer."""

    def __init__(self, asker: Asker, recording: Recording) -> None:
        self._asker = asker
        self._recording = recording
        self._turns = 0
        self._turned = asyncio.Event()

    async def run(self) -> None:
        """Go on until cancelled.

        Raises:
            AssertionError: an answer is not the recording.
        """
        expected = self._recording.samples
        for resolution, width_us in cycle(_WIDTHS.items()):
            for ask in (self._asker.by_grpc, self._asker.by_json, self._asker.by_csv):
                found = await ask()
                assert len(found) == len(expected), ask
                assert found == expected, ask
            self._compare(await self._asker.buckets(resolution), self._recording.buckets(width_us))
            self._turns += 1
            self._turned.set()

    async def turn(self) -> None:
        """Wait until it has asked by each door from now on."""
        goal = self._turns + 2  # One turn is under way.
        while self._turns < goal:
            self._turned.clear()
            await self._turned.wait()

    def _compare(
        self, page: history_pb2.QuerySeriesResponse, expected: dict[tuple[str, str, int], list[float]]
    ) -> None:
        found = [
            ((one.device_id, one.history.metric, start), rest)
            for one in page.series
            for start, *rest in zip(
                one.buckets.start_times,
                one.buckets.counts,
                one.buckets.minimums,
                one.buckets.maximums,
                one.buckets.firsts,
                one.buckets.lasts,
                strict=True,
            )
        ]
        assert found == [
            (place, [len(values), min(values), max(values), values[0], values[-1]])
            for place, values in sorted(expected.items())
        ]
        sums = [each for one in page.series for each in one.buckets.sums]
        assert sums == pytest.approx([sum(values) for _, values in sorted(expected.items())])


@asynccontextmanager
async def reading(asker: Asker, recording: Recording) -> AsyncIterator[Reader]:
    """Let a reader go on while the block runs; when an answer is wrong the block ends."""
    reader = Reader(asker, recording)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reader.run())
        yield reader
        task.cancel()


class Others:
    """Sends other samples all the time: of now, and of the day before."""

    def __init__(self, mesh: Mesh, token: str, device: str) -> None:
        self._mesh = mesh
        self._token = token
        self.device = device
        self._stopping = False
        self.sent: list[Sample] = []

    async def run(self) -> None:
        """Go on until stopped."""
        for number in count(1):
            if self._stopping:
                return
            times = (TODAY - number * MICROS_PER_SECOND, time.time_ns() // 1000)
            samples = [Sample(self.device, "count", time_us, number) for time_us in times]
            await send(self._mesh, self._token, samples)
            self.sent += samples

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True


def text_of(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // MICROS_PER_SECOND, UTC).isoformat()


async def restore(admin: httpx.AsyncClient, day: int) -> str:
    """Ask for a day; returns the restore's id."""
    answer = await admin.post(
        "/v1/restores",
        json={"startTime": text_of(day), "endTime": text_of(day + MICROS_PER_HOUR), "keepDays": 1},
    )
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["id"]
    return made


async def archived_of_report(admin: httpx.AsyncClient) -> int:
    """Return how many samples the storage report finds in the archive."""
    usage = (await admin.get("/v1/storage")).json().get("usage", [])
    tiers: dict[str, Any] = {each["tier"]: each for each in usage}
    return int(tiers.get("STORAGE_TIER_ARCHIVED", {}).get("samples", 0))


async def test_every_answer_is_whole_while_all_moves_and_maintenance_dies(
    quick_mesh: Mesh, token: str, admin: httpx.AsyncClient, movement: Movement
) -> None:
    (await admin.patch("/v1/storagePolicy", json={"archiveAfter": "86400s"})).raise_for_status()
    recording = Recording(movement.devices, movement.chance)
    of_a_day = len(recording.samples) // len(DAYS)
    others = Others(quick_mesh, token, *await new_devices(admin, 1))
    turns = count()

    async def send_again() -> None:
        await send(quick_mesh, token, recording.again(next(turns)))

    async def pending() -> int:
        answer = await admin.get(f"/v1/restores/{restored}")
        return int(answer.json()["state"] != "RESTORE_STATE_DONE")

    async def unreported() -> int:
        return abs(await archived_of_report(admin) - (len(ARCHIVED) - 1) * of_a_day)

    async with asking(quick_mesh, token, movement.devices, DAYS[0], TODAY) as asker, sending([others]):
        async with unsettled(movement.database_url):
            for commit in recording.commits():
                await send(quick_mesh, token, commit)
            async with reading(asker, recording) as reader:
                await reader.turn()
            assert await movement.hot() == sum(map(len, recording.commits()))
        async with reading(asker, recording) as reader:
            for _ in range(ROUNDS):
                await movement.kill_amid(movement.hot)
                await send_again()
            await until_at_most(movement.hot)
            await reader.turn()
            assert await movement.sealed() == len(recording.samples)

            await movement.archive()
            await reader.turn()
            restored = await restore(admin, RESTORED)
            await movement.kill()
            await until_at_most(pending)
            movement.leaving = [day for day in ARCHIVED if day != RESTORED]
            await reader.turn()
            for _ in range(ROUNDS):
                # Over what is archived, what is restored, and what never was archived.
                await send_again()
                await movement.kill_amid(movement.hot)
                await until_at_most(movement.hot)
                await movement.archive()
            await reader.turn()
            await until_at_most(unreported)
        assert await movement.hot() == 0
        assert await movement.sealed() == 2 * of_a_day
    async with asking(quick_mesh, token, [others.device], DAYS[0], TODAY + 2 * MICROS_PER_DAY) as asker:
        assert await asker.by_grpc() == in_order(others.sent)


async def test_what_a_consumer_has_not_taken_stays_hot_until_it_has(
    quick_mesh: Mesh, token: str, movement: Movement
) -> None:
    device = movement.devices[0]
    taken, untaken = (
        [Sample(device, "count", YESTERDAY + 2 * place + first, place) for place in range(number)]
        for first, number in ((0, 5), (1, 3))
    )
    async with (
        asking(quick_mesh, token, [device], YESTERDAY, TODAY) as asker,
        stopped_feed_consumers(movement) as consumers,
    ):
        async with unsettled(movement.database_url):
            await send(quick_mesh, token, taken)
            await consumers.stop()
            await send(quick_mesh, token, untaken)
            assert await movement.hot() == len(taken) + len(untaken)
        async with another_maintenance(quick_mesh):
            # The same series and day: no other reason keeps the rest.
            await until_at_most(movement.hot, len(untaken))
            assert await movement.hot() == len(untaken)
            assert await asker.by_grpc() == in_order(taken + untaken)
            consumers.go_on()
            await until_at_most(movement.hot)
            assert await asker.by_grpc() == in_order(taken + untaken)


async def test_a_correction_by_an_older_process_of_ingest_holds_when_its_day_is_sealed(
    quick_mesh: Mesh, token: str, movement: Movement
) -> None:
    device = movement.devices[0]

    def valued(value: int) -> list[Sample]:
        return [Sample(device, "count", YESTERDAY + place, value) for place in range(5)]

    older, newer = "ingest_svc", "ingest_svc-2"
    await send_to(quick_mesh, older, token, valued(0))
    await asyncio.to_thread(quick_mesh.twinmesh, "restart", newer)
    await until_at_most(movement.hot)
    async with asking(quick_mesh, token, [device], YESTERDAY, TODAY) as asker:
        # The second time over what is sealed.
        for wrong, right in ((1, 2), (3, 4)):
            async with unsettled(movement.database_url):
                await send_to(quick_mesh, newer, token, valued(wrong))
                await send_to(quick_mesh, older, token, valued(right))
                first, last = await movement.instances()
                assert first > last
                assert await asker.by_grpc() == valued(right)
            await until_at_most(movement.hot)
            assert await asker.by_grpc() == valued(right)
