"""Makes the simulated fleet's device type and devices in the caller's tenant, as far as they are absent."""

from collections.abc import Sequence
from typing import Any

import grpc

from twinmesh.asset.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    device_type_service_pb2,
    device_type_service_pb2_grpc,
)
from twinmesh.type.v1 import value_pb2
from twinmesh_cli.session import Session, fail
from twinmesh_cli.simulation import METRICS

DEVICE_TYPE = "simulated"
_TAG = "simulated"
_HEARTBEAT_S = 60
_PER_REQUEST = 1000


def device_ids(devices: int, prefix: str) -> list[str]:
    """Return the ids of a fleet: `sim-0001` and so on."""
    return [f"{prefix}-{number:04}" for number in range(1, devices + 1)]


async def make_devices(session: Session, ids: Sequence[str], *, rate: float) -> int:
    """Make what is absent; return how many devices that were.

    Ends the program when the type is another one than the simulation's, or an id is taken.

    Raises:
        grpc.aio.AioRpcError: a request failed.
    """
    await _make_type(session, rate)
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(session.channel)
    existing = await _existing(session, stub)
    absent = [id_ for id_ in ids if id_ not in existing]
    for first in range(0, len(absent), _PER_REQUEST):
        request = device_service_pb2.BatchCreateDevicesRequest()
        for id_ in absent[first : first + _PER_REQUEST]:
            request.devices.add(
                id=id_,
                display_name=f"Simulated {id_}",
                device_type_id=DEVICE_TYPE,
                tags=[_TAG],
            )
        try:
            await session.call(stub.BatchCreateDevices, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            fail(
                f"{error.details()}: it is of another type, or another tenant's (ids are unique in the whole "
                "installation); choose other ids with --prefix"
            )
    return len(absent)


async def _make_type(session: Session, rate: float) -> None:
    stub: Any = device_type_service_pb2_grpc.DeviceTypeServiceStub(session.channel)
    wanted = device_type_service_pb2.DeviceType(id=DEVICE_TYPE, display_name="Simulated machine")
    # Nobody is offline only because samples are rare.
    wanted.heartbeat.FromSeconds(max(_HEARTBEAT_S, round(3 / rate)))
    for metric in METRICS:
        wanted.metrics.add(
            name=metric.name,
            kind=value_pb2.ValueKind.ValueType(metric.kind),
            unit=metric.unit,
            display_name=metric.display_name,
        )
    try:
        found = await session.call(
            stub.GetDeviceType, device_type_service_pb2.GetDeviceTypeRequest(id=DEVICE_TYPE)
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    else:
        _require_fit(found, wanted)
        return
    try:
        await session.call(
            stub.CreateDeviceType, device_type_service_pb2.CreateDeviceTypeRequest(device_type=wanted)
        )
    except grpc.aio.AioRpcError as error:
        # Another simulation was quicker, and made the same.
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise


def _require_fit(
    found: device_type_service_pb2.DeviceType, wanted: device_type_service_pb2.DeviceType
) -> None:
    kinds = {metric.name: metric.kind for metric in found.metrics}
    for metric in wanted.metrics:
        if kinds.get(metric.name) != metric.kind:
            kind = value_pb2.ValueKind.Name(metric.kind).removeprefix("VALUE_KIND_").lower()
            fail(
                f"device type {DEVICE_TYPE!r} is there and defines no metric {metric.name!r} of kind {kind}; "
                "add it, or delete the type"
            )


async def _existing(session: Session, stub: Any) -> set[str]:
    request = device_service_pb2.ListDevicesRequest(device_type_id=DEVICE_TYPE, page_size=_PER_REQUEST)
    ids: set[str] = set()
    while True:
        page = await session.call(stub.ListDevices, request)
        ids |= {device.id for device in page.devices}
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token
