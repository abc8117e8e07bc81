"""AssetTypeService: the contract's side of the rules of asset types."""

from typing import Any

from asset_svc.asset_type import AssetTypes
from meshkit.identity import current_principal
from twinmesh.asset.v1 import asset_type_service_pb2 as contract
from twinmesh.asset.v1 import asset_type_service_pb2_grpc as contract_grpc


class AssetTypeServicer(contract_grpc.AssetTypeServiceServicer):
    """Serves asset types of the caller's tenant.

    Args:
        asset_types: their rules.
    """

    def __init__(self, *, asset_types: AssetTypes) -> None:
        self._asset_types = asset_types

    async def CreateAssetType(
        self, request: contract.CreateAssetTypeRequest, context: Any
    ) -> contract.AssetType:
        return await self._asset_types.create(current_principal().tenant, request.asset_type)

    async def GetAssetType(self, request: contract.GetAssetTypeRequest, context: Any) -> contract.AssetType:
        return await self._asset_types.get(current_principal().tenant, request.id)

    async def ListAssetTypes(
        self, request: contract.ListAssetTypesRequest, context: Any
    ) -> contract.ListAssetTypesResponse:
        asset_types, next_page_token = await self._asset_types.page(current_principal().tenant, request)
        return contract.ListAssetTypesResponse(asset_types=asset_types, next_page_token=next_page_token)

    async def UpdateAssetType(
        self, request: contract.UpdateAssetTypeRequest, context: Any
    ) -> contract.AssetType:
        return await self._asset_types.update(
            current_principal().tenant, request.asset_type, request.update_mask.paths
        )

    async def DeleteAssetType(
        self, request: contract.DeleteAssetTypeRequest, context: Any
    ) -> contract.DeleteAssetTypeResponse:
        await self._asset_types.delete(current_principal().tenant, request.id, request.etag)
        return contract.DeleteAssetTypeResponse()
