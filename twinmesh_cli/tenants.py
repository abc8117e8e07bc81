"""`twinmesh tenants`: the tenants of the installation, for its operators."""

import asyncio
import secrets
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from meshkit.embedded import PartFailedError
from meshkit.identity import SYSTEM_TENANT
from twinmesh.auth.v1 import tenant_service_pb2, tenant_service_pb2_grpc
from twinmesh_cli.database import DatabaseAwayError, reachable_database
from twinmesh_cli.home import Home, mesh_secret
from twinmesh_cli.seeding import PASSWORD_BYTES, make_operator
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console

_PAGE = 1_000

tenants_app = typer.Typer(
    help="The tenants of the installation; for operators, who log in to tenant `system`.",
    invoke_without_command=True,
)
TenantId = Annotated[str, typer.Argument(help="The tenant's id.")]


@tenants_app.callback()
def tenants(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 1_000,
) -> None:
    """List tenants by id."""
    if context.invoked_subcommand is not None:
        return
    request = tenant_service_pb2.ListTenantsRequest()

    async def listed(session: Session) -> tuple[list[tenant_service_pb2.Tenant], bool]:
        return await session.listed(
            _stub(session).ListTenants, request, lambda page: page.tenants, limit=limit, page_size=_PAGE
        )

    found, is_all = run(listed)
    table = Table("tenant", "made", "state")
    for tenant in found:
        table.add_row(tenant.id, f"{tenant.create_time.ToDatetime():%F %T} UTC", _state(tenant))
    table_console().print(table)
    if not is_all:
        print(f"and more; --limit shows more than {limit:,}")


@tenants_app.command(name="init")
def init() -> None:
    """Make the first operator, user `admin` of tenant `system`, in this machine's mesh; once."""
    settings = load_settings()
    home = Home(settings.home)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    try:
        with reachable_database(settings, home) as url:
            created = asyncio.run(
                make_operator(
                    settings, admin_url=url, mesh_secret=mesh_secret(settings, home), password=password
                )
            )
    except (DatabaseAwayError, PartFailedError) as error:
        fail(str(error))
    if not created:
        fail(f"tenant {SYSTEM_TENANT} has a user admin already; nothing was changed")
    print(f"user admin of tenant {SYSTEM_TENANT}; password, shown this once: {password}")
    print(f"next: twinmesh login --tenant {SYSTEM_TENANT}")


@tenants_app.command(name="create")
def create(
    tenant: TenantId,
    administrator: Annotated[str, typer.Option(help="Name of its first user, of role admin.")] = "admin",
    request_id: Annotated[
        str, typer.Option(help="That of a call whose answer was lost, to have another password; else none.")
    ] = "",
) -> None:
    """Add a tenant and its administrator, with a one-time password to hand to them."""
    request_id = request_id or str(uuid.uuid4())
    # Told before the call: only so it is known when the answer is lost.
    print(f"request {request_id}; if no answer comes, repeat with --request-id", file=sys.stderr)
    request = tenant_service_pb2.CreateTenantRequest(
        tenant=tenant_service_pb2.Tenant(id=tenant), administrator=administrator, request_id=request_id
    )

    async def created(session: Session) -> tenant_service_pb2.CreateTenantResponse:
        answer: tenant_service_pb2.CreateTenantResponse = await session.call(
            _stub(session).CreateTenant, request
        )
        return answer

    answer = run(created)
    print(f"tenant {answer.tenant.id} with administrator {administrator}")
    print(f"one-time password, shown this once and good for seven days: {answer.one_time_password}")


@tenants_app.command(name="suspend")
def suspend(tenant: TenantId) -> None:
    """Keep everybody of a tenant out, its devices too, and end what they have open; deletes nothing."""
    request = tenant_service_pb2.SuspendTenantRequest(id=tenant)

    async def suspended(session: Session) -> tenant_service_pb2.Tenant:
        answer: tenant_service_pb2.Tenant = await session.call(_stub(session).SuspendTenant, request)
        return answer

    print(f"{tenant} is {_state(run(suspended))}")


@tenants_app.command(name="resume")
def resume(tenant: TenantId) -> None:
    """Let them in again, with the credentials that they have."""
    request = tenant_service_pb2.ResumeTenantRequest(id=tenant)

    async def resumed(session: Session) -> None:
        await session.call(_stub(session).ResumeTenant, request)

    run(resumed)
    print(f"{tenant} is resumed")


@tenants_app.command(name="export")
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to make, or an empty one.")],
) -> None:
    """Write what your own tenant has into a folder; its administrator does so before the tenant is suspended.

    Assets, devices, their types, users and roles without secrets, events, and all samples of these devices.
    Not samples of devices that were deleted before: export those while the devices are there.
    """
    # pyarrow takes longer to load than all other commands together.
    from twinmesh_cli import tenant_export  # noqa: PLC0415

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            fail(f"{folder} is not empty")
        digest = run(lambda session: tenant_export.export_tenant(session, folder))
    except OSError as error:
        fail(f"{folder} cannot be written: {error.strerror or error}")
    print(f"exported to {folder}; the digest, SHA-256 of {tenant_export.MANIFEST}:")
    print(digest)


@tenants_app.command(name="delete")
def delete(
    tenant: TenantId,
    export_digest: Annotated[str, typer.Option(help="As `twinmesh tenants export` told it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Have all deleted that a suspended tenant has, for good; it begins 17 minutes after the suspension."""
    if not yes:
        typer.confirm(
            f"Everything of tenant {tenant} will be gone, and nothing brings it back. Go on?", abort=True
        )
    request = tenant_service_pb2.DeleteTenantRequest(id=tenant, export_digest=export_digest)

    async def deleted(session: Session) -> tenant_service_pb2.Tenant:
        answer: tenant_service_pb2.Tenant = await session.call(_stub(session).DeleteTenant, request)
        return answer

    print(f"{tenant} is {_state(run(deleted))}")


def _stub(session: Session) -> Any:
    return tenant_service_pb2_grpc.TenantServiceStub(session.channel)


def _state(tenant: tenant_service_pb2.Tenant) -> str:
    if tenant.HasField("purge_time"):
        return _since("deleted", tenant.purge_time)
    if tenant.HasField("delete_time"):
        return _since("being deleted", tenant.delete_time)
    return _since("suspended", tenant.suspend_time) if tenant.HasField("suspend_time") else ""


def _since(state: str, time: Timestamp) -> str:
    return f"{state} since {time.ToDatetime():%F %T} UTC"
