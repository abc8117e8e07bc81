"""TenantService."""

from auth_svc.servicers.pages import next_page_token, position, size
from auth_svc.tenants import Tenants
from twinmesh.auth.v1 import tenant_service_pb2 as pb
from twinmesh.auth.v1 import tenant_service_pb2_grpc

_QUESTION = ["tenants"]


class TenantServicer(tenant_service_pb2_grpc.TenantServiceServicer):
    """Serves twinmesh.auth.v1.TenantService.

    Args:
        tenants: the rules.
    """

    def __init__(self, *, tenants: Tenants) -> None:
        self._tenants = tenants

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: object) -> pb.CreateTenantResponse:
        """Add a tenant."""
        tenant, one_time = await self._tenants.create(
            request.tenant.id, request.administrator, request_id=request.request_id
        )
        return pb.CreateTenantResponse(tenant=tenant, one_time_password=one_time)

    async def GetTenant(self, request: pb.GetTenantRequest, context: object) -> pb.Tenant:
        """Read one."""
        return await self._tenants.get(request.id)

    async def ListTenants(self, request: pb.ListTenantsRequest, context: object) -> pb.ListTenantsResponse:
        """List all."""
        found, more = await self._tenants.page(
            after=position(_QUESTION, request.page_token), limit=size(request.page_size)
        )
        return pb.ListTenantsResponse(
            tenants=found, next_page_token=next_page_token(_QUESTION, found[-1].id if more else None)
        )

    async def SuspendTenant(self, request: pb.SuspendTenantRequest, context: object) -> pb.Tenant:
        """Keep everybody of one out."""
        return await self._tenants.suspend(request.id)

    async def ResumeTenant(self, request: pb.ResumeTenantRequest, context: object) -> pb.Tenant:
        """Let them in again."""
        return await self._tenants.resume(request.id)

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: object) -> pb.Tenant:
        """Have all deleted that a suspended one has."""
        return await self._tenants.delete(request.id, request.export_digest)
