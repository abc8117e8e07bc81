"""Devices with their types, read in one transaction."""

from asset_svc.stores.device import DeviceRows
from asset_svc.stores.device_type import DeviceTypeRows
from meshkit.db import Connection


class ProfileRows:
    """One tenant's devices and device types.

    Attributes:
        devices: the tenant's.
        device_types: the tenant's.
    """

    def __init__(self, connection: Connection, tenant: str) -> None:
        self.devices = DeviceRows(connection, tenant)
        self.device_types = DeviceTypeRows(connection, tenant)
