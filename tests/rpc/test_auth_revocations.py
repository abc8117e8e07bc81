"""What was revoked in one process of auth_svc, as others hear of it."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from meshkit import paging
from meshkit.client import fetch_revocations_from, service_channel
from meshkit.clock import SystemClock
from meshkit.identity import ServiceTokens
from meshkit.revocations import Revocation, RevocationKind
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import MESH_SECRET, AuthApp, refusal, running_auth, until
from twinmesh.auth.v1 import revocation_service_pb2 as pb
from twinmesh.auth.v1 import revocation_service_pb2_grpc, session_service_pb2

_REVOKED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
def service() -> ServiceTokens:
    return ServiceTokens(service="twin_svc", mesh_secret=MESH_SECRET, clock=SystemClock())


def _me(auth: AuthApp, token: str) -> Any:
    return auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token))


def _log_out(auth: AuthApp, token: str) -> Any:
    return auth.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=bearer(token))


async def _refuses(auth: AuthApp, token: str) -> bool:
    try:
        await _me(auth, token)
    except grpc.aio.AioRpcError as error:
        return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


async def _listed(auth: AuthApp, service: ServiceTokens) -> list[Revocation]:
    async with service_channel(auth.address, tokens=service) as channel:
        return list(await fetch_revocations_from(channel)(0))


async def test_a_log_out_is_listed_once(auth: AuthApp, service: ServiceTokens) -> None:
    token = (await auth.login()).access_token
    session = (await _me(auth, token)).credential_id
    await _log_out(auth, token)
    assert await refusal(_log_out(auth, token)) == _REVOKED
    (listed,) = await _listed(auth, service)
    assert (listed.tenant, listed.kind, listed.id) == ("demo", RevocationKind.SESSION, session)
    assert listed.revoke_us < listed.until_us


async def test_the_list_is_for_services_only(auth: AuthApp) -> None:
    stub = revocation_service_pb2_grpc.RevocationServiceStub(auth.channel)
    call = stub.ListRevocations(pb.ListRevocationsRequest(), metadata=await auth.as_user())
    assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert await refusal(stub.ListRevocations(pb.ListRevocationsRequest())) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIAL_MISSING",
    )


async def test_a_long_list_comes_in_pages(auth: AuthApp, service: ServiceTokens) -> None:
    for _ in range(5):
        await _log_out(auth, (await auth.login()).access_token)
    stub = revocation_service_pb2_grpc.RevocationServiceStub(auth.channel)
    caller = bearer(service.token())
    first = (await _listed(auth, service))[0].number
    numbers: list[int] = []
    request = pb.ListRevocationsRequest(after_number=first, page_size=3)
    sizes = []
    while True:
        answer = await stub.ListRevocations(request, metadata=caller)
        sizes.append(len(answer.revocations))
        numbers += [each.number for each in answer.revocations]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert sizes == [3, 1]
    assert numbers == [each.number for each in (await _listed(auth, service))[1:]]
    own, foreign = ["revocations", 0], ["revocations", 1]
    crafted = [paging.encode(own, position) for position in ("x", [1], -1, 2**63)]
    for token in ("garbage", paging.encode(foreign, 1), *crafted):
        call = stub.ListRevocations(pb.ListRevocationsRequest(page_token=token), metadata=caller)
        assert await refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"), token


async def test_a_copied_refresh_token_ends_the_access_tokens_as_well(auth: AuthApp) -> None:
    first = await auth.login()
    pair: Any = first
    for _ in range(2):
        pair = await auth.sessions.Refresh(
            session_service_pb2.RefreshRequest(refresh_token=pair.refresh_token)
        )
    other = await auth.login()
    copied = session_service_pb2.RefreshRequest(refresh_token=first.refresh_token)
    assert (await refusal(auth.sessions.Refresh(copied)))[1] == "REFRESH_TOKEN_INVALID"
    for token in (first.access_token, pair.access_token):
        assert await refusal(_me(auth, token)) == _REVOKED
    await _me(auth, other.access_token)


@pytest.mark.parametrize("heard", ["announced", "polled"])
async def test_other_processes_hear_of_it(
    database: TestDatabase, nats_url: str, monkeypatch: pytest.MonkeyPatch, heard: str
) -> None:
    if heard == "announced":
        monkeypatch.setattr("meshkit.revocations._POLL_EVERY_S", 3600.0)
    bus = nats_url if heard == "announced" else None
    async with running_auth(database, nats_url=bus) as auth, running_auth(database, nats_url=bus) as other:
        token = (await auth.login()).access_token
        await _me(other, token)
        await _log_out(auth, token)

        async def is_refused() -> bool:
            return await _refuses(other, token)

        await until(is_refused)


async def test_what_is_known_holds_without_the_database(auth: AuthApp) -> None:
    ended, other = (await auth.login()).access_token, (await auth.login()).access_token
    await _log_out(auth, ended)
    await _me(auth, other)
    async with auth.without_database():
        assert await refusal(_me(auth, ended)) == _REVOKED
        await _me(auth, other)
