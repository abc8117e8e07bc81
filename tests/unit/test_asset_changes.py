"""Telling the bus of changes never fails the change."""

import nats

from asset_svc.changes import BusChanges


async def test_a_bus_that_is_gone_is_no_error(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    await client.close()
    changes = BusChanges(client=client)
    await changes.devices("demo", ["temp-1"])
    await changes.device_types("demo", ["sensor"])
