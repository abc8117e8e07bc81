"""What devices send by MQTT, with NATS and PostgreSQL: what is stored, and what becomes a dead letter."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import nats
import pytest

from ingest_svc import mqtt
from meshkit.clock import SystemClock
from meshkit.mqtt import STREAM
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.device_site import DeviceNats, device_nats_server
from tests.rpc.ingest.neighbours import (
    TENANT,
    FakeAssets,
    Ingest,
    reading,
    running_ingest,
    serving,
    until,
)

NOW = SystemClock().now_us()


@pytest.fixture
def site(short_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceNats]:
    monkeypatch.setattr(mqtt, "_LOOK_EVERY_S", 0.05)
    with device_nats_server(short_home) as server:
        yield server


class World:
    """ingest_svc processes of one mesh."""

    def __init__(self, site: DeviceNats, database: TestDatabase, auth_address: str, mint: TokenMint) -> None:
        self.site = site
        self.database = database
        self.auth_address = auth_address
        self.mint = mint
        self.assets = FakeAssets()
        self.asset_address = ""
        for device_id in ("pump-1", "pump-2"):
            self.assets.add(device_id)
        self.assets.add("off", disabled=True)
        self.assets.add("foreign", tenant="other")

    @asynccontextmanager
    async def ingest(self) -> AsyncIterator[Ingest]:
        async with running_ingest(
            database=self.database,
            nats_url=self.site.server.url,
            auth_address=self.auth_address,
            mint=self.mint,
            assets=self.assets,
            asset_address=self.asset_address,
            device_nats_url=self.site.url,
        ) as running:
            yield running

    async def letters(self, tenant: str = TENANT) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            rows = await connection.fetch(
                "SELECT device_ids[1] AS device_id, principal, reason, message, payload "
                "FROM telemetry.dead_letter WHERE tenant_id = $1 ORDER BY dead_letter_id",
                tenant,
            )
        finally:
            await connection.close()
        return [dict(row) for row in rows]

    async def reasons(self, tenant: str = TENANT) -> list[str]:
        return [f"{letter['device_id']}: {letter['reason']}" for letter in await self.letters(tenant)]


@pytest.fixture
async def world(
    site: DeviceNats, database: TestDatabase, auth_address: str, mint: TokenMint
) -> AsyncIterator[World]:
    made = World(site, database, auth_address, mint)
    async with serving(made.assets) as made.asset_address:
        yield made


def counting(number: int, **further: Any) -> bytes:
    return json.dumps({"time": (NOW + number) / 1e6, "count": number, **further}).encode()


async def counts(ingest: Ingest, *, tenant: str = TENANT, device: str = "pump-1") -> list[int]:
    found = await ingest.samples(tenant=tenant)
    return sorted(value for (of, metric, _), value in found.items() if (of, metric) == (device, "count"))


async def until_counts(ingest: Ingest, expected: list[int], **of: str) -> None:
    async def is_so() -> bool:
        return await counts(ingest, **of) == expected

    await until(is_so)


_ROWS = "SELECT coalesce(sum(cardinality(ints)), 0) FROM telemetry.segment WHERE ints IS NOT NULL"


async def rows(ingest: Ingest) -> int:
    """Return how many samples of the metric `count` are stored, repeated ones too."""
    return int(await ingest.fetch_value(_ROWS))


async def test_messages_of_both_qualities_are_stored_by_tenant(world: World) -> None:
    async with world.ingest() as ingest:
        await world.site.send(*map(counting, range(20)))
        await world.site.send(counting(1), device="foreign")
        await world.site.send(counting(20), qos=0)
        await until_counts(ingest, list(range(21)))
        await until_counts(ingest, [1], tenant="other", device="foreign")
        assert await rows(ingest) == 22
        assert await world.letters() == []


async def test_what_is_refused_becomes_dead_letters_and_the_rest_is_stored(world: World) -> None:
    async with world.ingest() as ingest:
        bad = [
            b"no json \0",
            counting(1, unheard=7),
            counting(2, **{"a\0b": 1, "x" * 2_000: 2}),
            json.dumps({"time": 5, "count": 3}).encode(),
            json.dumps([{"count": 4}, 5]).encode(),
        ]
        await world.site.send(*bad, at_once=False)
        await world.site.send(counting(7), device="off")
        await world.site.send(b"{}", device="foreign")
        await world.site.send(counting(9))
        await until_counts(ingest, [1, 2, 9])

        async def are_kept() -> bool:
            return len(await world.letters()) == 6 and len(await world.letters("other")) == 1

        await until(are_kept)
    letters = {letter["payload"]: letter for letter in await world.letters()}
    assert [letters[payload]["reason"] for payload in bad] == [
        "MESSAGE_MALFORMED",
        "METRIC_UNKNOWN",
        "METRIC_UNKNOWN",
        "TIME_OUT_OF_WINDOW",
        "MESSAGE_MALFORMED",
    ]
    assert "off: DEVICE_DISABLED" in await world.reasons()
    assert await world.reasons("other") == ["foreign: MESSAGE_MALFORMED"]
    assert {letter["principal"] for letter in letters.values()} == {"mqtt"}
    # What the device wrote is quoted and cut.
    told = letters[bad[2]]["message"]
    assert r"'a\x00b'" in told
    assert len(told) < 1_000


async def test_a_stray_clock_makes_no_partition(world: World) -> None:
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry.segment'::regclass"
    async with world.ingest() as ingest:
        before = await ingest.fetch_value(partitions)
        for year_us in (1_000_000, 4_102_444_800_000_000):
            await world.site.send(json.dumps({"time": year_us / 1e6, "count": 1}).encode())

        async def are_kept() -> bool:
            return await world.reasons() == ["pump-1: TIME_OUT_OF_WINDOW"] * 2

        await until(are_kept)
        assert await rows(ingest) == 0
        assert await ingest.fetch_value(partitions) == before


async def _limit(ingest: Ingest, limits: list[dict[str, Any]]) -> None:
    await ingest.fetch_value(
        "INSERT INTO telemetry.ingest_policy (tenant_id, limits) VALUES ($1, $2) RETURNING tenant_id",
        TENANT,
        json.dumps(limits),
    )


async def test_what_a_limit_holds_back_waits_and_holds_back_nobody_else(world: World) -> None:
    async with world.ingest() as first:
        await _limit(first, [{"subject_kind": 1, "subject": "", "samples_per_second": 10}])
    async with world.ingest() as ingest:  # It begins with the policies that there are.
        await world.site.send(json.dumps([json.loads(counting(number)) for number in range(60)]).encode())
        await until_counts(ingest, list(range(60)))
        # The tenant owes five seconds' worth now.
        await world.site.send(*map(counting, range(100, 103)))
        await world.site.send(counting(1), device="foreign")
        await until_counts(ingest, [1], tenant="other", device="foreign")
        await until_counts(ingest, [*range(60), 100, 101, 102])

        async def is_told() -> bool:
            hits = "SELECT coalesce(sum(batches), 0) FROM telemetry.limit_hit WHERE tenant_id = 'acme'"
            return int(await ingest.fetch_value(hits)) >= 1

        await until(is_told)
        assert await rows(ingest) == 64
        assert await world.letters() == []


async def test_a_device_over_its_limit_holds_back_no_other_device(world: World) -> None:
    async with world.ingest() as first:
        await _limit(first, [{"subject_kind": 2, "subject": "pump-1", "samples_per_second": 1}])
    async with world.ingest() as ingest:
        await world.site.send(json.dumps([json.loads(counting(number)) for number in range(30)]).encode())
        await until_counts(ingest, list(range(30)))
        await world.site.send(counting(100))
        await world.site.send(counting(200), qos=0)
        await world.site.send(*map(counting, range(5)), device="pump-2")
        await until_counts(ingest, list(range(5)), device="pump-2")
        assert await counts(ingest) == list(range(30))


async def test_a_device_that_nobody_knows_is_nobody_s(world: World) -> None:
    async with world.ingest() as ingest:
        await world.site.send(counting(1), device="unheard")
        await world.site.send(counting(2))
        await until_counts(ingest, [2])
        assert await world.letters() == []
        assert await rows(ingest) == 1


async def test_a_device_that_moved_belongs_to_its_new_tenant(world: World) -> None:
    async with world.ingest() as ingest:
        await world.site.send(counting(1))
        await until_counts(ingest, [1])
        del world.assets.devices[TENANT]["pump-1"]
        world.assets.add("pump-1", tenant="other")
        await ingest.announce(b'{"devices": ["pump-1"], "device_types": []}')
        asked = len(world.assets.asked)

        async def moved() -> bool:
            await world.site.send(counting(2))
            return bool(await counts(ingest, tenant="other"))

        await until(moved)
        assert len(world.assets.asked) > asked
        await world.site.send(counting(3))
        await until_counts(ingest, [2, 3], tenant="other")
        assert 3 not in await counts(ingest)


async def test_what_waited_while_a_device_changed_hands_is_not_its_new_tenants(world: World) -> None:
    await world.site.send(counting(1))
    device = world.assets.devices[TENANT].pop("pump-1")
    device.create_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=3))
    world.assets.devices.setdefault("other", {})["pump-1"] = device
    async with world.ingest() as ingest:

        async def taken() -> bool:
            await world.site.send(counting(2))
            return bool(await counts(ingest, tenant="other"))

        await until(taken)
        assert 1 not in await counts(ingest, tenant="other")
        assert await counts(ingest) == []


async def test_nothing_is_lost_or_stored_twice_while_postgresql_is_away(world: World) -> None:
    async with world.ingest() as ingest:
        await world.site.send(*map(counting, range(5)))
        await until_counts(ingest, list(range(5)))
        async with without_database(world.database) as connection:
            await world.site.send(*map(counting, range(5, 15)))
            assert await connection.fetchval(_ROWS) == 5
        await until_counts(ingest, list(range(15)))
        assert await rows(ingest) == 15


async def test_nothing_is_lost_or_stored_twice_when_asset_svc_is_away_and_ingest_restarts(
    world: World,
) -> None:
    world.assets.refusing = True
    async with world.ingest() as ingest:
        await world.site.send(*map(counting, range(10)))
        await until(lambda: bool(world.assets.asked))
        assert await rows(ingest) == 0
    world.assets.refusing = False
    async with world.ingest() as ingest, world.ingest():
        await world.site.send(*map(counting, range(10, 20)))
        await until_counts(ingest, list(range(20)))
        assert await rows(ingest) == 20


async def test_messages_delivered_again_are_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Acknowledgements are lost, as when a process is killed just before it sends them.
    acknowledge = mqtt.StreamedMessages._publish
    lost = asyncio.Event()

    async def lose(self: mqtt.StreamedMessages, subject: str, payload: bytes, *, reply: str = "") -> bool:
        if payload in (b"+ACK", b"-NAK") and not lost.is_set():
            return False
        return await acknowledge(self, subject, payload, reply=reply)

    monkeypatch.setattr(mqtt, "_ACK_WAIT_S", 1.0)
    monkeypatch.setattr(mqtt.StreamedMessages, "_publish", lose)
    async with world.ingest() as ingest:
        await world.site.send(*map(counting, range(10)), b"no json")
        await until_counts(ingest, list(range(10)))
    lost.set()
    async with world.ingest() as ingest:
        await world.site.send(counting(10))

        await until_counts(ingest, list(range(11)))
        client = await nats.connect(world.site.url)

        async def is_empty() -> bool:
            return not (await client.jetstream().stream_info(STREAM)).state.messages

        await until(is_empty)
        await client.close()
        assert await rows(ingest) == 11
    assert await world.reasons() == ["pump-1: MESSAGE_MALFORMED"]


@asynccontextmanager
async def without_database(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """Take the database away from ingest_svc for a while; yields the owner's connection."""
    name = database.admin_url.rsplit("/", 1)[1]
    admin = await asyncpg.connect(database.admin_url)
    own = await asyncpg.connect(database.url("twinmesh_ingest"))
    try:
        await admin.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
        await own.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
            """
        )
        yield admin
        await admin.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
    finally:
        await own.close()
        await admin.close()


async def test_messages_are_held_while_there_is_no_room(world: World) -> None:
    async with world.ingest() as ingest:
        await ingest.execute(
            "INSERT INTO telemetry.storage_room (refused, measured, used, size, reserved)"
            " VALUES (true, 'disk', 96, 100, 5)"
        )
    async with world.ingest() as ingest:  # It begins with what is known.
        await world.site.send(*map(counting, range(20)))
        with pytest.raises(grpc.aio.AioRpcError):
            await ingest.send(reading(count=100))
        assert await counts(ingest) == []
        await ingest.execute("UPDATE telemetry.storage_room SET refused = false")
        await until_counts(ingest, list(range(20)))
        assert await rows(ingest) == 20
        assert await world.letters() == []
