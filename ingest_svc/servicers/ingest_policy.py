"""IngestPolicyService: requests in, policies out."""

from typing import Any

from ingest_svc.ingest_policies import IngestPolicies
from ingest_svc.policy_conversion import to_policy, to_row
from ingest_svc.window import LiveWindow
from meshkit import audit
from meshkit.identity import current_principal
from meshkit.updates import changed_fields, updated
from meshkit.validation import validate
from telemetry_store.ingest_policies import INGEST_POLICIES, IngestPolicyRow
from telemetry_store.tenant_policies import PolicyStore
from twinmesh.ingest.v1 import ingest_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc


class IngestPolicyServicer(policy_grpc.IngestPolicyServiceServicer):
    """Serves twinmesh.ingest.v1.IngestPolicyService.

    Args:
        store: where policies are written.
        policies: goes by them; told of what is written here, others find it.
        live_window: the installation's, the largest that a tenant may have.
        max_connections: the installation's, the most that a tenant may have.
    """

    def __init__(
        self,
        *,
        store: PolicyStore[IngestPolicyRow],
        policies: IngestPolicies,
        live_window: LiveWindow,
        max_connections: int,
    ) -> None:
        self._store = store
        self._policies = policies
        self._live_window = live_window
        self._max_connections = max_connections

    async def GetIngestPolicy(
        self, request: policy_pb2.GetIngestPolicyRequest, context: Any
    ) -> policy_pb2.IngestPolicy:
        return self._told(await self._store.read(current_principal().tenant))

    async def UpdateIngestPolicy(
        self, request: policy_pb2.UpdateIngestPolicyRequest, context: Any
    ) -> policy_pb2.IngestPolicy:
        row = await self._store.read(current_principal().tenant)
        sent = request.ingest_policy
        INGEST_POLICIES.require_etag(row, sent.etag)
        current = self._told(row)
        changed = updated(current, sent, request.update_mask.paths)
        audit.changed(changed_fields(current, changed))
        # What a mask puts together was not seen by the interceptor.
        validate(changed)
        written = await self._store.write(to_row(changed, row, self._live_window))
        self._policies.take([written])
        return self._told(written)

    def _told(self, row: IngestPolicyRow) -> policy_pb2.IngestPolicy:
        return to_policy(row, self._live_window, max_connections=self._max_connections)
