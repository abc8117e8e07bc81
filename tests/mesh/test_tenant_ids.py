"""Every route that names one thing: another tenant's is answered like one that does not exist."""

import re
from typing import Any

import httpx
import pytest

from gateway.contract import CONTRACT, HttpBinding, read_contract
from meshkit.testing.certificates import csr, new_key

_ADDRESSED = [
    binding
    for rpc in read_contract(CONTRACT).rpcs
    for binding in rpc.bindings
    if "{" in binding.template and binding.template.startswith("/v1/")
]
# A fresh mesh has no archive to restore from; tenants are nobody's but the operators'.
_NOTHING_TO_NAME = {"/v1/restores", "/v1/tenants"}
# What a request needs besides the name, so that its form is not what is refused.
_BODIES = {
    "/v1/devices/{device_id}/messages": {"payload": "e30="},
    "/v1/apiKeys/{id}:rotate": {"overlap": "0s"},
}


def _collection(binding: HttpBinding) -> str:
    return binding.template.partition("/{")[0]


def _named(binding: HttpBinding, name: str) -> str:
    return re.sub(r"\{[^}]*\}", name, binding.template)


async def _first(client: httpx.AsyncClient, collection: str) -> str:
    """Return the name of a thing that the caller's tenant made itself."""
    listed = (await client.get(collection)).raise_for_status().json()
    found: list[dict[str, Any]] = next(value for value in listed.values() if isinstance(value, list))
    # Built-in roles and a user `admin` are in every tenant.
    own = [item for item in found if not item.get("builtIn") and item.get("username") != "admin"]
    name: str = own[0].get("id") or own[0].get("username") or own[0]["deviceId"]
    return name


async def _asked(client: httpx.AsyncClient, binding: HttpBinding, name: str) -> tuple[int, str]:
    body = _BODIES.get(binding.template, {}) if binding.method in {"POST", "PATCH"} else None
    answer = await client.request(binding.method, _named(binding, name), json=body)
    return answer.status_code, answer.text.replace(name, "NAME")


@pytest.fixture
async def filled(admin: httpx.AsyncClient) -> None:
    """The demo tenant has one of everything that can be made by a request."""
    role = {"id": "named", "permissions": ["twin:read"]}
    for path, body in (
        ("/v1/roles", role),
        ("/v1/users", {"user": {"username": "named", "role": "viewer"}}),
        ("/v1/apiKeys", {"displayName": "named"}),
        ("/v1/deviceCertificates", {"deviceId": "temp-1", "csr": csr(new_key())}),
        ("/v1/telemetry", {"readings": [{"deviceId": "temp-1", "numbers": {"temperature": 20}}]}),
        ("/v1/telemetry", {"readings": [{"deviceId": "nobody", "numbers": {"temperature": 20}}]}),
    ):
        answer = await admin.post(path, json=body)
        assert answer.status_code in {200, 409}, answer.text


@pytest.mark.usefixtures("filled")
async def test_another_tenants_thing_is_answered_like_an_absent_one(
    admin: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    told: list[str] = []
    for binding in _ADDRESSED:
        collection = _collection(binding)
        if collection in _NOTHING_TO_NAME:
            continue
        name = await _first(admin, collection)
        # Those of certificates are as long as they may be.
        unused = name[::-1] if len(name) == 40 else f"{name}0"
        theirs, absent = await _asked(rival, binding, name), await _asked(rival, binding, unused)
        is_absent = theirs[0] == 404 or "DEVICE_UNKNOWN" in theirs[1]
        if theirs != absent or not is_absent:
            told.append(f"{binding.method} {binding.template}: {theirs}, {absent}")
        # It is all there still.
        assert await _first(admin, collection)
    assert not told, "\n".join(told)
