"""AssetService: the contract's side of the rules of assets."""

from typing import Any

from asset_svc.asset import Assets
from meshkit.identity import current_principal
from twinmesh.asset.v1 import asset_service_pb2 as contract
from twinmesh.asset.v1 import asset_service_pb2_grpc as contract_grpc


class AssetServicer(contract_grpc.AssetServiceServicer):
    """Serves assets of the caller's tenant.

    Args:
        assets: their rules.
    """

    def __init__(self, *, assets: Assets) -> None:
        self._assets = assets

    async def CreateAsset(self, request: contract.CreateAssetRequest, context: Any) -> contract.Asset:
        return await self._assets.create(current_principal().tenant, request.asset)

    async def GetAsset(self, request: contract.GetAssetRequest, context: Any) -> contract.Asset:
        return await self._assets.get(current_principal().tenant, request.id)

    async def ListAssets(
        self, request: contract.ListAssetsRequest, context: Any
    ) -> contract.ListAssetsResponse:
        assets, next_page_token = await self._assets.page(current_principal().tenant, request)
        return contract.ListAssetsResponse(assets=assets, next_page_token=next_page_token)

    async def UpdateAsset(self, request: contract.UpdateAssetRequest, context: Any) -> contract.Asset:
        return await self._assets.update(current_principal().tenant, request.asset, request.update_mask.paths)

    async def DeleteAsset(
        self, request: contract.DeleteAssetRequest, context: Any
    ) -> contract.DeleteAssetResponse:
        await self._assets.delete(current_principal().tenant, request.id, request.etag)
        return contract.DeleteAssetResponse()
