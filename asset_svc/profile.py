"""Rules of profiles: what the other services need to know of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from asset_svc.device_rows import DeviceRows
from asset_svc.listing import read_page
from asset_svc.resources import Rows, Store
from meshkit.scope import Scope
from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.asset.v1.device_service_pb2 import Device, ListDevicesRequest
from twinmesh.asset.v1.device_type_service_pb2 import DeviceType
from twinmesh.asset.v1.profile_service_pb2 import ListProfilesRequest

_DEFAULT_PAGE = 1000
_MAXIMUM_PAGE = 10_000


class ProfileRows(Protocol):
    """One tenant's devices and device types, inside of one snapshot."""

    @property
    def devices(self) -> DeviceRows:
        """The tenant's devices."""
        ...

    @property
    def device_types(self) -> Rows[DeviceType]:
        """The tenant's device types."""
        ...

    @property
    def assets(self) -> Rows[Asset]:
        """The tenant's assets."""
        ...


class Tenants(Protocol):
    """Finds whose devices are."""

    async def find(self, device_ids: Sequence[str]) -> dict[str, str]:
        """Return the tenants of those devices that exist, by device id."""
        ...


@dataclass(frozen=True, slots=True)
class DeletedDevice:
    """A device that is gone.

    Attributes:
        number: its place in the list of them, in the order of deletions.
        tenant: whose it was.
        id: its id, which another device may have by now.
        create_us: when it was made, microseconds since the epoch, which tells the two apart.
    """

    number: int
    tenant: str
    id: str
    create_us: int


class Deleted(Protocol):
    """Finds devices that are gone."""

    async def after(self, number: int, *, limit: int) -> Sequence[DeletedDevice]:
        """Return those of all tenants after a number, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class ProfilePage:
    """Devices, and the types they are of and assets they are on, each once; a page has no assets."""

    devices: list[Device]
    device_types: list[DeviceType]
    assets: Sequence[Asset] = ()
    next_page_token: str = ""


class Profiles:
    """Devices with their types, for a tenant that the calling service names.

    Args:
        store: whose transactions read from one snapshot.
    """

    def __init__(self, *, store: Store[ProfileRows]) -> None:
        self._store = store

    async def find(self, tenant: str, device_ids: Sequence[str]) -> ProfilePage:
        """Read those devices that exist, in no order."""
        async with self._store.transaction(tenant) as rows:
            devices = await rows.devices.find(device_ids)
            assets = await rows.assets.find(sorted({device.asset_id for device in devices} - {""}))
            return ProfilePage(devices, await _types_of(rows, devices), assets)

    async def page(self, request: ListProfilesRequest) -> ProfilePage:
        """Read one page of a tenant's devices by id.

        Raises:
            InvalidArgument: PAGE_TOKEN_INVALID.
        """
        filters = ListDevicesRequest(device_type_id=request.device_type_id)
        scope = None
        if request.HasField("scope"):
            scope = Scope(frozenset(request.scope.device_ids), frozenset(request.scope.gateway_ids))
        async with self._store.transaction(request.tenant) as rows:

            async def fetch(after: str, limit: int) -> list[Device]:
                return await rows.devices.page(filters, after=after, limit=limit, scope=scope)

            devices, next_page_token = await read_page(
                request,
                tenant=request.tenant,
                default_size=_DEFAULT_PAGE,
                maximum_size=_MAXIMUM_PAGE,
                fetch=fetch,
            )
            return ProfilePage(devices, await _types_of(rows, devices), next_page_token=next_page_token)


async def _types_of(rows: ProfileRows, devices: Sequence[Device]) -> list[DeviceType]:
    return await rows.device_types.find(sorted({device.device_type_id for device in devices}))
