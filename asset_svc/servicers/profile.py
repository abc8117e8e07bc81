"""ProfileService: the contract's side of the rules of profiles."""

from typing import Any

from asset_svc.asset import Assets
from asset_svc.children import Children
from asset_svc.profile import Deleted, Profiles, Tenants
from meshkit import paging
from twinmesh.asset.v1 import profile_service_pb2 as contract
from twinmesh.asset.v1 import profile_service_pb2_grpc as contract_grpc

_DEFAULT_PAGE, _LONGEST_PAGE = 1_000, 10_000  # as the contract says


class ProfileServicer(contract_grpc.ProfileServiceServicer):
    """Serves profiles to services, which have no tenant of their own: the request names it.

    Args:
        profiles: their rules.
        tenants: finds whose devices are.
        assets: the rules of assets.
        children: the rules of devices behind gateways.
        deleted: finds devices that are gone.
    """

    def __init__(
        self, *, profiles: Profiles, tenants: Tenants, assets: Assets, children: Children, deleted: Deleted
    ) -> None:
        self._profiles = profiles
        self._tenants = tenants
        self._assets = assets
        self._children = children
        self._deleted = deleted

    async def BatchGetProfiles(
        self, request: contract.BatchGetProfilesRequest, context: Any
    ) -> contract.BatchGetProfilesResponse:
        found = await self._profiles.find(request.tenant, request.device_ids)
        return contract.BatchGetProfilesResponse(
            devices=found.devices, device_types=found.device_types, assets=found.assets
        )

    async def ListProfiles(
        self, request: contract.ListProfilesRequest, context: Any
    ) -> contract.ListProfilesResponse:
        page = await self._profiles.page(request)
        return contract.ListProfilesResponse(
            devices=page.devices, device_types=page.device_types, next_page_token=page.next_page_token
        )

    async def ListDeletedDevices(
        self, request: contract.ListDeletedDevicesRequest, context: Any
    ) -> contract.ListDeletedDevicesResponse:
        question = ["deleted devices", request.after_number]
        after = paging.number_after(question, request.page_token, first=request.after_number)
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE)
        found = await self._deleted.after(after, limit=size + 1)
        page = found[:size]
        answer = contract.ListDeletedDevicesResponse(
            next_page_token=paging.encode(question, page[-1].number) if len(found) > size else ""
        )
        for device in page:
            message = answer.devices.add(number=device.number, tenant=device.tenant, id=device.id)
            message.create_time.FromMicroseconds(device.create_us)
        return answer

    async def BatchGetTenants(
        self, request: contract.BatchGetTenantsRequest, context: Any
    ) -> contract.BatchGetTenantsResponse:
        return contract.BatchGetTenantsResponse(tenants=await self._tenants.find(request.device_ids))

    async def BatchGetChildren(
        self, request: contract.BatchGetChildrenRequest, context: Any
    ) -> contract.BatchGetChildrenResponse:
        found = await self._children.find(
            request.tenant, request.gateway_id, request.names, register=request.register
        )
        return contract.BatchGetChildrenResponse(device_ids=found)

    async def BatchCheckAssets(
        self, request: contract.BatchCheckAssetsRequest, context: Any
    ) -> contract.BatchCheckAssetsResponse:
        return contract.BatchCheckAssetsResponse(
            asset_ids=await self._assets.existing(request.tenant, request.asset_ids)
        )

    async def GetSubtree(
        self, request: contract.GetSubtreeRequest, context: Any
    ) -> contract.GetSubtreeResponse:
        return contract.GetSubtreeResponse(
            asset_ids=await self._assets.subtree(request.tenant, request.asset_id)
        )
