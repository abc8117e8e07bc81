"""Reads sample_data.yaml into messages of the contract."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from google.protobuf.json_format import ParseDict

from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.asset.v1.asset_type_service_pb2 import AssetType
from twinmesh.asset.v1.device_service_pb2 import Device
from twinmesh.asset.v1.device_type_service_pb2 import DeviceType


@dataclass(frozen=True, slots=True)
class SampleData:
    """Resources to create, those that others refer to first."""

    device_types: list[DeviceType]
    asset_types: list[AssetType]
    assets: list[Asset]
    devices: list[Device]


def sample_data() -> SampleData:
    """Return the sample data, fresh messages each time."""
    text = (resources.files(__package__) / "sample_data.yaml").read_text("utf-8")
    told = yaml.safe_load(text)
    devices = [*told["devices"], *(device for fleet in told["fleets"] for device in _members(fleet))]
    return SampleData(
        device_types=[ParseDict(each, DeviceType()) for each in told["device_types"]],
        asset_types=[ParseDict(each, AssetType()) for each in told["asset_types"]],
        assets=[ParseDict(each, Asset()) for each in told["assets"]],
        devices=[ParseDict(each, Device()) for each in devices],
    )


def _members(fleet: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for number in range(1, fleet["count"] + 1):
        yield {name: text.format(n=number) for name, text in fleet["device"].items()}
