"""Telling the bus of changes never fails the change, and what is told is understood."""

import asyncio
import json
from collections.abc import Sequence

import nats
import pytest

from asset_svc.changes import BusChanges
from meshkit.asset_changes import AssetChange, follow_changes


async def test_a_bus_that_is_gone_is_no_error(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    await client.close()
    changes = BusChanges(client=client)
    await changes.devices("demo", ["temp-1"])
    await changes.device_types("demo", ["sensor"])


def test_what_travels_is_as_the_contract_says() -> None:
    change = AssetChange("demo", device_ids=["temp-1"], device_type_ids=["sensor"])
    assert change.subject == "asset.changed.demo"
    assert json.loads(change.payload) == {"devices": ["temp-1"], "device_types": ["sensor"]}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"devices": []}',
        b'{"devices": "temp-1", "device_types": []}',
        b'{"devices": [1], "device_types": []}',
    ],
)
def test_another_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        AssetChange.parse("asset.changed.demo", payload)


async def test_followers_forget_what_is_announced(nats_url: str) -> None:
    heard: asyncio.Queue[AssetChange] = asyncio.Queue()

    def forget(tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
        # The bus is shared: other tests' tenants are heard as well.
        if tenant == "followed":
            heard.put_nowait(AssetChange(tenant, device_ids, device_type_ids))

    async with await nats.connect(nats_url) as follower, await nats.connect(nats_url) as publisher:
        await follow_changes(follower, forget=forget, forget_all=lambda: None)
        await follower.flush()
        changes = BusChanges(client=publisher)
        await changes.devices("followed", ["temp-1", "temp-2"])
        await changes.device_types("followed", ["sensor"])
        told = [await heard.get(), await heard.get()]

    assert told == [
        AssetChange("followed", device_ids=["temp-1", "temp-2"], device_type_ids=[]),
        AssetChange("followed", device_ids=[], device_type_ids=["sensor"]),
    ]
