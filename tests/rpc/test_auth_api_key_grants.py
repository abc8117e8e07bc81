"""What a key that makes or rotates keys cannot hand out: what is good from elsewhere, or for longer."""

import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, error_info, running_auth, status_of
from twinmesh.auth.v1 import api_key_service_pb2 as pb

_Metadata = tuple[tuple[str, str], ...]
_NETWORKS = ["203.0.113.0/24", "2001:db8::/32"]


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def admin(auth: AuthApp) -> _Metadata:
    return await auth.as_user()


async def _create(auth: AuthApp, caller: _Metadata, **fields: Any) -> pb.CreateApiKeyResponse:
    request = pb.CreateApiKeyRequest(display_name="Gateway 7", **fields)
    answer: pb.CreateApiKeyResponse = await auth.api_keys.CreateApiKey(request, metadata=caller)
    return answer


async def _rotate(auth: AuthApp, caller: _Metadata, key_id: str, **fields: Any) -> pb.RotateApiKeyResponse:
    request = pb.RotateApiKeyRequest(id=key_id, **fields)
    answer: pb.RotateApiKeyResponse = await auth.api_keys.RotateApiKey(request, metadata=caller)
    return answer


async def _bearer_of(auth: AuthApp, secret: str) -> _Metadata:
    """Return the token that Envoy gets for a key, from one of its networks."""
    allowed = await auth.check(f"Bearer {secret}", x_envoy_external_address="203.0.113.7")
    return bearer(allowed.ok_response.headers[0].header.value.removeprefix("Bearer "))


async def _excess(answer: Awaitable[object]) -> str:
    """Return the field by which a key was refused what it does not hold, "" when it was not."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        refused = error
    else:
        return ""
    told = status_of(refused)
    info = error_info(told)
    assert (refused.code(), info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXCEEDS_CALLER")
    assert info.metadata["field"] in told.message
    return str(info.metadata["field"])


async def test_a_key_makes_no_key_that_is_good_from_elsewhere_or_for_longer(
    auth: AuthApp, admin: _Metadata
) -> None:
    hour = {"seconds": int(time.time()) + 3600}
    permissions = ["api_key:write", "twin:read"]
    made = await _create(auth, admin, permissions=permissions, allowed_addresses=_NETWORKS, expire_time=hour)
    caller = await _bearer_of(auth, made.secret)
    for allowed_addresses, expire_time, field in (
        ([], hour, "allowed_addresses"),
        (["0.0.0.0/0"], hour, "allowed_addresses"),
        (["203.0.112.0/23"], hour, "allowed_addresses"),
        (["203.0.113.0/28", "198.51.100.0/24"], hour, "allowed_addresses"),
        (["203.0.113.0/28", "::/0"], hour, "allowed_addresses"),
        (_NETWORKS, None, "expire_time"),
        (_NETWORKS, {**hour, "nanos": 1000}, "expire_time"),
        (_NETWORKS, hour, ""),
        (["203.0.113.7/32", "2001:db8:1::/48"], {"seconds": hour["seconds"] - 60}, ""),
    ):
        given = _create(auth, caller, allowed_addresses=allowed_addresses, expire_time=expire_time)
        assert await _excess(given) == field, (allowed_addresses, expire_time)
    # Only its own bounds bind a key, and no key's bind a user.
    free = await _bearer_of(auth, (await _create(auth, admin, permissions=permissions)).secret)
    assert (await _excess(_create(auth, free)), await _excess(_create(auth, admin))) == ("", "")


async def test_a_key_has_no_secret_of_a_key_that_is_good_from_elsewhere_or_for_longer(
    auth: AuthApp, admin: _Metadata
) -> None:
    hour = {"seconds": int(time.time()) + 3600}
    bounds = {"allowed_addresses": _NETWORKS, "expire_time": hour}
    own = await _create(auth, admin, permissions=["api_key:write"], **bounds)
    caller = await _bearer_of(auth, own.secret)
    for field in bounds:
        rest = {name: value for name, value in bounds.items() if name != field}
        more = await _create(auth, admin, permissions=["api_key:write"], **rest)
        assert await _excess(_rotate(auth, caller, more.id, overlap={})) == field
    like = await _create(auth, admin, permissions=["api_key:write"], **bounds)
    assert await _excess(_rotate(auth, caller, like.id, overlap={})) == ""
    # By a secret that ends sooner than its key too.
    assert await _excess(_rotate(auth, caller, own.id, overlap={"seconds": 60})) == ""
    former = await _bearer_of(auth, own.secret)
    assert await _excess(_rotate(auth, former, own.id, overlap={})) == ""
