"""Calls of TenantService and log-ins, as tests of tenants make them."""

from typing import Any

from tests.rpc.auth_app import AuthApp
from twinmesh.auth.v1 import session_service_pb2
from twinmesh.auth.v1 import tenant_service_pb2 as pb

Metadata = tuple[tuple[str, str], ...]
DIGEST = "0f" * 32


async def create(auth: AuthApp, caller: Metadata, tenant: str, administrator: str = "root") -> Any:
    """Add a tenant."""
    request = pb.CreateTenantRequest(tenant=pb.Tenant(id=tenant), administrator=administrator)
    return await auth.tenants.CreateTenant(request, metadata=caller)


async def get(auth: AuthApp, caller: Metadata, tenant: str) -> pb.Tenant:
    """Read one."""
    answer: pb.Tenant = await auth.tenants.GetTenant(pb.GetTenantRequest(id=tenant), metadata=caller)
    return answer


async def suspend(auth: AuthApp, caller: Metadata, tenant: str = "demo") -> pb.Tenant:
    """Keep everybody of one out."""
    answer: pb.Tenant = await auth.tenants.SuspendTenant(pb.SuspendTenantRequest(id=tenant), metadata=caller)
    return answer


async def resume(auth: AuthApp, caller: Metadata, tenant: str = "demo") -> pb.Tenant:
    """Let them in again."""
    answer: pb.Tenant = await auth.tenants.ResumeTenant(pb.ResumeTenantRequest(id=tenant), metadata=caller)
    return answer


async def delete(auth: AuthApp, caller: Metadata, tenant: str = "demo", digest: str = DIGEST) -> pb.Tenant:
    """Have all deleted that one has."""
    request = pb.DeleteTenantRequest(id=tenant, export_digest=digest)
    answer: pb.Tenant = await auth.tenants.DeleteTenant(request, metadata=caller)
    return answer


async def login(auth: AuthApp, tenant: str, username: str, password: str) -> Any:
    """Log in with a password."""
    request = session_service_pb2.LoginRequest(tenant=tenant, username=username, password=password)
    return await auth.sessions.Login(request)
