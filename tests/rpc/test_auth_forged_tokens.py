"""Tokens that were not made by auth_svc, each wrong in one way."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auth_svc.signing_keys import KeyRing
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import db
from meshkit.clock import SystemClock
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import MESH_SECRET, AuthApp, refusal, running_auth
from twinmesh.auth.v1 import session_service_pb2


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def signing_key(auth: AuthApp) -> tuple[str, Ed25519PrivateKey]:
    """The true key, so that exactly one thing is wrong with each token."""
    async with db.pool(auth.database.url("twinmesh_auth"), application="test") as pool:
        ring = KeyRing(
            store=SigningKeyStore(pool=pool), mesh_secret=MESH_SECRET, life_days=30, clock=SystemClock()
        )
        await ring.refresh()
        return ring.signer().kid, ring.signer().private_key


async def _verdict(auth: AuthApp, token: str) -> tuple[grpc.StatusCode, str]:
    return await refusal(auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token)))


async def _claims(auth: AuthApp) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        (await auth.login()).access_token, options={"verify_signature": False}
    )
    return claims


_INVALID = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
_NOW = int(time.time())


async def test_the_unspoilt_token_is_good(auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]) -> None:
    kid, private_key = signing_key
    token = jwt.encode(
        await _claims(auth), private_key, algorithm="EdDSA", headers={"kid": kid, "typ": "at+jwt"}
    )
    me = await auth.sessions.GetMe(session_service_pb2.GetMeRequest(), metadata=bearer(token))
    assert me.subject == "admin"


_WRONG_CLAIMS: list[dict[str, Any]] = [
    {"iss": "somebody"},
    {"aud": "twinmesh-internal"},
    {"aud": None},
    {"exp": _NOW - 1},
    {"exp": None},
    {"nbf": _NOW + 86_400},
    {"tenant": None},
    {"kind": "root"},
    {"kind": "service"},
    {"perms": None},
    {"perms": 7},
    {"sub": None},
]


async def test_a_wrong_claim_is_refused(auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]) -> None:
    kid, private_key = signing_key
    good = await _claims(auth)
    for wrong in _WRONG_CLAIMS:
        claims = {name: value for name, value in {**good, **wrong}.items() if value is not None}
        token = jwt.encode(claims, private_key, algorithm="EdDSA", headers={"kid": kid, "typ": "at+jwt"})
        assert await _verdict(auth, token) == _INVALID, wrong


async def test_a_wrong_header_is_refused(auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]) -> None:
    kid, private_key = signing_key
    claims = await _claims(auth)
    wrong: list[dict[str, Any]] = [
        {"kid": kid, "typ": "JWT"},
        {"kid": kid, "typ": None},
        {"kid": "unknown", "typ": "at+jwt"},
        {"typ": "at+jwt"},
    ]
    for headers in wrong:
        token = jwt.encode(claims, private_key, algorithm="EdDSA", headers=headers)
        assert await _verdict(auth, token) == _INVALID, headers


async def test_another_key_under_the_true_kid_is_refused(
    auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]
) -> None:
    mint = TokenMint(kid=signing_key[0])
    claims = await _claims(auth)
    token = mint.token(**claims, permissions=claims["perms"])
    assert await _verdict(auth, token) == _INVALID


def _unsigned(header: dict[str, str], claims: dict[str, Any], signature: bytes) -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_a_token_without_a_signature_is_refused(
    auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]
) -> None:
    claims = await _claims(auth)
    for algorithm in ("none", "None", "NONE"):
        header = {"alg": algorithm, "typ": "at+jwt", "kid": signing_key[0]}
        assert await _verdict(auth, _unsigned(header, claims, b"")) == _INVALID, algorithm


async def test_the_public_key_as_a_shared_secret_is_refused(
    auth: AuthApp, signing_key: tuple[str, Ed25519PrivateKey]
) -> None:
    kid, private_key = signing_key
    public = private_key.public_key()
    secrets = {
        "raw": public.public_bytes_raw(),
        "pem": public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "jwk": base64.urlsafe_b64encode(public.public_bytes_raw()).rstrip(b"="),
    }
    header = {"alg": "HS256", "typ": "at+jwt", "kid": kid}
    claims = await _claims(auth)
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for form, secret in secrets.items():
        for audience in ("twinmesh", "twinmesh-internal"):
            forged = {**claims, "aud": audience}
            signing_input = _unsigned(header, forged, b"").rstrip(".").encode()
            token = _unsigned(header, forged, hmac.sign(signing_input, secret))
            assert await _verdict(auth, token) == _INVALID, (form, audience)


async def test_what_is_no_token_is_refused(auth: AuthApp) -> None:
    for garbage in ("", ".", "..", "a.b.c", "tmk_demo_abc_" + "0" * 64, "x" * 8000):
        assert await _verdict(auth, garbage) == _INVALID, garbage
