"""auth_svc with the Envoy that asks it: its keys, its key exchange and its JSON."""

import base64
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import httpx
import jwt
import pytest
from pydantic import SecretStr

from auth_svc import signing_keys
from auth_svc.roles import Role
from auth_svc.rotate_keys import RotateSettings, rotate_keys
from meshkit.clock import SystemClock
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import (
    MESH_SECRET,
    PASSWORD,
    AuthApp,
    behind_envoy,
    error_info,
    refusal,
    running_auth,
    status_of,
    until,
)
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def client(auth: AuthApp, short_home: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with behind_envoy(auth, short_home) as opened:
        yield opened


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


async def test_a_key_ends_when_it_expires(client: httpx.AsyncClient) -> None:
    admin = {"authorization": f"Bearer {(await _login(client))['accessToken']}"}
    ends = datetime.now(UTC) + timedelta(seconds=8)
    body = {"displayName": "short", "expireTime": ends.isoformat()}
    made = await client.post("/v1/apiKeys", headers=admin, json=body)
    assert made.status_code == 200, made.text
    secret = made.json()["secret"]
    async with grpc.aio.insecure_channel(urlsplit(str(client.base_url)).netloc) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)

        async def answers() -> tuple[int, str]:
            json = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {secret}"})
            try:
                await sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(secret))
            except grpc.aio.AioRpcError as error:
                return json.status_code, error_info(status_of(error)).reason
            return json.status_code, ""

        assert await answers() == (200, "")

        async def is_over() -> bool:
            return await answers() == (401, "API_KEY_INVALID")

        await until(is_over)
    assert datetime.now(UTC) >= ends


async def test_guesses_are_counted_by_the_address_that_envoy_sees(
    auth: AuthApp, client: httpx.AsyncClient
) -> None:
    """Whatever the client says of itself."""
    spoofed = [
        {"x-envoy-external-address": "203.0.113.1"},
        {"x-forwarded-for": "203.0.113.2"},
        {"x-real-ip": "203.0.113.3", "forwarded": "for=203.0.113.4"},
        {},
    ]

    async def guess(username: str, headers: dict[str, str]) -> httpx.Response:
        body = {"tenant": "demo", "username": username, "password": "wrong"}
        return await client.post("/v1/auth/login", json=body, headers=headers)

    for n, headers in enumerate(spoofed):
        assert (await guess(f"user-{n}", headers)).status_code == 401
    connection = await asyncpg.connect(auth.database.admin_url)
    try:
        rows = await connection.fetch("SELECT address, failures FROM auth.address_failures")
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [("127.0.0.1", len(spoofed))]
    await auth.sql("UPDATE auth.address_failures SET failures = 200")
    assert (await guess("user-5", {})).status_code == 401
    for headers in spoofed:
        limited = await guess("user-6", headers)
        assert limited.status_code == 429
        assert limited.json()["details"][0]["reason"] == "LOGIN_LIMITED"
        (retry,) = [each for each in limited.json()["details"] if each["@type"].endswith("RetryInfo")]
        assert float(retry["retryDelay"].removesuffix("s")) > 0


async def test_a_tenant_from_its_making_to_its_suspension(auth: AuthApp, client: httpx.AsyncClient) -> None:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = {"authorization": f"Bearer {(await auth.login('system', 'operator')).access_token}"}
    made = await client.post(
        "/v1/tenants", headers=operator, json={"tenant": {"id": "acme"}, "administrator": "root"}
    )
    assert made.status_code == 200, made.text
    body = {"tenant": "acme", "username": "root", "password": made.json()["oneTimePassword"]}
    assert (await client.post("/v1/auth/login", json=body)).json()["passwordChangeRequired"]
    listed = await client.get("/v1/tenants", headers=operator)
    assert [tenant["id"] for tenant in listed.json()["tenants"]] == ["acme", "demo", "system"]

    admin = {"authorization": f"Bearer {(await _login(client))['accessToken']}"}
    assert (await client.get("/v1/tenants", headers=admin)).status_code == 403
    secret = (await client.post("/v1/apiKeys", headers=admin, json={"displayName": "g"})).json()["secret"]
    key = {"authorization": f"Bearer {secret}"}
    assert (await client.get("/v1/auth/me", headers=key)).status_code == 200

    suspended = await client.post("/v1/tenants/demo:suspend", headers=operator, json={})
    assert suspended.status_code == 200, suspended.text
    assert (await client.get("/v1/auth/me", headers=admin)).status_code == 401
    log_in = {"tenant": "demo", "username": "admin", "password": PASSWORD}
    for refused in (
        await client.get("/v1/auth/me", headers=key),
        await client.post("/v1/auth/login", json=log_in),
    ):
        assert refused.status_code == 403, refused.text
        assert refused.json()["details"][0]["reason"] == "TENANT_SUSPENDED"
    async with grpc.aio.insecure_channel(urlsplit(str(client.base_url)).netloc) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        call = sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(secret))
        assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "TENANT_SUSPENDED")

    assert (await client.post("/v1/tenants/demo:resume", headers=operator, json={})).status_code == 200
    assert (await client.get("/v1/auth/me", headers=key)).status_code == 200


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
    async with running_auth(database) as auth, behind_envoy(auth, short_home, jwks_cache="10s") as client:
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
    async with behind_envoy(auth, short_home, trusted_hops=1) as client:
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


async def test_behind_a_proxy_guesses_and_the_audit_go_by_the_address_that_it_tells(
    auth: AuthApp, short_home: Path
) -> None:
    told = {"x-forwarded-for": "198.51.100.9, 203.0.113.7"}
    async with behind_envoy(auth, short_home, trusted_hops=1) as client:
        body = {"tenant": "demo", "username": "admin", "password": "wrong"}
        assert (await client.post("/v1/auth/login", json=body, headers=told)).status_code == 401
        # The first is refused by auth_svc, the second by Envoy itself.
        forged = {**told, "authorization": "Bearer forged"}
        assert (await client.get("/v1/auth/me", headers=forged)).status_code == 401
        connection = await asyncpg.connect(auth.database.admin_url)
        try:
            rows = await connection.fetch("SELECT address, failures FROM auth.address_failures")
            assert [tuple(row) for row in rows] == [("203.0.113.7", 1)]

            async def audited() -> bool:
                found = await connection.fetch(
                    "SELECT recorder FROM auth.audit_event WHERE address = '203.0.113.7'"
                )
                return {row["recorder"] for row in found} == {"auth_svc", "gateway"}

            await until(audited)
        finally:
            await connection.close()


async def test_whoever_makes_up_keys_is_told_to_wait(auth: AuthApp, client: httpx.AsyncClient) -> None:
    admin = {"authorization": f"Bearer {(await _login(client))['accessToken']}"}
    made = (await client.post("/v1/apiKeys", headers=admin, json={"displayName": "Gateway 7"})).json()
    wrong = made["secret"][:-1] + ("0" if made["secret"][-1] != "0" else "1")

    async def me(secret: str) -> httpx.Response:
        return await client.get("/v1/auth/me", headers={"authorization": f"Bearer {secret}"})

    assert (await me(wrong)).status_code == 401
    await auth.sql("UPDATE auth.address_failures SET failures = 200 WHERE secret = 'api_key'")
    assert (await me(wrong)).status_code == 401
    limited = await me(made["secret"])
    assert (limited.status_code, limited.json()["details"][0]["reason"]) == (429, "LOGIN_LIMITED")
    assert 0 < int(limited.headers["retry-after"]) <= 60
    async with grpc.aio.insecure_channel(urlsplit(str(client.base_url)).netloc) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        call = sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(made["secret"]))
        assert await refusal(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LOGIN_LIMITED")
