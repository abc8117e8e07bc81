"""StoragePolicyService: requests in, policies out."""

from typing import Any

from meshkit.identity import current_principal
from telemetry_store.storage_policies import StoragePolicyRow
from telemetry_store.storage_policy_messages import changed, to_policy
from telemetry_store.tenant_policies import PolicyStore
from twinmesh.ingest.v1 import storage_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import storage_policy_service_pb2_grpc as policy_grpc


class StoragePolicyServicer(policy_grpc.StoragePolicyServiceServicer):
    """Serves twinmesh.ingest.v1.StoragePolicyService.

    Args:
        store: where policies are written; maintenance goes by them.
    """

    def __init__(self, *, store: PolicyStore[StoragePolicyRow]) -> None:
        self._store = store

    async def GetStoragePolicy(
        self, request: policy_pb2.GetStoragePolicyRequest, context: Any
    ) -> policy_pb2.StoragePolicy:
        return to_policy(await self._store.read(current_principal().tenant))

    async def UpdateStoragePolicy(
        self, request: policy_pb2.UpdateStoragePolicyRequest, context: Any
    ) -> policy_pb2.StoragePolicy:
        row = await self._store.read(current_principal().tenant)
        made = changed(row, request.storage_policy, request.update_mask.paths)
        return to_policy(await self._store.write(made))
