"""Every rpc of the contract in every built-in role, asked of the services themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2

from auth_svc.roles import Role, permissions_of
from gateway.contract import CONTRACT, Rpc, read_rpcs
from meshkit.identity import SERVICE_PERMISSIONS, SYSTEM_TENANT
from meshkit.policy import AUTHENTICATED, PUBLIC
from meshkit.status import status_of
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh

_TENANT = "walked"
_MISSING = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
# What services alone may call is not the gateway's, whoever comes through it.
_NOT_LISTED = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_LISTED")
_NO_CREDENTIAL = (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
_SERVICES = {
    "twinmesh.asset.v1": "asset_svc",
    "twinmesh.auth.v1": "auth_svc",
    "twinmesh.ingest.v1": "ingest_svc",
    "twinmesh.mesh.v1": "auth_svc",
    "twinmesh.twin.v1": "twin_svc",
}
_RPCS = read_rpcs(CONTRACT)
_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def users(mesh: Mesh) -> None:
    """One user in each built-in role, with the mesh's password."""
    for tenant in (_TENANT, SYSTEM_TENANT):
        mesh.add_tenant(tenant)
    headers = {"authorization": f"Bearer {mesh.log_in(Role.ADMIN, _TENANT)}"}
    for role in set(Role) - {Role.ADMIN, Role.INSTALLATION_ADMIN}:
        body = {"user": {"username": role, "role": role}, "password": mesh.password}
        httpx.post(f"{mesh.url}/v1/users", json=body, headers=headers, timeout=30).raise_for_status()


def _log_in(mesh: Mesh, role: Role) -> str:
    if role == Role.INSTALLATION_ADMIN:
        return mesh.log_in("admin", SYSTEM_TENANT)
    return mesh.log_in(role, _TENANT)


@pytest.fixture
async def channels(mesh: Mesh) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """To each service itself, past the gateway, by package."""
    async with AsyncExitStack() as opened:
        yield {
            package: await opened.enter_async_context(
                mesh.service_channel(service, mesh.service_address(service))
            )
            for package, service in _SERVICES.items()
        }


async def outcome(channel: grpc.aio.Channel, rpc: Rpc, metadata: Any) -> tuple[grpc.StatusCode, str] | None:
    """Call an rpc with an empty request; returns code and reason of a refusal, None for an answer."""
    call: Any
    try:
        if rpc.client_streaming:
            call = channel.stream_stream(rpc.path)(metadata=metadata, timeout=_TIMEOUT_S)
            await call.done_writing()
            await call.read()
            call.cancel()
        elif rpc.server_streaming:
            unary_stream: Any = channel.unary_stream(rpc.path)
            call = unary_stream(b"", metadata=metadata, timeout=_TIMEOUT_S)
            await call.read()
            call.cancel()
        else:
            unary: Any = channel.unary_unary(rpc.path)
            await unary(b"", metadata=metadata, timeout=_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        found, info = status_of(error), error_details_pb2.ErrorInfo()
        for detail in found.details if found is not None else ():
            detail.Unpack(info)
        return error.code(), info.reason
    return None


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize("role", Role)
async def test_a_role_may_call_what_it_holds_and_nothing_else(
    mesh: Mesh, channels: dict[str, grpc.aio.Channel], role: Role
) -> None:
    token = await asyncio.to_thread(_log_in, mesh, role)
    wrong: list[str] = []
    for rpc in _RPCS:
        # What needs any credential may end its session.
        own = await asyncio.to_thread(_log_in, mesh, role) if rpc.permission == AUTHENTICATED else token
        answer = await outcome(channels[rpc.package], rpc, bearer(own))
        may = rpc.permission in {PUBLIC, AUTHENTICATED} or rpc.permission in permissions_of(role)
        refused = _NOT_LISTED if rpc.permission in SERVICE_PERMISSIONS else _MISSING
        if may is (answer == refused) or answer == _NO_CREDENTIAL:
            wrong.append(f"{rpc.path} ({rpc.permission}): {answer}")
    assert not wrong


async def test_without_a_credential_only_public_rpcs_answer(channels: dict[str, grpc.aio.Channel]) -> None:
    for rpc in _RPCS:
        answer = await outcome(channels[rpc.package], rpc, ())
        refused = _NOT_LISTED if rpc.permission in SERVICE_PERMISSIONS else _NO_CREDENTIAL
        assert (answer == refused) is (rpc.permission != PUBLIC), rpc.path
