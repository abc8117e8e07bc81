"""`twinmesh roles`: what users may do, by built-in roles and the tenant's own."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from twinmesh.auth.v1 import role_service_pb2, role_service_pb2_grpc
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000

roles_app = typer.Typer(
    help="What users may do, by built-in roles and the tenant's own.", invoke_without_command=True
)
RoleId = Annotated[str, typer.Argument(help="The role's id.")]
DisplayName = Annotated[str | None, typer.Option(help="What people call it.")]


@roles_app.callback()
def roles(context: typer.Context) -> None:
    """List all roles by id, with their permissions."""
    if context.invoked_subcommand is not None:
        return

    async def listed(session: Session) -> tuple[list[role_service_pb2.Role], bool]:
        return await session.listed(
            _stub(session).ListRoles,
            role_service_pb2.ListRolesRequest(),
            lambda page: page.roles,
            limit=_PAGE,
            page_size=_PAGE,
        )

    found, is_all = run(listed)
    table = Table("role", "name", "", "permissions")
    for role in found:
        kind = "built in" if role.built_in else ""
        cells = (role.id, role.display_name, kind, " ".join(role.permissions))
        table.add_row(*(Text(visible(cell)) for cell in cells))
    table_console().print(table)
    if not is_all:
        print(f"and more than these {_PAGE:,}")


@roles_app.command(name="create")
def create(
    role_id: RoleId,
    permission: Annotated[list[str], typer.Option(help="Permission that it carries; repeatable.")],
    display_name: DisplayName = None,
) -> None:
    """Add a role; you can only put into it what you hold."""
    role = role_service_pb2.Role(id=role_id, permissions=permission, display_name=display_name or "")

    async def created(session: Session) -> role_service_pb2.Role:
        request = role_service_pb2.CreateRoleRequest(role=role)
        answer: role_service_pb2.Role = await session.call(_stub(session).CreateRole, request)
        return answer

    _show(run(created))


@roles_app.command(name="update")
def update(
    role_id: RoleId,
    permission: Annotated[
        list[str] | None, typer.Option(help="Permission that it is to carry, repeatable: all of them.")
    ] = None,
    display_name: DisplayName = None,
) -> None:
    """Change a role; other permissions end the sessions of its users."""
    request = role_service_pb2.UpdateRoleRequest(role=role_service_pb2.Role(id=role_id))
    if permission:
        request.role.permissions.extend(permission)
        request.update_mask.paths.append("permissions")
    if display_name is not None:
        request.role.display_name = display_name
        request.update_mask.paths.append("display_name")
    if not request.update_mask.paths:
        fail("say what to change: --permission, --display-name")

    async def updated(session: Session) -> role_service_pb2.Role:
        answer: role_service_pb2.Role = await session.call(_stub(session).UpdateRole, request)
        return answer

    _show(run(updated))


@roles_app.command(name="delete")
def delete(role_id: RoleId) -> None:
    """Remove a role that no user has."""
    request = role_service_pb2.DeleteRoleRequest(id=role_id)

    async def deleted(session: Session) -> None:
        await session.call(_stub(session).DeleteRole, request)

    run(deleted)
    print(f"{role_id} is deleted")


def _stub(session: Session) -> Any:
    return role_service_pb2_grpc.RoleServiceStub(session.channel)


def _show(role: role_service_pb2.Role) -> None:
    print(f"{role.id} carries {' '.join(role.permissions) or 'nothing'}")
