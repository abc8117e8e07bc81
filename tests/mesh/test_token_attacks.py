"""Attacks on tokens and sessions, through the gateway by JSON and by gRPC, each with its required answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import jwt
import pytest

from auth_svc.roles import Role, permissions_of
from auth_svc.signing_keys import KeyRing
from gateway.contract import CONTRACT, read_contract, read_rpcs
from meshkit.identity import PrincipalKind
from meshkit.policy import AUTHENTICATED
from meshkit.testing.auth import bearer
from meshkit.testing.calls import failure
from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.forgery import FORGERIES, Forger
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc

_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
_RPCS = read_contract(CONTRACT).rpcs
# Nothing else tells the gateway who calls; each of these claims another tenant's administrator.
_SPOOFED = {
    "x-tenant": "rival",
    "x-tenant-id": "rival",
    "x_tenant_id": "rival",
    "x-user": "root",
    "x-user-id": "root",
    "x-principal": "user:root",
    "x-forwarded-user": "root",
    "x-forwarded-groups": "admin",
    "x-forwarded-client-cert": "URI=spiffe://twinmesh/tenant/rival/device/temp-1",
    "x-gateway-credential": "0" * 64,
    "x-envoy-original-path": "/v1/auth/login",
    "x-envoy-external-address": "127.0.0.1",
    "x-jwt-payload": "eyJ0ZW5hbnQiOiJyaXZhbCJ9",
    "x-http-method-override": "DELETE",
}


@pytest.fixture
async def lure() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server of keys that must not be asked: its URL, and what it was asked."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1024))
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heard


@pytest.fixture(scope="module")
def inner_addresses(mesh: Mesh) -> dict[str, tuple[str, str]]:
    """Services and where they listen themselves, by an rpc to ask there."""
    return {
        method: (service, mesh.service_address(service))
        for service, method in {
            "auth_svc": "/twinmesh.auth.v1.SessionService/GetMe",
            "asset_svc": "/twinmesh.asset.v1.DeviceService/ListDevices",
            "ingest_svc": "/twinmesh.ingest.v1.IngestService/IngestTelemetry",
            "twin_svc": "/twinmesh.twin.v1.TwinService/ListTwins",
        }.items()
    }


@pytest.fixture
def forger(signing_keys: KeyRing, admin_token: str, lure: tuple[str, list[bytes]]) -> Forger:
    signer = signing_keys.signer()
    claims = jwt.decode(admin_token, options={"verify_signature": False})
    return Forger(kid=signer.kid, key=signer.private_key, claims=claims, lure=lure[0])


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.address) as opened:
        yield opened


@pytest.fixture
def sessions(channel: grpc.aio.Channel) -> Any:
    return session_service_pb2_grpc.SessionServiceStub(channel)


@asynccontextmanager
async def _outsider(mesh: Mesh, token: str) -> AsyncIterator[httpx.AsyncClient]:
    async with mesh.client(token) as client:
        yield client


def _refusal(answer: httpx.Response) -> tuple[int, str]:
    reasons = [detail["reason"] for detail in answer.json()["details"] if "reason" in detail]
    return answer.status_code, reasons[0]


async def test_the_forgers_token_is_good_when_nothing_is_wrong_with_it(
    mesh: Mesh, forger: Forger, sessions: Any
) -> None:
    token = forger.signed()
    async with _outsider(mesh, token) as client:
        assert (await client.get("/v1/auth/me")).json()["subject"] == "admin"
    me = await sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token))
    assert me.subject == "admin"


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_token_is_refused(
    mesh: Mesh,
    forger: Forger,
    sessions: Any,
    lure: tuple[str, list[bytes]],
    forge: Callable[[Forger], str],
) -> None:
    token = forge(forger)
    async with _outsider(mesh, token) as client:
        # One that Envoy answers for, one of another service.
        for path in ("/v1/auth/me", "/v1/devices"):
            assert _refusal(await client.get(path)) == (401, "TOKEN_INVALID"), path
    refused = await failure(sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token)))
    assert (refused.code, refused.reason) == (_UNAUTHENTICATED, "TOKEN_INVALID")
    assert lure[1] == [], "a key was fetched from where the token said"


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_token_is_refused_behind_the_gateway_too(
    mesh: Mesh,
    inner_addresses: dict[str, tuple[str, str]],
    forger: Forger,
    lure: tuple[str, list[bytes]],
    forge: Callable[[Forger], str],
) -> None:
    token = forge(forger)
    for method, (service, address) in inner_addresses.items():
        async with mesh.service_channel(service, address) as channel:
            call: Any = channel.unary_unary(method)
            refused = await failure(call(b"", metadata=bearer(token)))
        assert (refused.code, refused.reason) == (_UNAUTHENTICATED, "TOKEN_INVALID"), method
    assert lure[1] == []


async def test_no_token_is_asked_for(mesh: Mesh, sessions: Any) -> None:
    async with _outsider(mesh, "") as nobody:
        for headers in ({}, {"authorization": ""}, {"authorization": "Basic YWRtaW46YWRtaW4="}):
            status, reason = _refusal(await nobody.get("/v1/auth/me", headers=headers))
            assert (status, reason) in {(401, "CREDENTIAL_MISSING"), (401, "TOKEN_INVALID")}, headers
    refused = await failure(sessions.GetMe(session_service_pb2.GetMeRequest()))
    assert (refused.code, refused.reason) == (_UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_a_token_of_a_megabyte_is_refused(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    token = b"x" * 1024 * 1024
    head = b"GET /v1/auth/me HTTP/1.1\r\nhost: twinmesh\r\nauthorization: Bearer "
    writer.write(head + token + b"\r\n\r\n")
    status = await reader.readline()
    writer.close()
    assert status.split()[1] == b"431", status
    async with grpc.aio.insecure_channel(
        mesh.address, options=[("grpc.max_metadata_size", 4 * 1024 * 1024)]
    ) as channel:
        call: Any = channel.unary_unary("/twinmesh.auth.v1.SessionService/GetMe")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", metadata=bearer(token.decode()))
    # Headers that long end the connection, of which gRPC makes this.
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (await admin.get("/v1/auth/me")).status_code == 200


async def test_a_token_without_a_permission_opens_nothing_that_needs_one(
    mesh: Mesh, forger: Forger, channel: grpc.aio.Channel
) -> None:
    token = forger.signed(perms=[], role="viewer")
    wrong: list[str] = []
    async with _outsider(mesh, token) as client:
        for rpc in _RPCS:
            if rpc.is_public or rpc.permission == AUTHENTICATED:
                continue
            if not rpc.streaming:
                call: Any = channel.unary_unary(rpc.path)
                refused = await failure(call(b"", metadata=bearer(token)))
                if (refused.code, refused.reason) != (
                    grpc.StatusCode.PERMISSION_DENIED,
                    "PERMISSION_MISSING",
                ):
                    wrong.append(f"{rpc.path}: {refused}")
            for binding in rpc.bindings:
                path = binding.template.replace("{", "").replace("}", "").replace("*", "x")
                body: dict[str, Any] | None = {} if binding.method in {"POST", "PATCH"} else None
                answer = await client.request(binding.method, path, json=body)
                if _refusal(answer) != (403, "PERMISSION_MISSING"):
                    wrong.append(f"{binding}: {answer.status_code} {answer.text}")
    assert not wrong, "\n".join(wrong)


async def test_what_services_ask_each_other_is_not_to_be_had_at_the_gateway(
    channel: grpc.aio.Channel, admin_token: str
) -> None:
    inner = [rpc for rpc in read_rpcs(CONTRACT) if rpc not in _RPCS]
    assert inner
    paths = [rpc.path for rpc in inner] + [
        "/envoy.service.auth.v3.Authorization/Check",
        "/grpc.health.v1.Health/Check",
    ]
    for path in paths:
        call: Any = channel.unary_unary(path)
        refused = await failure(call(b"", metadata=bearer(admin_token)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "ROUTE_NOT_FOUND"), path


async def test_spoofed_identity_headers_change_nothing(mesh: Mesh, sessions: Any) -> None:
    token = await asyncio.to_thread(mesh.log_in)
    async with _outsider(mesh, token) as client:
        truth = (await client.get("/v1/auth/me")).json()
        assert truth["tenant"] == "demo"
        for name, value in _SPOOFED.items():
            answer = await client.get("/v1/auth/me", headers={name: value})
            assert (answer.status_code, answer.json()) == (200, truth), name
        assert (await client.get("/v1/auth/me", headers=_SPOOFED)).json() == truth
    spoofed = tuple(_SPOOFED.items())
    me = await sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=(*bearer(token), *spoofed))
    assert (me.tenant, me.subject) == ("demo", "admin")


async def test_spoofed_identity_headers_are_no_credential(mesh: Mesh, sessions: Any) -> None:
    async with _outsider(mesh, "") as nobody:
        for name, value in _SPOOFED.items():
            answer = await nobody.get("/v1/auth/me", headers={name: value})
            assert _refusal(answer) == (401, "CREDENTIAL_MISSING"), name
    refused = await failure(
        sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=tuple(_SPOOFED.items()))
    )
    assert (refused.code, refused.reason) == (_UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def _logged_in(client: httpx.AsyncClient, mesh: Mesh) -> dict[str, Any]:
    body = {"tenant": "demo", "username": "admin", "password": mesh.password}
    answer = await client.post("/v1/auth/login", json=body)
    pair: dict[str, Any] = answer.raise_for_status().json()
    return pair


async def _refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/v1/auth/refresh", json={"refreshToken": token})


async def _becomes_revoked(mesh: Mesh, access_token: str) -> None:
    """Wait until an access token is refused by each service."""
    headers = {"authorization": f"Bearer {access_token}"}
    for path in ("/v1/auth/me", "/v1/devices", "/v1/twins"):

        def is_refused(path: str = path) -> bool:
            answer = httpx.get(f"{mesh.url}{path}", headers=headers, timeout=30)
            return answer.status_code == 401 and _refusal(answer) == (401, "TOKEN_REVOKED")

        await asyncio.to_thread(eventually, is_refused, f"{path} refuses the revoked token")


_REFRESH_REFUSED = (401, "REFRESH_TOKEN_INVALID")


async def test_a_replayed_refresh_token_ends_its_session(mesh: Mesh) -> None:
    async with _outsider(mesh, "") as nobody:
        first = await _logged_in(nobody, mesh)
        second = (await _refresh(nobody, first["refreshToken"])).raise_for_status().json()
        third = (await _refresh(nobody, second["refreshToken"])).raise_for_status().json()
        assert _refusal(await _refresh(nobody, first["refreshToken"])) == _REFRESH_REFUSED
        # Of thief and owner nobody can say who is who.
        assert _refusal(await _refresh(nobody, third["refreshToken"])) == _REFRESH_REFUSED
    for pair in (first, second, third):
        await _becomes_revoked(mesh, pair["accessToken"])


async def test_a_lost_reply_is_given_once_more(mesh: Mesh) -> None:
    async with _outsider(mesh, "") as nobody:
        first = await _logged_in(nobody, mesh)
        lost = (await _refresh(nobody, first["refreshToken"])).raise_for_status().json()
        retried = (await _refresh(nobody, first["refreshToken"])).raise_for_status().json()
        assert retried["refreshToken"] == lost["refreshToken"]
        assert (await _refresh(nobody, retried["refreshToken"])).status_code == 200


async def test_one_refresh_token_twenty_times_at_once_opens_one_session_at_most(mesh: Mesh) -> None:
    async with _outsider(mesh, "") as nobody:
        first = await _logged_in(nobody, mesh)
        answers = await asyncio.gather(*(_refresh(nobody, first["refreshToken"]) for _ in range(20)))
        good = [answer.json() for answer in answers if answer.status_code == 200]
        refused = [_refusal(answer) for answer in answers if answer.status_code != 200]
        # One turns it, one is taken for a retry after a lost reply; the rest are copies.
        assert len(good) == 2
        assert refused == [_REFRESH_REFUSED] * 18
        (successor,) = {pair["refreshToken"] for pair in good}
        assert _refusal(await _refresh(nobody, successor)) == _REFRESH_REFUSED
    for pair in (first, *good):
        await _becomes_revoked(mesh, pair["accessToken"])


async def test_what_the_caller_is_cannot_be_assigned_by_the_request(
    mesh: Mesh, admin: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    """Mass assignment: fields that the message does not have, by any of their names, change nothing."""
    assigned = {
        **dict.fromkeys(("tenant", "tenantId", "tenant_id"), "rival"),
        **dict.fromkeys(("owner", "createdBy", "subject"), "root"),
        "permissions": ["api_key:write"],
        "kind": "service",
    }
    login = {"tenant": "demo", "username": "admin", "password": mesh.password}
    async with _outsider(mesh, "") as nobody:
        answer = await nobody.post("/v1/auth/login", json={**assigned, **login, "role": "viewer"})
        claims = jwt.decode(answer.json()["accessToken"], options={"verify_signature": False})
    assert (claims["tenant"], claims["sub"], claims["kind"]) == ("demo", "admin", PrincipalKind.USER)
    assert claims["role"] == Role.ADMIN
    await admin.post("/v1/devices", json={**assigned, "id": "assigned", "deviceTypeId": "temperature-sensor"})
    assert (await admin.get("/v1/devices/assigned")).status_code == 200
    assert (await rival.get("/v1/devices/assigned")).status_code == 404
    user = {**assigned, "username": "assigned", "role": Role.VIEWER}
    made = await admin.post("/v1/users", json={**assigned, "user": user, "password": mesh.password})
    assert made.status_code == 200, made.text
    assert (await rival.get("/v1/users/assigned")).status_code == 404
    async with _outsider(mesh, await asyncio.to_thread(mesh.log_in, "assigned")) as client:
        me = (await client.get("/v1/auth/me")).json()
    assert (me["tenant"], me["role"], me["kind"]) == ("demo", Role.VIEWER, PrincipalKind.USER)
    assert set(me["permissions"]) == permissions_of(Role.VIEWER)
