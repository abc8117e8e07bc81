"""The four kinds of resources that asset_svc keeps, in the contract's own messages."""

from typing import TypeVar

from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.asset.v1.asset_type_service_pb2 import AssetType
from twinmesh.asset.v1.device_service_pb2 import Device
from twinmesh.asset.v1.device_type_service_pb2 import DeviceType

Resource = Device | DeviceType | Asset | AssetType
ResourceT = TypeVar("ResourceT", Device, DeviceType, Asset, AssetType)
