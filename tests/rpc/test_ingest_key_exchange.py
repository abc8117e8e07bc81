"""API keys that come on ingest's streams: its client of auth_svc, and auth_svc itself."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from auth_svc.login_limits import TOKENS
from auth_svc.roles import Role
from ingest_svc.auth_client import AuthCredentials
from meshkit.client import fetch_keys_from, fetch_revocations_from
from meshkit.clock import SystemClock
from meshkit.errors import DomainError, PermissionDenied, ResourceExhausted, Unauthenticated
from meshkit.identity import TokenVerifier
from meshkit.revocations import Revocations
from meshkit.status import reason_name
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, running_auth
from twinmesh.auth.v1.api_key_service_pb2 import CreateApiKeyRequest
from twinmesh.auth.v1.tenant_service_pb2 import SuspendTenantRequest

_HERE, _ELSEWHERE = "203.0.113.7", "192.0.2.1"


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def credentials(auth: AuthApp) -> AsyncIterator[AuthCredentials]:
    async with identities.channel(auth.address, "auth_svc", caller="ingest_svc") as channel:
        clock = SystemClock()
        revocations = Revocations(fetch=fetch_revocations_from(channel), clock=clock)
        async with revocations.polling():
            verifier = TokenVerifier(
                fetch_keys=fetch_keys_from(channel), revocations=revocations, clock=clock
            )
            yield AuthCredentials(channel=channel, verifier=verifier)


async def _key(auth: AuthApp, **fields: Any) -> str:
    request = CreateApiKeyRequest(display_name="gateway", permissions=["telemetry:write"], **fields)
    made = await auth.api_keys.CreateApiKey(request, metadata=await auth.as_user())
    secret: str = made.secret
    return secret


async def _refusal(credentials: AuthCredentials, key: str, address: str) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await credentials.verify(key, address=address)
    return caught.value


async def test_a_key_is_good_from_its_networks_only(auth: AuthApp, credentials: AuthCredentials) -> None:
    key = await _key(auth, allowed_addresses=["203.0.113.0/24"])
    assert (await credentials.verify(key, address=_HERE)).tenant == "demo"
    error = await _refusal(credentials, key, _ELSEWHERE)
    assert (type(error), reason_name(error.reason)) == (PermissionDenied, "ADDRESS_NOT_ALLOWED")


async def test_wrong_keys_make_their_own_address_wait(auth: AuthApp, credentials: AuthCredentials) -> None:
    key = await _key(auth)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    error = await _refusal(credentials, wrong, _ELSEWHERE)
    assert (type(error), reason_name(error.reason)) == (Unauthenticated, "API_KEY_INVALID")
    await auth.sql(f"UPDATE auth.address_failures SET failures = {TOKENS.free + 10}")
    await _refusal(credentials, wrong, _ELSEWHERE)
    error = await _refusal(credentials, key, _ELSEWHERE)
    assert (type(error), reason_name(error.reason)) == (ResourceExhausted, "LOGIN_LIMITED")
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= TOKENS.longest_wait_s
    assert (await credentials.verify(key, address=_HERE)).tenant == "demo"


async def test_a_key_of_a_suspended_tenant_is_told_so(auth: AuthApp, credentials: AuthCredentials) -> None:
    key = await _key(auth)
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = await auth.as_user("system", "operator")
    await auth.tenants.SuspendTenant(SuspendTenantRequest(id="demo"), metadata=operator)
    error = await _refusal(credentials, key, _HERE)
    assert (type(error), reason_name(error.reason)) == (PermissionDenied, "TENANT_SUSPENDED")
