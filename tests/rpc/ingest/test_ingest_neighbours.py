"""What ingest does while the world around it changes, or is away."""

import asyncio
from pathlib import Path

import grpc
import pytest

from meshkit.embedded import EmbeddedNats
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, Refused, reading, running_ingest, serving, until
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

ANNOUNCED_DEVICE = b'{"devices": ["pump-1"], "device_types": []}'
ANNOUNCED_TYPE = b'{"devices": [], "device_types": ["pump"]}'
AWAY = Refused(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", {"dependency": "asset_svc"})


async def reason(ingest: Ingest, device_id: str) -> ErrorReason.ValueType | None:
    """Send a sample; return why it was refused, None when it was stored."""
    response = await ingest.send(reading(device_id, temperature=1.0))
    return response.refusals[0].reason if response.refusals else None


async def test_it_is_healthy_with_its_dependencies(ingest: Ingest) -> None:
    for service in ("", "twinmesh.ingest.v1.IngestService", "postgresql", "nats"):
        assert await ingest.is_serving(service)


async def test_a_device_is_known_soon_even_if_nobody_announces_it(ingest: Ingest) -> None:
    assert await reason(ingest, "new") == ErrorReason.ERROR_REASON_DEVICE_UNKNOWN
    ingest.assets.add("new")

    async def known() -> bool:
        return await reason(ingest, "new") is None

    await until(known)


@pytest.mark.parametrize(
    "payload", [ANNOUNCED_DEVICE, ANNOUNCED_TYPE, b"not JSON", b"\xff", b"[]", b"{}", b"null"]
)
async def test_a_change_counts_as_soon_as_it_is_announced(ingest: Ingest, payload: bytes) -> None:
    """What is announced in words not understood may be anything."""
    assert await reason(ingest, "pump-1") is None
    ingest.assets.add("pump-1", disabled=True)
    assert await reason(ingest, "pump-1") is None
    await ingest.announce(payload)

    async def disabled() -> bool:
        return await reason(ingest, "pump-1") == ErrorReason.ERROR_REASON_DEVICE_DISABLED

    await until(disabled)


async def test_another_tenants_announcement_changes_nothing(ingest: Ingest) -> None:
    assert await reason(ingest, "pump-1") is None
    assert await reason(ingest, "pump-2") is None
    await ingest.announce(ANNOUNCED_DEVICE, tenant="other")
    # Announced later, so that seeing this one means that the other was seen.
    await ingest.announce(b'{"devices": ["pump-2"], "device_types": []}')

    async def asked_again() -> bool:
        await reason(ingest, "pump-2")
        return ingest.assets.asked.count(["pump-2"]) == 2

    await until(asked_again)
    assert await reason(ingest, "pump-1") is None
    assert ingest.assets.asked.count(["pump-1"]) == 1


async def test_what_asset_svc_refuses_is_not_the_callers_mistake(ingest: Ingest) -> None:
    ingest.assets.refusing = True
    assert await ingest.refused(reading("pump-1", count=1)) == AWAY


async def test_concurrent_requests_ask_once_per_device(ingest: Ingest) -> None:
    ingest.assets.answering.clear()
    calls = [asyncio.create_task(ingest.send(reading("pump-1", count=index))) for index in range(20)]
    await until(lambda: bool(ingest.assets.asked))
    ingest.assets.answering.set()
    assert [call.stored_samples for call in await asyncio.gather(*calls)] == [1] * 20
    assert ingest.assets.asked == [["pump-1"]]


async def test_asset_svc_away(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    """What is known serves on; what is not is transient, never unknown, and consumes nothing."""
    assets = FakeAssets()
    assets.add("pump-1")
    assets.add("pump-2")
    async with serving(assets) as asset_address:
        pass
    async with running_ingest(
        database=database,
        nats_url=nats_url,
        auth_address=auth_address,
        mint=mint,
        assets=assets,
        asset_address=asset_address,
    ) as ingest:
        assert await ingest.refused(reading("pump-1", count=1), request_id="r-1") == AWAY
        assert await ingest.refused(reading("pump-1", count=1), writer_id="w", sequence=1) == AWAY
        async with serving(assets, listen=asset_address):

            async def stored() -> bool:
                try:
                    answer = await ingest.send(reading("pump-1", count=1), request_id="r-1")
                except grpc.aio.AioRpcError:
                    return False
                assert (answer.stored_samples, answer.duplicate) == (1, False)
                return True

            await until(stored)
        answer = await ingest.send(reading("pump-1", count=1), writer_id="w", sequence=1)
        assert (answer.stored_samples, answer.duplicate) == (1, False)
        assert await ingest.refused(reading("pump-1", count=1), reading("pump-2", count=1)) == AWAY
        assert len(await ingest.samples()) == 2


async def test_changes_missed_while_the_bus_was_away(
    database: TestDatabase, auth_address: str, mint: TokenMint, short_home: Path
) -> None:
    nats = EmbeddedNats(home=short_home)
    await nats.start_async()
    assets = FakeAssets()
    assets.add("pump-1")
    try:
        async with (
            serving(assets) as asset_address,
            running_ingest(
                database=database,
                nats_url=nats.url,
                auth_address=auth_address,
                mint=mint,
                assets=assets,
                asset_address=asset_address,
            ) as ingest,
        ):
            assert await reason(ingest, "pump-1") is None
            await nats.stop_async()

            async def bus_is_away() -> bool:
                return not await ingest.is_serving("nats")

            await until(bus_is_away)
            assets.add("pump-1", disabled=True)
            assert await reason(ingest, "pump-1") is None
            await nats.start_async()

            async def disabled() -> bool:
                return await reason(ingest, "pump-1") == ErrorReason.ERROR_REASON_DEVICE_DISABLED

            await until(disabled)
    finally:
        nats.remove()
