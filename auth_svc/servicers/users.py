"""UserService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auth_svc.login_limits import network
from auth_svc.servicers.pages import next_page_token, position, size
from auth_svc.users import Users
from meshkit.caller_address import caller_address
from meshkit.identity import current_principal
from twinmesh.auth.v1 import user_service_pb2 as pb
from twinmesh.auth.v1 import user_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    """Serves twinmesh.auth.v1.UserService.

    Args:
        users: the rules.
    """

    def __init__(self, *, users: Users) -> None:
        self._users = users

    async def CreateUser(self, request: pb.CreateUserRequest, context: object) -> pb.CreateUserResponse:
        """Add a user."""
        user, one_time = await self._users.create(current_principal(), request.user, request.password)
        return pb.CreateUserResponse(user=user, one_time_password=one_time)

    async def GetUser(self, request: pb.GetUserRequest, context: object) -> pb.User:
        """Read one."""
        return await self._users.get(current_principal().tenant, request.username)

    async def ListUsers(self, request: pb.ListUsersRequest, context: object) -> pb.ListUsersResponse:
        """List the tenant's users."""
        tenant = current_principal().tenant
        question = ["users", tenant, request.role]
        found, more = await self._users.page(
            tenant,
            role=request.role,
            after=position(question, request.page_token),
            limit=size(request.page_size),
        )
        return pb.ListUsersResponse(
            users=found, next_page_token=next_page_token(question, found[-1].username if more else None)
        )

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: object) -> pb.User:
        """Change one."""
        return await self._users.update(current_principal(), request.user, request.update_mask.paths)

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Context
    ) -> pb.ChangePasswordResponse:
        """Replace the caller's own password."""
        await self._users.change_password(
            current_principal(),
            request.old_password,
            request.new_password,
            address=network(caller_address(context)),
        )
        return pb.ChangePasswordResponse()

    async def ResetPassword(
        self, request: pb.ResetPasswordRequest, context: object
    ) -> pb.ResetPasswordResponse:
        """Replace another's password."""
        one_time = await self._users.reset_password(current_principal(), request.username, request.password)
        return pb.ResetPasswordResponse(one_time_password=one_time)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: object) -> pb.DeleteUserResponse:
        """Remove one."""
        await self._users.delete(current_principal(), request.username, request.etag)
        return pb.DeleteUserResponse()
