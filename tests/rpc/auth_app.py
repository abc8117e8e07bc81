"""auth_svc itself, on a real PostgreSQL, and its rpcs at hand."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from auth_svc.app import app
from auth_svc.config import AuthSettings
from auth_svc.passwords import hash_password
from auth_svc.revocations import kept_until
from auth_svc.roles import Role
from auth_svc.stores.api_keys import ApiKeyStore
from auth_svc.stores.device_certificates import DeviceCertificateStore
from auth_svc.stores.users import UserStore
from envoy_api import external_auth_pb2, external_auth_pb2_grpc
from gateway.contract import CONTRACT
from gateway.mesh_tls import write_secrets
from gateway.render import render
from gateway.settings import Endpoint, GatewayIdentity, GatewaySettings, Upstream
from meshkit import db
from meshkit.clock import SystemClock
from meshkit.embedded import EmbeddedEnvoy
from meshkit.embedded.ports import free_port, free_ports
from meshkit.testing import identities
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from twinmesh.auth.v1 import (
    api_key_service_pb2_grpc,
    device_certificate_service_pb2_grpc,
    role_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    tenant_service_pb2_grpc,
    user_service_pb2_grpc,
)
from twinmesh.mesh.v1 import health_service_pb2_grpc

MESH_SECRET = b"0123456789abcdef0123456789abcdef"
PASSWORD = "correct horse"
# Hashed once for the whole run: it costs 0.1 s.
_PASSWORD_HASH = hash_password(PASSWORD)
_NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class AuthApp:
    """A running auth_svc."""

    database: TestDatabase
    address: str
    channel: grpc.aio.Channel
    sessions: Any
    api_keys: Any
    users: Any
    tenants: Any
    roles: Any
    certificates: Any
    health: Any
    authorization: Any

    async def add_user(self, tenant: str, username: str, role: Role) -> None:
        """Store a user whose password is PASSWORD."""
        async with db.pool(self.database.url("twinmesh_auth"), application="test", max_size=1) as pool:
            created_us = SystemClock().now_us()
            await UserStore(pool=pool).create(tenant, username, _PASSWORD_HASH, role, created_us)

    async def revoke_key_elsewhere(self, key_id: str, tenant: str = "demo") -> None:
        """Revoke an API key as another process does whose announcement is lost."""
        async with db.pool(self.database.url("twinmesh_auth"), application="test", max_size=1) as pool:
            until = kept_until(SystemClock().now_us())
            assert await ApiKeyStore(pool=pool).revoke(tenant, key_id, until=until)

    async def revoke_certificate_elsewhere(self, certificate_id: str, tenant: str = "demo") -> None:
        """Revoke a device certificate as another process does whose announcement is lost."""
        async with db.pool(self.database.url("twinmesh_auth"), application="test", max_size=1) as pool:
            until = kept_until(SystemClock().now_us())
            assert await DeviceCertificateStore(pool=pool).revoke(tenant, certificate_id, until=until)

    async def login(self, tenant: str = "demo", username: str = "admin") -> session_service_pb2.LoginResponse:
        """Log in."""
        request = session_service_pb2.LoginRequest(tenant=tenant, username=username, password=PASSWORD)
        answer: session_service_pb2.LoginResponse = await self.sessions.Login(request)
        return answer

    async def as_user(self, tenant: str = "demo", username: str = "admin") -> tuple[tuple[str, str], ...]:
        """Log in and return the call metadata of that user."""
        return bearer((await self.login(tenant, username)).access_token)

    async def check(self, authorization: str, **headers: str) -> external_auth_pb2.CheckResponse:
        """Ask as Envoy does."""
        request = external_auth_pb2.CheckRequest()
        request.attributes.request.http.path = "/v1/telemetry"
        request.attributes.request.http.headers["authorization"] = authorization
        request.attributes.request.http.headers["x-envoy-external-address"] = "127.0.0.1"
        for name, value in headers.items():
            request.attributes.request.http.headers[name.replace("_", "-")] = value
        answer: external_auth_pb2.CheckResponse = await self.authorization.Check(request)
        return answer

    async def check_certificate(
        self, pem: str, *, caller: str = "gateway"
    ) -> external_auth_pb2.CheckResponse:
        """Ask as Envoy does for a device, or as another service."""
        request = external_auth_pb2.CheckRequest()
        request.attributes.source.certificate = quote(pem)
        async with identities.channel(self.address, "auth_svc", caller=caller) as channel:
            stub: Any = external_auth_pb2_grpc.AuthorizationStub(channel)
            answer: external_auth_pb2.CheckResponse = await stub.Check(request)
        return answer

    async def sql(self, statement: str, *arguments: object) -> None:
        """Change the database behind the service's back."""
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()

    @asynccontextmanager
    async def without_database(self) -> AsyncIterator[None]:
        """Take the database away from the service for a while."""
        name = self.database.admin_url.rsplit("/", 1)[1]
        admin = await asyncpg.connect(self.database.admin_url)
        own = await asyncpg.connect(self.database.url("twinmesh_auth"))
        try:
            await admin.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
            await own.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
                """
            )
            yield
            await admin.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
        finally:
            await own.close()
            await admin.close()


@asynccontextmanager
async def running_auth(
    database: TestDatabase, *, peers: Mapping[str, str] | None = None, **settings: Any
) -> AsyncIterator[AuthApp]:
    """Run auth_svc with user admin in tenant demo.

    Args:
        database: its own.
        peers: addresses of the other services by setting; nowhere when absent.
        settings: what differs from the defaults.
    """
    addresses = {"asset_address": _NOWHERE, "ingest_address": _NOWHERE, "twin_address": _NOWHERE}
    own_address = f"127.0.0.1:{free_port()}"
    arguments: dict[str, Any] = {
        "listen": own_address,
        "service_database_url": database.url("twinmesh_auth"),
        "mesh_secret": base64.urlsafe_b64encode(MESH_SECRET).decode(),
        "auth_address": own_address,
        "identity_dir": identities.identity_dir("auth_svc"),
        **addresses,
        **(peers or {}),
        **settings,
    }
    async with app(AuthSettings(**arguments)), identities.channel(own_address, "auth_svc") as channel:
        running = AuthApp(
            database=database,
            address=own_address,
            channel=channel,
            sessions=session_service_pb2_grpc.SessionServiceStub(channel),
            api_keys=api_key_service_pb2_grpc.ApiKeyServiceStub(channel),
            users=user_service_pb2_grpc.UserServiceStub(channel),
            tenants=tenant_service_pb2_grpc.TenantServiceStub(channel),
            roles=role_service_pb2_grpc.RoleServiceStub(channel),
            certificates=device_certificate_service_pb2_grpc.DeviceCertificateServiceStub(channel),
            health=health_service_pb2_grpc.HealthServiceStub(channel),
            authorization=external_auth_pb2_grpc.AuthorizationStub(channel),
        )
        await running.add_user("demo", "admin", Role.ADMIN)
        yield running


@asynccontextmanager
async def behind_envoy(
    auth: AuthApp, home: Path, *, jwks_cache: str = "60s", trusted_hops: int = 0
) -> AsyncIterator[httpx.AsyncClient]:
    """Run an HTTP client of the gateway; PostgreSQL and auth_svc work, nothing else is there.

    Args:
        auth: where Envoy asks.
        home: of Envoy.
        jwks_cache: how long Envoy keeps keys.
        trusted_hops: proxies before Envoy that tell callers' addresses.
    """
    port, admin_port, jwks_port = free_ports(3)
    write_secrets(gateway := identities.identity_dir("gateway"))

    def rendered(descriptor: Path) -> Mapping[str, Any]:
        config = render(
            GatewaySettings(
                bind="127.0.0.1",
                port=port,
                admin_port=admin_port,
                jwks_port=jwks_port,
                upstreams={
                    **{upstream: [Endpoint.parse(_NOWHERE)] for upstream in Upstream},
                    Upstream.AUTH: [Endpoint.parse(auth.address)],
                },
                identity=GatewayIdentity(folder=gateway, trust_domain=identities.TRUST_DOMAIN),
                descriptor_path=descriptor,
                trusted_hops=trusted_hops,
            )
        )
        text = json.dumps(config)
        assert '"cache_duration": "60s"' in text
        cached: Mapping[str, Any] = json.loads(
            text.replace('"cache_duration": "60s"', f'"cache_duration": "{jwks_cache}"')
        )
        return cached

    envoy = EmbeddedEnvoy(home=home, descriptor=CONTRACT, render=rendered, concurrency=1)
    await asyncio.to_thread(envoy.start)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
        ) as opened:

            async def keys_are_there() -> bool:
                return (await opened.get("/.well-known/jwks.json")).is_success

            await until(keys_are_there)
            yield opened
    finally:
        await asyncio.to_thread(envoy.remove)


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """Return the status that a refusal carries."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    return status


def error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """Return a status's ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """Await a call that must be refused and return its code and reason."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error_info(status_of(error)).reason
    raise AssertionError(f"it was answered: {answer}")


async def until(condition: Any, *, within_s: float = 10.0) -> None:
    """Wait until an asynchronous condition holds."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - it is another task that makes it true
            await asyncio.sleep(0.02)
