"""Who gets through the gateway, and as whom."""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from gateway.contract import CONTRACT, read_contract
from meshkit.testing.auth import TokenMint
from tests.mesh.gateway.conftest import ORIGIN, Gateway, reason
from tests.mesh.gateway.neighbours import GOOD_KEY, TENANT


def _unsigned(token: str) -> str:
    payload = token.split(".")[1]
    header = urlsafe_b64encode(json.dumps({"alg": "none", "typ": "at+jwt", "kid": "test-key"}).encode())
    return f"{header.rstrip(b'=').decode()}.{payload}."


def _symmetric(token: str, key: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, key, algorithm="HS256", headers={"kid": "test-key", "typ": "at+jwt"})


def _minted(**claims: Any) -> Callable[[Gateway], str]:
    return lambda gateway: gateway.mint.token(tenant=TENANT, permissions=[], **claims)


FORGED = {
    "nonsense": lambda gateway: "nonsense",
    "dots": lambda gateway: "a.b.c",
    "alg none": lambda gateway: _unsigned(gateway.token),
    "signature cut off": lambda gateway: gateway.token.rpartition(".")[0] + ".",
    "signature of another": lambda gateway: f"{gateway.token.rpartition('.')[0]}.{'A' * 86}",
    "foreign key, our kid": lambda gateway: TokenMint().token(tenant=TENANT, permissions=[]),
    "unknown kid": lambda gateway: TokenMint(kid="other").token(tenant=TENANT, permissions=[]),
    "public key as secret": lambda gateway: _symmetric(gateway.token, gateway.mint.jwk()["x"]),
    "expired": _minted(exp=int(time.time()) - 60),
    "not yet valid": _minted(nbf=int(time.time()) + 86_400),
    "foreign issuer": _minted(iss="elsewhere"),
    "service audience": _minted(aud="twinmesh-internal"),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_forged_tokens_are_refused(gateway: Gateway, forge: Callable[[Gateway], str]) -> None:
    answer = gateway.http.get("/v1/devices", headers={"authorization": f"Bearer {forge(gateway)}"})
    assert answer.status_code == 401
    assert reason(answer) == "TOKEN_INVALID"
    assert answer.json()["code"] == 16


def test_an_expired_token_says_so(gateway: Gateway) -> None:
    token = _minted(exp=int(time.time()) - 60)(gateway)
    answer = gateway.http.get("/v1/devices", headers={"authorization": f"Bearer {token}"})
    assert "expired" in answer.json()["message"]


def test_no_credential(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices")
    assert answer.status_code == 401
    assert reason(answer) == "CREDENTIAL_MISSING"


def test_a_token_in_the_query_does_not_count(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", params={"access_token": gateway.token})
    assert answer.status_code == 401
    assert reason(answer) == "CREDENTIAL_MISSING"
    assert gateway.token not in gateway.access_log.read_text()


def test_duplicate_authorization_headers_are_refused(gateway: Gateway) -> None:
    good, key, evil = f"Bearer {gateway.token}", f"Bearer {GOOD_KEY}", "Bearer evil"
    for pair in ((good, evil), (evil, good), (key, evil), (evil, key), (good, key), (key, good)):
        answer = gateway.http.get("/v1/devices", headers=[("authorization", value) for value in pair])
        assert answer.status_code == 401, pair


def test_a_token_reaches_the_service_as_it_was_sent(gateway: Gateway) -> None:
    bearer = gateway.bearer
    assert gateway.http.get("/v1/devices", headers=bearer).status_code == 200
    assert gateway.arrivals.metadata[-1]["authorization"] == bearer["authorization"]


def test_an_api_key_becomes_a_token(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", headers={"authorization": f"Bearer {GOOD_KEY}"})
    assert answer.status_code == 200
    token = gateway.arrivals.metadata[-1]["authorization"].removeprefix("Bearer ")
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == "key-1"


def test_only_api_keys_are_asked_about(gateway: Gateway) -> None:
    before = len(gateway.arrivals.requests)
    assert gateway.http.get("/v1/devices", headers=gateway.bearer).status_code == 200
    assert [type(each).__name__ for each in gateway.arrivals.requests[before:]] == ["ListDevicesRequest"]


def test_a_wrong_api_key(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", headers={"authorization": "Bearer tmk_acme_1_wrong"})
    assert answer.status_code == 401
    assert reason(answer) == "API_KEY_INVALID"


def test_every_rpc_but_the_public_ones_needs_a_credential(gateway: Gateway) -> None:
    contract = read_contract(CONTRACT)
    assert {rpc.path for rpc in contract.public} >= {
        "/twinmesh.auth.v1.SessionService/Login",
        "/twinmesh.mesh.v1.HealthService/GetReadiness",
    }
    for rpc in contract.rpcs:
        for binding in rpc.bindings:
            path = binding.template.replace("{", "").replace("}", "")
            answer = gateway.http.request(binding.method, path, json={} if binding.method == "POST" else None)
            assert (answer.status_code == 401) is not rpc.is_public, f"{binding} {answer.status_code}"


def test_public_paths_work_with_a_stale_credential(gateway: Gateway) -> None:
    for credential in ("Bearer tmk_acme_1_wrong", "Bearer nonsense"):
        headers = {"authorization": credential}
        assert gateway.http.get("/healthz/live", headers=headers).status_code == 200
        assert gateway.http.post("/v1/auth/login", headers=headers, json={}).status_code == 200
        assert gateway.http.get("/.well-known/jwks.json", headers=headers).json()["keys"][0]["kty"] == "OKP"


def test_public_paths_are_public_for_their_method_only(gateway: Gateway) -> None:
    for path in ("/v1/auth/login", "/v1/auth/login/", "/v1/auth/../auth/me", "/v1/auth/login%2F..%2Fme"):
        assert gateway.http.get(path).status_code == 401, path


def test_identity_headers_from_outside_are_dropped(gateway: Gateway) -> None:
    sent = {
        "x-tenant": "other",
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-user": "admin",
        "x-forwarded-groups": "admins",
        "x-forwarded-client-cert": "URI=spiffe://twinmesh/tenant/other/device/pump-1",
        "x-tenant-id": "other",
        "x-envoy-original-path": "/",
        "x-envoy-max-retries": "9",
        "x-trace-id": "mine",
        "x_tenant": "other",
    }
    assert gateway.http.get("/v1/devices", headers={**gateway.bearer, **sent}).status_code == 200
    arrived = gateway.arrivals.metadata[-1]
    stripped = {"x-forwarded-user", "x-forwarded-groups", "x-forwarded-client-cert"}
    stripped |= {"x-tenant", "x-tenant-id", "x_tenant", "x-envoy-max-retries", "x-trace-id"}
    assert stripped.isdisjoint(arrived)
    assert "192.0.2.1" not in arrived["x-forwarded-for"]
    assert arrived["x-envoy-original-path"] == "/v1/devices"


def test_preflight_of_an_allowed_origin(gateway: Gateway) -> None:
    headers = {
        "origin": ORIGIN,
        "access-control-request-method": "PATCH",
        "access-control-request-headers": "authorization",
    }
    answer = gateway.http.options("/v1/devices/x", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]


def test_preflight_of_another_origin_stops_here(gateway: Gateway) -> None:
    before = len(gateway.arrivals.requests)
    headers = {"origin": "https://evil.example", "access-control-request-method": "GET"}
    answer = gateway.http.options("/v1/devices", headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    assert len(gateway.arrivals.requests) == before


def test_pages_may_read_errors_and_trace_ids(gateway: Gateway) -> None:
    for headers in ({}, gateway.bearer):
        answer = gateway.http.get("/v1/devices", headers={**headers, "origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-trace-id" in answer.headers["access-control-expose-headers"]


def test_what_stands_in_a_query_is_in_no_trace(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", params={"access_token": "open-sesame"})
    spans = gateway.arrivals.wait_for_trace(answer.headers["x-trace-id"])
    urls = [
        attribute.value.string_value
        for span in spans
        for attribute in span.attributes
        if attribute.key == "http.url"
    ]
    assert urls == [f"http://127.0.0.1:{gateway.port}/v1/devices"]
    assert "sesame" not in str(spans)
