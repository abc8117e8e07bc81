"""RoleService."""

from auth_svc.servicers.pages import next_page_token, position, size
from auth_svc.tenant_roles import TenantRoles
from meshkit.identity import current_principal
from twinmesh.auth.v1 import role_service_pb2 as pb
from twinmesh.auth.v1 import role_service_pb2_grpc


class RoleServicer(role_service_pb2_grpc.RoleServiceServicer):
    """Serves twinmesh.auth.v1.RoleService.

    Args:
        roles: the rules.
    """

    def __init__(self, *, roles: TenantRoles) -> None:
        self._roles = roles

    async def CreateRole(self, request: pb.CreateRoleRequest, context: object) -> pb.Role:
        """Add a role."""
        return await self._roles.create(current_principal(), request.role)

    async def GetRole(self, request: pb.GetRoleRequest, context: object) -> pb.Role:
        """Read one."""
        return await self._roles.get(current_principal().tenant, request.id)

    async def ListRoles(self, request: pb.ListRolesRequest, context: object) -> pb.ListRolesResponse:
        """List built-in roles and the tenant's own."""
        tenant = current_principal().tenant
        question = ["roles", tenant]
        found, more = await self._roles.page(
            tenant, after=position(question, request.page_token), limit=size(request.page_size)
        )
        return pb.ListRolesResponse(
            roles=found, next_page_token=next_page_token(question, found[-1].id if more else None)
        )

    async def UpdateRole(self, request: pb.UpdateRoleRequest, context: object) -> pb.Role:
        """Change one."""
        return await self._roles.update(current_principal(), request.role, request.update_mask.paths)

    async def DeleteRole(self, request: pb.DeleteRoleRequest, context: object) -> pb.DeleteRoleResponse:
        """Remove one."""
        await self._roles.delete(current_principal(), request.id, request.etag)
        return pb.DeleteRoleResponse()
