"""auth_svc with the Envoy that asks it: its keys, its key exchange and its JSON."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import jwt
import pytest
from pydantic import SecretStr

from auth_svc import signing_keys
from auth_svc.rotate_keys import RotateSettings, rotate_keys
from gateway.contract import CONTRACT
from gateway.render import render
from gateway.settings import Endpoint, GatewaySettings, Upstream
from meshkit.clock import SystemClock
from meshkit.embedded import EmbeddedEnvoy
from meshkit.embedded.ports import free_ports
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import MESH_SECRET, PASSWORD, AuthApp, error_info, running_auth, status_of, until
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc

_NOWHERE = Endpoint("127.0.0.1", 1)


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def client(auth: AuthApp, short_home: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(auth, short_home) as opened:
        yield opened


@asynccontextmanager
async def gateway(
    auth: AuthApp, short_home: Path, *, jwks_cache: str = "60s", trusted_hops: int = 0
) -> AsyncIterator[httpx.AsyncClient]:
    """Run an HTTP client of the gateway; PostgreSQL and auth_svc work, nothing else is there.

    Args:
        auth: where Envoy asks.
        short_home: of Envoy.
        jwks_cache: how long Envoy keeps keys.
        trusted_hops: proxies before Envoy that tell callers' addresses.
    """
    port, admin_port, jwks_port = free_ports(3)

    def rendered(descriptor: Path) -> Mapping[str, Any]:
        config = render(
            GatewaySettings(
                bind="127.0.0.1",
                port=port,
                admin_port=admin_port,
                jwks_port=jwks_port,
                upstreams={
                    **{upstream: [_NOWHERE] for upstream in Upstream},
                    Upstream.AUTH: [Endpoint.parse(auth.address)],
                },
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

    envoy = EmbeddedEnvoy(home=short_home, descriptor=CONTRACT, render=rendered, concurrency=1)
    await asyncio.to_thread(envoy.start)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as opened:

            async def keys_are_there() -> bool:
                return (await opened.get("/.well-known/jwks.json")).is_success

            await until(keys_are_there)
            yield opened
    finally:
        await asyncio.to_thread(envoy.remove)


async def _login(client: httpx.AsyncClient) -> dict[str, Any]:
    body = {"tenant": "demo", "username": "admin", "password": PASSWORD}
    answer = await client.post("/v1/auth/login", json=body)
    assert answer.status_code == 200, answer.text
    pair: dict[str, Any] = answer.json()
    return pair


async def test_a_person_from_log_in_to_log_out(client: httpx.AsyncClient) -> None:
    pair = await _login(client)
    assert (pair["tokenType"], pair["expiresIn"]) == ("Bearer", "900s")
    me = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {pair['accessToken']}"})
    assert (me.status_code, me.json()["subject"]) == (200, "admin")
    refreshed = await client.post("/v1/auth/refresh", json={"refreshToken": pair["refreshToken"]})
    assert refreshed.status_code == 200, refreshed.text
    caller = {"authorization": f"Bearer {refreshed.json()['accessToken']}"}
    assert (await client.post("/v1/auth/logout", headers=caller, json={})).status_code == 200
    again = await client.post("/v1/auth/refresh", json={"refreshToken": refreshed.json()["refreshToken"]})
    assert again.status_code == 401
    assert again.json()["details"][0]["reason"] == "REFRESH_TOKEN_INVALID"


async def test_a_machine_from_its_key_to_its_end(client: httpx.AsyncClient) -> None:
    admin = {"authorization": f"Bearer {(await _login(client))['accessToken']}"}
    made = await client.post("/v1/apiKeys", headers=admin, json={"displayName": "Gateway 7"})
    assert made.status_code == 200, made.text
    key = {"authorization": f"Bearer {made.json()['secret']}"}
    me = await client.get("/v1/auth/me", headers=key)
    assert me.status_code == 200, me.text
    assert (me.json()["kind"], me.json()["subject"]) == ("api_key", made.json()["id"])
    listed = await client.get("/v1/apiKeys", headers=admin)
    assert [each["id"] for each in listed.json()["apiKeys"]] == [made.json()["id"]]
    assert (await client.get("/v1/apiKeys", headers=key)).status_code == 403

    channel = grpc.aio.insecure_channel(urlsplit(str(client.base_url)).netloc)
    async with channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        me_grpc = await sessions.GetMe(
            session_service_pb2.GetMeRequest(), metadata=bearer(made.json()["secret"])
        )
        assert me_grpc.subject == made.json()["id"]

        route = f"/v1/apiKeys/{made.json()['id']}:rotate"
        rotated = await client.post(route, headers=admin, json={"overlap": "3600s"})
        assert rotated.status_code == 200, rotated.text
        for secret in (rotated.json()["secret"], made.json()["secret"]):
            me = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {secret}"})
            assert (me.status_code, me.json()["subject"]) == (200, made.json()["id"])
        rotated = await client.post(route, headers=admin, json={"overlap": "0s"})
        assert (await client.get("/v1/auth/me", headers=key)).status_code == 401
        key = {"authorization": f"Bearer {rotated.json()['secret']}"}
        assert (await client.get("/v1/auth/me", headers=key)).status_code == 200

        gone = await client.delete(f"/v1/apiKeys/{made.json()['id']}", headers=admin)
        assert (gone.status_code, gone.json()) == (200, {})
        refused = await client.get("/v1/auth/me", headers=key)
        assert refused.status_code == 401
        assert refused.json()["details"][0]["reason"] == "API_KEY_INVALID"
        with pytest.raises(grpc.aio.AioRpcError) as refused_grpc:
            await sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(made.json()["secret"]))
    assert refused_grpc.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert error_info(status_of(refused_grpc.value)).reason == "API_KEY_INVALID"


async def test_parts_that_are_away_are_named(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz/live")).json() == {"status": "ok"}
    answer = await client.get("/healthz/ready")
    assert answer.status_code == 503
    info = answer.json()["details"][0]
    assert info["reason"] == "DEPENDENCY_UNAVAILABLE"
    assert info["metadata"]["dependency"] == "asset_svc,ingest_svc,twin_svc"


async def test_no_request_fails_while_keys_are_rotated(
    database: TestDatabase, short_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shorter than in earnest, in the same order: Envoy fetches keys anew when half of this has gone by.
    monkeypatch.setattr(signing_keys, "PUBLISH_AHEAD_S", 12)
    monkeypatch.setattr("auth_svc.app.RELOAD_EVERY_S", 0.2)
    settings = RotateSettings(
        service_database_url=SecretStr(database.url("twinmesh_auth")),
        mesh_secret=SecretStr(base64.urlsafe_b64encode(MESH_SECRET).decode()),
    )
    async with running_auth(database) as auth, gateway(auth, short_home, jwks_cache="10s") as client:
        first = (await _login(client))["accessToken"]
        made = await rotate_keys(settings, clock=SystemClock())
        latest = first
        signed_by_it = 0
        while signed_by_it < 20:
            latest = (await _login(client))["accessToken"]
            for token in (first, latest):
                me = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {token}"})
                assert me.status_code == 200, me.text
            signed_by_it += jwt.get_unverified_header(latest)["kid"] == made.kid


async def _key_of(client: httpx.AsyncClient, *networks: str) -> dict[str, str]:
    """Make a key for some networks; returns the header that shows it."""
    admin = {"authorization": f"Bearer {(await _login(client))['accessToken']}"}
    body = {"displayName": "Gateway 7", "allowedAddresses": networks}
    made = await client.post("/v1/apiKeys", headers=admin, json=body)
    assert made.status_code == 200, made.text
    assert made.json()["apiKey"]["allowedAddresses"] == list(networks)
    return {"authorization": f"Bearer {made.json()['secret']}"}


async def _answer(client: httpx.AsyncClient, headers: Mapping[str, str]) -> tuple[int, str]:
    me = await client.get("/v1/auth/me", headers=headers)
    return me.status_code, "" if me.is_success else me.json()["details"][0]["reason"]


async def test_a_key_is_used_from_its_networks_only(client: httpx.AsyncClient) -> None:
    refused = (403, "ADDRESS_NOT_ALLOWED")
    key = await _key_of(client, "127.0.0.2/32", "203.0.113.0/24")
    elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=client.base_url, transport=elsewhere, trust_env=False) as allowed:
        assert await _answer(client, key) == refused
        assert await _answer(allowed, key) == (200, "")
        # Its token is remembered now, and lets nobody else in, whatever he says of himself.
        assert await _answer(client, key) == refused
        for name in ("x-envoy-external-address", "x-forwarded-for", "x-real-ip", "forwarded"):
            assert await _answer(client, {**key, name: "127.0.0.2"}) == refused, name
        assert await _answer(allowed, {**key, "x-forwarded-for": "127.0.0.1"}) == (200, "")
    async with grpc.aio.insecure_channel(urlsplit(str(client.base_url)).netloc) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as by_grpc:
            await sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=tuple(key.items()))
    assert by_grpc.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert error_info(status_of(by_grpc.value)).reason == "ADDRESS_NOT_ALLOWED"
    assert await _answer(client, await _key_of(client, "127.0.0.0/8")) == (200, "")
    # Who does not have the secret is told nothing of addresses.
    wrong = {"authorization": key["authorization"][:-4] + "0000"}
    assert await _answer(client, wrong) == (401, "API_KEY_INVALID")


async def test_behind_a_proxy_it_is_the_proxy_that_tells_the_address(auth: AuthApp, short_home: Path) -> None:
    async with gateway(auth, short_home, trusted_hops=1) as client:
        key = await _key_of(client, "203.0.113.0/24")
        for told, expected in (
            ("203.0.113.7", (200, "")),
            # What the caller itself sends stands before what the proxy has seen.
            ("203.0.113.7, 198.51.100.9", (403, "ADDRESS_NOT_ALLOWED")),
            ("198.51.100.9, 203.0.113.7", (200, "")),
            ("nonsense", (403, "ADDRESS_NOT_ALLOWED")),
        ):
            assert await _answer(client, {**key, "x-forwarded-for": told}) == expected, told
        assert await _answer(client, key) == (403, "ADDRESS_NOT_ALLOWED")
