"""StoragePolicyService: requests in, policies out."""

from collections.abc import Callable
from typing import Any

from meshkit import audit
from meshkit.identity import current_principal
from telemetry_store.storage_policies import Retention, StoragePolicyRow
from telemetry_store.storage_policy_messages import changed, to_policy
from telemetry_store.tenant_policies import PolicyStore
from twinmesh.ingest.v1 import storage_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import storage_policy_service_pb2_grpc as policy_grpc


class StoragePolicyServicer(policy_grpc.StoragePolicyServiceServicer):
    """Serves twinmesh.ingest.v1.StoragePolicyService.

    Args:
        store: where policies are written; maintenance goes by them.
        effective: tells what a policy comes to in this installation.
    """

    def __init__(
        self,
        *,
        store: PolicyStore[StoragePolicyRow],
        effective: Callable[[StoragePolicyRow], Retention],
    ) -> None:
        self._store = store
        self._effective = effective

    async def GetStoragePolicy(
        self, request: policy_pb2.GetStoragePolicyRequest, context: Any
    ) -> policy_pb2.StoragePolicy:
        row = await self._store.read(current_principal().tenant)
        return to_policy(row, effective=self._effective(row))

    async def UpdateStoragePolicy(
        self, request: policy_pb2.UpdateStoragePolicyRequest, context: Any
    ) -> policy_pb2.StoragePolicy:
        row = await self._store.read(current_principal().tenant)
        made, fields = changed(
            row, request.storage_policy, request.update_mask.paths, effective=self._effective(row)
        )
        audit.changed(fields)
        written = await self._store.write(made)
        return to_policy(written, effective=self._effective(written))
