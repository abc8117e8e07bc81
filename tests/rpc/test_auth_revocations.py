"""What was revoked in one process of auth_svc, as others hear of it."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from meshkit import paging
from meshkit.client import fetch_revocations_from
from meshkit.revocations import Revocation, RevocationKind
from meshkit.testing import identities
from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, refusal, running_auth, until
from twinmesh.auth.v1 import revocation_service_pb2 as pb
from twinmesh.auth.v1 import revocation_service_pb2_grpc, session_service_pb2

_REVOKED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def lister(auth: AuthApp) -> AsyncIterator[Any]:
    """RevocationService as another service calls it."""
    async with identities.channel(auth.address, "auth_svc", caller="twin_svc") as channel:
        yield revocation_service_pb2_grpc.RevocationServiceStub(channel)


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


async def _listed(auth: AuthApp) -> list[Revocation]:
    async with identities.channel(auth.address, "auth_svc", caller="twin_svc") as channel:
        return list(await fetch_revocations_from(channel)(0))


async def test_a_log_out_is_listed_once(auth: AuthApp) -> None:
    token = (await auth.login()).access_token
    session = (await _me(auth, token)).credential_id
    await _log_out(auth, token)
    assert await refusal(_log_out(auth, token)) == _REVOKED
    (listed,) = await _listed(auth)
    assert (listed.tenant, listed.kind, listed.id) == ("demo", RevocationKind.SESSION, session)
    assert listed.revoke_us < listed.until_us


async def test_the_list_is_for_services_only(auth: AuthApp) -> None:
    stub = revocation_service_pb2_grpc.RevocationServiceStub(auth.channel)
    for metadata in ((), await auth.as_user()):
        call = stub.ListRevocations(pb.ListRevocationsRequest(), metadata=metadata)
        assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_LISTED")


async def test_a_long_list_comes_in_pages(auth: AuthApp, lister: Any) -> None:
    for _ in range(5):
        await _log_out(auth, (await auth.login()).access_token)
    first = (await _listed(auth))[0].number
    numbers: list[int] = []
    request = pb.ListRevocationsRequest(after_number=first, page_size=3)
    sizes = []
    while True:
        answer = await lister.ListRevocations(request)
        sizes.append(len(answer.revocations))
        numbers += [each.number for each in answer.revocations]
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    assert sizes == [3, 1]
    assert numbers == [each.number for each in (await _listed(auth))[1:]]
    own, foreign = ["revocations", 0], ["revocations", 1]
    crafted = [paging.encode(own, position) for position in ("x", [1], -1, 2**63)]
    for token in ("garbage", paging.encode(foreign, 1), *crafted):
        call = lister.ListRevocations(pb.ListRevocationsRequest(page_token=token))
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
