"""The list of deleted devices, by which certificates end with them."""

from typing import Any

import asyncpg

from meshkit.testing.database import TestDatabase
from tests.rpc.asset.conftest import Connect
from twinmesh.asset.v1.device_service_pb2 import DeleteDeviceRequest, UpdateDeviceRequest
from twinmesh.asset.v1.profile_service_pb2 import ListDeletedDevicesRequest


async def test_what_is_deleted_is_listed_once_of_all_tenants_in_order(
    connect: Connect, profiles: Any
) -> None:
    demo, rival = connect("demo"), connect("rival")
    await demo.add_type()
    await rival.add_type()
    first = await demo.add_device("pump-1")
    await rival.add_device("pump-9")
    await demo.add_device("pump-2")
    changed = await demo.devices.UpdateDevice(UpdateDeviceRequest(device=first))
    await demo.devices.DeleteDevice(DeleteDeviceRequest(id="pump-1"))
    await rival.devices.DeleteDevice(DeleteDeviceRequest(id="pump-9"))
    # Another device by that id, of whom it may be.
    second = await rival.add_device("pump-1")
    await rival.devices.DeleteDevice(DeleteDeviceRequest(id="pump-1"))
    found = (await profiles.ListDeletedDevices(ListDeletedDevicesRequest())).devices
    assert [(each.tenant, each.id) for each in found] == [
        ("demo", "pump-1"),
        ("rival", "pump-9"),
        ("rival", "pump-1"),
    ]
    assert found[0].create_time == first.create_time == changed.create_time
    assert found[2].create_time == second.create_time != first.create_time
    assert [each.number for each in found] == sorted(each.number for each in found)
    rest = await profiles.ListDeletedDevices(ListDeletedDevicesRequest(after_number=found[0].number))
    assert list(rest.devices) == list(found[1:])
    page = await profiles.ListDeletedDevices(ListDeletedDevicesRequest(page_size=2))
    assert list(page.devices) == list(found[:2])
    page = await profiles.ListDeletedDevices(
        ListDeletedDevicesRequest(page_size=2, page_token=page.next_page_token)
    )
    assert (list(page.devices), page.next_page_token) == (list(found[2:]), "")
    last = await profiles.ListDeletedDevices(ListDeletedDevicesRequest(after_number=found[2].number))
    assert not last.devices


async def test_what_no_certificate_outlives_is_forgotten_a_few_at_a_time(
    connect: Connect, database: TestDatabase
) -> None:
    demo = connect("demo")
    await demo.add_type()
    await demo.add_device("pump-1")
    connection = await asyncpg.connect(database.admin_url)
    try:
        for tenant, days in (("demo", 901), ("rival", 901), ("demo", 899)):
            await connection.execute(
                "INSERT INTO asset.deleted_device (tenant_id, id, create_time, delete_time) "
                "SELECT $1, 'old-' || n, now(), now() - make_interval(days => $2) "
                "FROM generate_series(1, 12) n",
                tenant,
                days,
            )
        await demo.devices.DeleteDevice(DeleteDeviceRequest(id="pump-1"))
        left = await connection.fetch(
            "SELECT tenant_id, now() - delete_time > interval '900 days' AS is_old, count(*)::int AS rows "
            "FROM asset.deleted_device GROUP BY 1, 2 ORDER BY 1, 2"
        )
    finally:
        await connection.close()
    assert [tuple(row) for row in left] == [("demo", False, 13), ("demo", True, 2), ("rival", True, 12)]
