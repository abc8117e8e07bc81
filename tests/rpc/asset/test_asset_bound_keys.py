"""What a key that is bound to devices does to them through DeviceService."""

from collections.abc import Awaitable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import Caller, Connect
from twinmesh.asset.v1.asset_service_pb2 import Asset, CreateAssetRequest
from twinmesh.asset.v1.asset_type_service_pb2 import AssetType, CreateAssetTypeRequest
from twinmesh.asset.v1.device_service_pb2 import (
    DEVICE_ROLE_CHILD,
    DEVICE_ROLE_GATEWAY,
    Device,
    UpdateDeviceRequest,
)


@pytest.fixture
async def hall(caller: Caller) -> None:
    """An asset, and device `hub` on it."""
    await caller.asset_types.CreateAssetType(CreateAssetTypeRequest(asset_type=AssetType(id="site")))
    await caller.assets.CreateAsset(CreateAssetRequest(asset=Asset(id="hall", asset_type_id="site")))
    await caller.assets.CreateAsset(CreateAssetRequest(asset=Asset(id="yard", asset_type_id="site")))
    await caller.add_type()
    await caller.add_device("hub", role=DEVICE_ROLE_GATEWAY, asset_id="hall")


def _put(caller: Caller, asset_id: str) -> Awaitable[Device]:
    device = Device(id="hub", asset_id=asset_id)
    moved: Awaitable[Device] = caller.devices.UpdateDevice(
        UpdateDeviceRequest(device=device, update_mask=FieldMask(paths=["asset_id"]))
    )
    return moved


@pytest.mark.usefixtures("hall")
async def test_a_bound_key_does_not_learn_which_assets_exist(connect: Connect) -> None:
    bound = connect("demo", gateway_ids=["hub"])
    for asset_id in ("yard", "absent"):
        made = bound.add_device("sensor-1", role=DEVICE_ROLE_CHILD, parent_id="hub", asset_id=asset_id)
        for answer in (_put(bound, asset_id), made):
            assert (await failure(answer)).reason == "OUTSIDE_OF_SCOPE"
    # What its device is part of it may leave as it is, and take off.
    assert [(await _put(bound, each)).asset_id for each in ("hall", "")] == ["hall", ""]
    assert (await failure(_put(bound, "hall"))).reason == "OUTSIDE_OF_SCOPE"
    await bound.add_device("sensor-1", role=DEVICE_ROLE_CHILD, parent_id="hub")
