"""asset_svc as ingest sees it: the source of profiles, and of which assets exist."""

from collections.abc import Collection, Mapping, Sequence

import grpc

from ingest_svc.conversion import to_profiles
from ingest_svc.profile import DeviceProfile
from meshkit.client import call_dependency
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc

_PEER = "asset_svc"


class AssetProfiles:
    """Reads profiles and assets from asset_svc with this service's own identity."""

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = profile_grpc.ProfileServiceStub(channel)

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        """Return those of up to 10,000 devices that exist in the tenant, by id.

        Raises:
            Unavailable: asset_svc does not answer, or not with profiles.
        """
        request = profile_pb2.BatchGetProfilesRequest(tenant=tenant, device_ids=device_ids)
        return to_profiles(await call_dependency(self._stub.BatchGetProfiles, request, peer=_PEER))

    async def fetch_assets(self, tenant: str, asset_ids: Sequence[str]) -> Collection[str]:
        """Return those of up to 10,000 assets that exist in the tenant.

        Raises:
            Unavailable: asset_svc does not answer, or not with assets.
        """
        request = profile_pb2.BatchCheckAssetsRequest(tenant=tenant, asset_ids=asset_ids)
        return (await call_dependency(self._stub.BatchCheckAssets, request, peer=_PEER)).asset_ids

    async def fetch_tenants(self, device_ids: Sequence[str]) -> Mapping[str, str]:
        """Return the tenants of those of up to 10,000 devices that exist, by device id.

        Raises:
            Unavailable: asset_svc does not answer, or not with tenants.
        """
        request = profile_pb2.BatchGetTenantsRequest(device_ids=device_ids)
        return (await call_dependency(self._stub.BatchGetTenants, request, peer=_PEER)).tenants

    async def fetch_children(self, tenant: str, gateway_id: str, names: Sequence[str]) -> Mapping[str, str]:
        """Return device ids by up to 10,000 of a gateway's names for its children.

        Those that nobody knows are registered, if the gateway's type says so, and else left out.

        Raises:
            Unavailable: asset_svc does not answer, or not with children.
        """
        request = profile_pb2.BatchGetChildrenRequest(
            tenant=tenant, gateway_id=gateway_id, names=names, register=True
        )
        return (await call_dependency(self._stub.BatchGetChildren, request, peer=_PEER)).device_ids
