"""What Envoy asks for each request that carries an API key."""

import json
import time
from collections.abc import AsyncIterator

import grpc
import jwt
import pytest
from google.rpc import code_pb2

from auth_svc.roles import Role
from envoy_api import external_auth_pb2 as pb
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, refusal, running_auth, until
from twinmesh.auth.v1 import api_key_service_pb2, session_service_pb2


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def key(auth: AuthApp) -> api_key_service_pb2.CreateApiKeyResponse:
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="script", permissions=["telemetry:write"])
    request.expire_time.seconds = int(time.time()) + 3600
    made: api_key_service_pb2.CreateApiKeyResponse = await auth.api_keys.CreateApiKey(
        request, metadata=await auth.as_user()
    )
    return made


def _token(answer: pb.CheckResponse) -> str:
    assert answer.status.code == code_pb2.OK
    (option,) = answer.ok_response.headers
    assert option.header.key == "authorization"
    assert option.append_action == pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    scheme, token = option.header.value.split(" ")
    assert scheme == "Bearer"
    return token


def _is_denied(answer: pb.CheckResponse) -> bool:
    return answer.WhichOneof("http_response") == "denied_response"


async def test_a_key_becomes_a_token_that_services_know(
    auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    token = _token(await auth.check(f"Bearer {key.secret}"))
    me = await auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token))
    assert (me.tenant, me.subject, me.kind, me.role) == ("demo", key.id, "api_key", "")
    assert list(me.permissions) == ["telemetry:write"]
    assert me.credential_id == key.id
    assert me.expire_time.seconds == key.api_key.expire_time.seconds
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["nbf"] == 60


async def test_an_api_key_has_no_session_to_leave(
    auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    token = _token(await auth.check(f"Bearer {key.secret}"))
    call = auth.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=bearer(token))
    assert await refusal(call) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_what_is_not_a_good_key_is_denied(
    auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    secret = key.secret
    assert _token(await auth.check(f"Bearer {secret}"))
    for spoilt in (
        "",
        "Bearer ",
        f"Basic {secret}",
        f"Bearer {secret[:-1]}",
        f"Bearer {secret[:-1]}{'0' if secret[-1] != '0' else '1'}",
        f"Bearer {secret.replace('tmk_demo_', 'tmk_other_')}",
        f"Bearer {secret},Bearer {secret}",
        f"Bearer {secret} ",
        f"Bearer tmk_demo_{'a' * 16}_{'0' * 64}",
    ):
        assert _is_denied(await auth.check(spoilt)), spoilt


async def test_a_json_caller_is_told_in_the_one_error_shape(auth: AuthApp) -> None:
    answer = await auth.check("Bearer tmk_nonsense", content_type="application/json")
    assert answer.status.code == code_pb2.UNAUTHENTICATED
    denied = answer.denied_response
    assert denied.status.code == 401
    headers = {option.header.key: option.header.value for option in denied.headers}
    assert headers["content-type"] == "application/json"
    assert headers["www-authenticate"].startswith("Bearer")
    body = json.loads(denied.body)
    assert body["code"] == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert body["message"] == "the API key is unknown, expired or revoked"
    assert body["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "twinmesh",
            "metadata": {},
        }
    ]


async def test_a_deleted_key_is_denied_at_once(
    auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    token = _token(await auth.check(f"Bearer {key.secret}"))
    request = api_key_service_pb2.DeleteApiKeyRequest(id=key.id)
    await auth.api_keys.DeleteApiKey(request, metadata=await auth.as_user())
    assert _is_denied(await auth.check(f"Bearer {key.secret}"))
    # Nor does auth_svc itself heed the token that the key had become.
    call = auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token))
    assert await refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


async def test_a_key_that_another_process_deleted_is_denied_soon(
    database: TestDatabase, auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse
) -> None:
    async with running_auth(database) as other:
        assert _token(await other.check(f"Bearer {key.secret}"))
        request = api_key_service_pb2.DeleteApiKeyRequest(id=key.id)
        await auth.api_keys.DeleteApiKey(request, metadata=await auth.as_user())

        async def denied() -> bool:
            return _is_denied(await other.check(f"Bearer {key.secret}"))

        await until(denied)


async def test_an_expired_key_is_denied(auth: AuthApp, key: api_key_service_pb2.CreateApiKeyResponse) -> None:
    await auth.sql("UPDATE auth.api_key SET expire_time = now()")
    assert _is_denied(await auth.check(f"Bearer {key.secret}"))


async def test_a_key_of_another_tenant_says_so(auth: AuthApp) -> None:
    await auth.add_user("other", "eve", Role.ADMIN)
    request = api_key_service_pb2.CreateApiKeyRequest(display_name="script")
    made = await auth.api_keys.CreateApiKey(request, metadata=await auth.as_user("other", "eve"))
    claims = jwt.decode(
        _token(await auth.check(f"Bearer {made.secret}")), options={"verify_signature": False}
    )
    assert claims["tenant"] == "other"
